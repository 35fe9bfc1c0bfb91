"""Keys and values of the tokens already seen, so that a new token is computed alone.

Shapes: B batch, H heads, S tokens held, K head width.
"""

from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


class KVCache:
    """Keys and values of every layer, written in place into buffers that double when they are full.

    ``max_length`` caps the buffers' length in tokens (a model's context length); None means no cap. A layer's first
    ``append`` fixes its batch, heads, width, dtype and device. The book's interface (``get``, ``update``, ``get_all``,
    ``reset``) works too.
    """

    def __init__(self, n_layers: int, *, max_length: int | None = None) -> None:
        if n_layers < 1:
            raise ValueError(f"n_layers must be at least 1, got {n_layers}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.max_length = max_length
        self._buffers: list[KeysValues | None] = [None] * n_layers
        self._lengths = [0] * n_layers

    @property
    def length(self) -> int:
        """Tokens that every layer holds; during a forward pass the layers already computed hold more."""
        return min(self._lengths)

    def length_of(self, layer: int) -> int:
        """Tokens that one layer holds."""
        return self._lengths[layer]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Add the new tokens' keys and values (B, H, T, K) and return those of all tokens so far (B, H, S, K).

        Raises ValueError if the cache would hold more than ``max_length`` tokens, or if batch, heads or width are not
        those of the tokens it holds.
        """
        start = self._lengths[layer]
        end = start + keys.shape[2]
        if self.max_length is not None and end > self.max_length:
            raise ValueError(
                f"the cache holds {start} tokens and {keys.shape[2]} more exceed its max_length of "
                f"{self.max_length}; reset() it or start a new one"
            )
        for held, new in zip(self._buffers[layer] or (), (keys, values), strict=False):
            sizes, new_sizes = ((*t.shape[:2], t.shape[3]) for t in (held, new))
            if sizes != new_sizes:  # unchecked, an axis of 1 would be repeated to fit
                raise ValueError(
                    f"the cache holds (batch, heads, width) {sizes}, but got {new_sizes}; reset() it or start a new one"
                )
        key_buffer, value_buffer = self._reserve(layer, keys, values, end)
        key_buffer[:, :, start:end] = keys
        value_buffer[:, :, start:end] = values
        self._lengths[layer] = end
        return key_buffer[:, :, :end], value_buffer[:, :, :end]

    def get(self, layer_idx: int) -> KeysValues | None:
        """Return one layer's (keys, values), each (B, H, S, K), or None if it holds nothing."""
        buffers, length = self._buffers[layer_idx], self._lengths[layer_idx]
        if buffers is None or length == 0:
            return None
        return buffers[0][:, :, :length], buffers[1][:, :, :length]

    def update(self, layer_idx: int, value: KeysValues) -> None:
        """Replace one layer's (keys, values)."""
        self._buffers[layer_idx] = value
        self._lengths[layer_idx] = value[0].shape[2]

    def get_all(self) -> list[KeysValues | None]:
        """Return every layer's (keys, values)."""
        return [self.get(layer) for layer in range(len(self._buffers))]

    def truncate(self, length: int) -> None:
        """Forget the tokens from position ``length`` on, in every layer; tensors handed out earlier stay as they are.

        ``truncate(cache.length)`` removes what a forward pass that stopped half-way added to the first layers. Raises
        ValueError if ``length`` is negative.
        """
        if length < 0:
            raise ValueError(f"length must be at least 0, got {length}")
        if length == 0:
            self.reset()
        for layer, buffers in enumerate(self._buffers):
            if buffers is not None and self._lengths[layer] > length:
                self.update(layer, (buffers[0][:, :, :length], buffers[1][:, :, :length]))

    def reset(self) -> None:
        """Forget all tokens and free the buffers."""
        self._buffers = [None] * len(self._buffers)
        self._lengths = [0] * len(self._lengths)

    def _reserve(self, layer: int, keys: Tensor, values: Tensor, length: int) -> KeysValues:
        buffers = self._buffers[layer]
        if buffers is not None and buffers[0].shape[2] >= length:
            return buffers
        capacity = max(2 * self._lengths[layer], length, 64)
        if self.max_length is not None:
            capacity = min(capacity, self.max_length)
        grown = tuple(like.new_empty(*like.shape[:2], capacity, like.shape[3]) for like in buffers or (keys, values))
        if buffers is not None:
            for old, new in zip(buffers, grown, strict=True):
                new[:, :, : old.shape[2]] = old
        self._buffers[layer] = (grown[0], grown[1])
        return grown[0], grown[1]
