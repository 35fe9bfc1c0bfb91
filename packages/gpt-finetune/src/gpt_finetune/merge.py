"""Adapters put into the weights for inference, and taken out again exactly.

While they are merged, the model has no LoRA layer: it runs on gpt-core's fast paths and can be saved and exported.
"""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import NamedTuple

from torch import nn

from gpt_core import GPTModel
from gpt_finetune.lora import LinearWithLoRA, Place, wrapped_places


class _Merged(NamedTuple):
    place: Place
    wrapped: LinearWithLoRA
    weight: nn.Parameter  # the wrapped layer's own


class MergedLoRA:
    """What ``merge_lora`` has changed. ``unmerge`` takes it back, and so does the end of a ``with`` block.

    It holds the wrapped layers' own weights, so as long as it is kept they take memory a second time: all linear layers
    of the blocks of 124M in float32, 340 MB. A merge that is to stay needs nothing of it: let go of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers: list[_Merged] = [
            _Merged(place, place.layer, place.layer.linear.weight) for place in wrapped_places(model)
        ]
        self._tied = [
            (gpt, gpt.config) for gpt in model.modules()
            if isinstance(gpt, GPTModel) and gpt.config.tie_weights and isinstance(gpt.out_head, LinearWithLoRA)
        ]
        # All of them first: if the memory ends here, the model is as it was.
        weights = [
            nn.Parameter(layer.wrapped.merged_weight(), requires_grad=layer.weight.requires_grad)
            for layer in self._layers
        ]
        for (place, wrapped, _), weight in zip(self._layers, weights, strict=True):
            wrapped.linear.weight = weight
            place.put(wrapped.linear)
        for gpt, config in self._tied:
            gpt.config = dataclasses.replace(config, tie_weights=False)

    def unmerge(self) -> None:
        """Put LoRA and the wrapped layers' own weights back, bit for bit; what has changed in the merged ones is lost.

        A model that has moved to another device since stays there. Raises ValueError, before anything changes, if it
        is unmerged already or a layer was replaced since.
        """
        if not self._layers:
            raise ValueError("the adapters are unmerged already")
        for place, wrapped, _ in self._layers:
            if place.layer is not wrapped.linear:
                raise ValueError(f"{place.dotted} was replaced after the merge, so the adapters cannot be unmerged")
        for place, wrapped, weight in self._layers:
            merged = wrapped.linear
            device, is_training = merged.weight.device, merged.training
            merged.weight = weight
            place.put(wrapped.to(device).train(is_training))
        for gpt, config in self._tied:
            gpt.config = config
        self._layers = []

    def __enter__(self) -> MergedLoRA:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._layers:
            self.unmerge()


def merge_lora(model: nn.Module) -> MergedLoRA:
    """Put every adapter into its layer's weight, in place, and return what undoes it.

        with merge_lora(model):
            save_checkpoint(folder, model)

    The wrapped layers themselves come back to their places, each with a new weight; A, B and their optimizer are not
    touched, so training goes on after ``unmerge``. A head that is tied to the token embedding is untied, in
    ``model.config`` too, since the embedding does not change.

    Raises ValueError if the model holds no LoRA.
    """
    return MergedLoRA(model)
