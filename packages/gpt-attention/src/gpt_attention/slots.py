"""Keys and values of several sequences of different lengths, in memory that is taken once.

Shapes: N slots, H key-value heads, C capacity in tokens, K head width, T new tokens of one sequence.
"""

import torch
from torch import Tensor


class SlotCache:
    """A static key-value cache: a sequence occupies a slot, each of its tokens a position there, written in place.

    It keeps no lengths. Whoever runs the sequences knows how many tokens of a slot count, so forgetting the last ones
    costs nothing: they are overwritten. The memory, 2 * n_layers * n_slots * capacity * n_heads * head_dim elements,
    is taken by the operating system page by page as tokens are written.

    Raises ValueError for a size below 1.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        n_slots: int,
        capacity: int,
        n_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        sizes = {"n_layers": n_layers, "n_slots": n_slots, "capacity": capacity, "n_heads": n_heads}
        for name, size in {**sizes, "head_dim": head_dim}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.n_slots, self.capacity = n_slots, capacity
        # Zeros, because a masked position still takes part in the products: 0 times garbage might be NaN.
        self._buffer = torch.zeros(n_layers, 2, n_slots, n_heads, capacity, head_dim, dtype=dtype, device=device)
        self._layers = self._buffer.unbind(0)                                    # each (2, N, H, C, K)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache when every position has been written."""
        return self._buffer.nbytes

    def write(self, layer: int, slot: int, start: int, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Put one sequence's new tokens (T, 2, H, K) at ``start``; return its keys and values (1, H, start + T, K)."""
        end = start + len(keys_values)
        buffer = self._layers[layer][:, slot]                                    # (2, H, C, K)
        buffer[:, :, start:end] = keys_values.permute(1, 2, 0, 3)
        keys, values = buffer[:, None, :, :end].unbind(0)
        return keys, values

    def write_each(self, layer: int, positions: Tensor, longest: int, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Put one token (2, H, K) of ``keys_values`` into each of the first slots, at its own position (B,).

        Returns the keys and values (B, H, longest, K) of these slots; what lies past a sequence's own length is to be
        masked.
        """
        n = len(keys_values)
        buffer = self._layers[layer][:, :n]                                      # (2, B, H, C, K)
        slots = torch.arange(n, device=positions.device)
        buffer.permute(1, 3, 0, 2, 4)[slots, positions] = keys_values            # (B, C, 2, H, K)
        keys, values = buffer[:, :, :, :longest].unbind(0)
        return keys, values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot over another's."""
        self._buffer[:, :, target, :, :length] = self._buffer[:, :, source, :, :length]

    def clear(self, slot: int) -> None:
        """Set a slot to zeros, so that what was not finite in it cannot spread."""
        self._buffer[:, :, slot] = 0
