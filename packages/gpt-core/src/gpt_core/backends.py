"""The two ways in which the engine computes a pass: packed, or through a model's own modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gpt_attention import KVCache
from gpt_core.inference import Chunk, InferenceModel
from gpt_core.model import GPTModel
from gpt_core.prepare import is_plain, prepare


class PackedBackend:
    """All sequences in one packed pass of an ``InferenceModel``, with one static cache."""

    has_cache = True

    def __init__(self, model: nn.Module, *, n_slots: int, capacity: int) -> None:
        self._n_slots, self._capacity = n_slots, capacity
        self._trainable = None if isinstance(model, InferenceModel) else model
        # Where each parameter hangs: a loaded state dict may put another one there.
        self._places = [(module._parameters, name) for module in model.modules() for name in module._parameters]
        self._state = self._weights_state()
        self._model = model if isinstance(model, InferenceModel) else self._prepared(model)
        self._new_cache()

    def _new_cache(self) -> None:
        self.device = self._model.device
        with torch.inference_mode():
            self._cache = self._model.new_cache(n_slots=self._n_slots, capacity=self._capacity)

    def _prepared(self, model: nn.Module) -> InferenceModel:
        if not is_plain(model):
            raise ValueError("the model has other layers, hooks or dtypes than it had; build a new engine for it")
        return prepare(model)

    def _weights_state(self) -> list[tuple[int, int]]:
        """Return numbers that change when a weight is replaced, moved, or changed in place other than by ``.data``."""
        tensors = [parameters[name] for parameters, name in self._places]
        return [(0 if t.is_inference() else t._version, t.data_ptr()) for t in tensors if t is not None]

    def refresh(self) -> bool:
        """Look the weights up anew if they have changed, as when the caller trains between two tokens.

        Returns whether what was cached is lost, because the model has another dtype or device now.
        """
        if self._trainable is None:
            return False
        state = self._weights_state()
        if state == self._state:
            return False
        before = self._model
        self._model, self._state = self._prepared(self._trainable), state
        is_lost = (before.cache_dtype, before.device) != (self._model.cache_dtype, self._model.device)
        if is_lost:
            self._new_cache()
        return is_lost

    def logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """Return the wanted logits (rows, V), float32."""
        return self._model.logits(chunks, self._cache)

    def move(self, source: int, target: int, length: int) -> None:
        """Move a sequence into another slot."""
        with torch.inference_mode():
            self._cache.move(source, target, length)

    def clear(self, slot: int) -> None:
        """Overwrite what a slot holds, because it may not be finite."""
        with torch.inference_mode():
            self._cache.clear(slot)

    def free(self, slot: int) -> None:
        """Leave a slot to the next sequence; what lies in it is overwritten token by token."""


class ModuleBackend:
    """One sequence after the other through the model's modules: for layers that the packed pass does not know.

    A model that offers ``new_cache()`` is given caches; for another one ``has_cache`` is False, and every chunk must
    be a whole sequence.
    """

    def __init__(self, model: nn.Module, *, use_cache: bool) -> None:
        self._model = model
        self._new_cache: Callable[[], KVCache] | None = getattr(model, "new_cache", None) if use_cache else None
        self.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._caches: dict[int, KVCache] = {}

    @property
    def has_cache(self) -> bool:
        """Whether a sequence may come in pieces."""
        return self._new_cache is not None

    def refresh(self) -> bool:
        """Return False: nothing of the model is kept, and no cached token is lost."""
        return False

    def logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """Return the wanted logits (rows, V), float32."""
        # no_grad and not inference_mode: a module may keep what it computes, and train with it later.
        with _eval_mode(self._model), torch.no_grad():
            rows = [self._logits_of(chunk) for chunk in chunks]
        return torch.cat(rows).float()

    def _logits_of(self, chunk: Chunk) -> Tensor:
        cache = None
        if self._new_cache is not None:
            if chunk.slot not in self._caches:
                self._caches[chunk.slot] = self._new_cache()
            cache = self._caches[chunk.slot]
            cache.truncate(chunk.start)
        ids = torch.tensor([list(chunk.ids)], device=self.device)                       # (1, T)
        first = ids.shape[1] - chunk.n_logits
        model = self._model
        is_hooked = bool(model._forward_hooks or model._forward_pre_hooks)
        if isinstance(model, GPTModel) and type(model).forward is GPTModel.forward and not is_hooked:
            # At 124M the head over every position would be a third of the work of reading a long prompt.
            return model.out_head(model.features(ids, cache=cache)[0, first:])
        logits = model(ids) if cache is None else model(ids, cache=cache)
        return logits[0, first:]

    def move(self, source: int, target: int, length: int) -> None:
        """Move a sequence into another slot."""
        if source in self._caches:
            self._caches[target] = self._caches.pop(source)

    def clear(self, slot: int) -> None:
        """Forget what a slot holds."""
        self._caches.pop(slot, None)

    free = clear


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off within the block; afterwards every submodule has the mode it had before."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
