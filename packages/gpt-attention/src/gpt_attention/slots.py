"""Keys and values of several sequences of different lengths, in memory that is taken once.

Shapes: L layers, B slots, H key-value heads, S tokens held, the new ones among them, K head width, T new tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OpenSlots:
    """One layer of some slots, ready for new tokens: for several of one sequence, or for one of each of B."""

    target: Tensor
    """(T, 2, H, K): the place of one sequence's new tokens; or (B, S, 2, H, K): all tokens of B slots."""

    keys: Tensor
    """(B, H, S, K): the slots' keys, those of the new tokens among them."""

    values: Tensor
    """(B, H, S, K): their values."""

    index: tuple[Tensor, Tensor] | None = None
    """Slots and positions (B,) of the new tokens in ``target``; None: all of it."""

    def write(self, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new tokens (T or B, 2, H, K) there; return all keys and values."""
        if self.index is None:
            self.target.copy_(keys_values)
        else:
            self.target[self.index] = keys_values
        return self.keys, self.values


class SlotCache:
    """A static key-value cache: a sequence occupies a slot, each of its tokens a position there, written in place.

    It keeps no lengths. Whoever runs the sequences knows how many tokens of a slot count, so forgetting the last ones
    costs nothing: they are overwritten. The memory, 2 * n_layers * n_slots * capacity * n_heads * head_dim elements,
    is reserved at once and touched as the longest sequence grows, so that a CPU takes it no earlier.

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
        self._buffer = torch.empty(n_layers, 2, n_slots, n_heads, capacity, head_dim, dtype=dtype, device=device)
        self._n_zeroed = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache when every position has been written."""
        return self._buffer.nbytes

    def open(self, slot: int, start: int, n_tokens: int) -> list[OpenSlots]:
        """Return, of each layer, where one sequence's new tokens go and where its tokens up to their end are read.

        Views made once for all layers: one by one they took a decoding step 1 ms of 13. ValueError beyond the capacity.
        """
        end = start + n_tokens
        self._zero_up_to(end)
        held = self._buffer[:, :, slot : slot + 1, :, :end]                      # (L, 2, 1, H, S, K)
        targets = held[:, :, 0, :, start:].permute(0, 3, 1, 2, 4).unbind(0)      # each (T, 2, H, K)
        keys, values = held.unbind(1)
        return [OpenSlots(*views) for views in zip(targets, keys.unbind(0), values.unbind(0), strict=True)]

    def open_each(self, positions: Tensor, longest: int) -> list[OpenSlots]:
        """Return, of each layer, where one new token of each of the first slots goes, at its own position (B,).

        Keys and values are those of ``longest`` positions; what lies past a sequence's own length is to be masked.
        """
        n = len(positions)
        self._zero_up_to(longest)
        slots = torch.arange(n, device=positions.device)
        held = self._buffer[:, :, :n, :, :longest]                               # (L, 2, B, H, S, K)
        targets = held.permute(0, 2, 4, 1, 3, 5).unbind(0)                       # each (B, S, 2, H, K)
        keys, values = held.unbind(1)
        return [
            OpenSlots(*views, (slots, positions))
            for views in zip(targets, keys.unbind(0), values.unbind(0), strict=True)
        ]

    def _zero_up_to(self, end: int) -> None:
        """Make the first positions of every slot numbers: masked ones take part in the products, and 0 * NaN is NaN."""
        if end <= self._n_zeroed:
            return
        if end > self.capacity:
            raise ValueError(f"{end} tokens exceed the cache's capacity of {self.capacity}; make one with more")
        end = min(self.capacity, max(end, 2 * self._n_zeroed, 64))
        self._buffer[:, :, :, :, self._n_zeroed : end] = 0
        self._n_zeroed = end

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot over another's."""
        self._buffer[:, :, target, :, :length] = self._buffer[:, :, source, :, :length]

    def clear(self, slot: int) -> None:
        """Set a slot to zeros, so that what was not finite in it cannot spread."""
        self._buffer[:, :, slot] = 0
