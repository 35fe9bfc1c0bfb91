"""Which weights a training run ends with: the last, their moving average, or those of its best moment."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class KeptWeights:
    """Follows the trained parameters of a module.

    ``average`` is the decay a step of an exponential moving average (Polyak and Juditsky 1992); 0: none. At step s the
    decay is at most (1 + s) / (10 + s), so that the first weights, drawn at random, are soon forgotten.
    """

    def __init__(self, module: nn.Module, *, average: float = 0.0) -> None:
        self._parameters: list[Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._average = average
        self._n_steps = 0
        self._means: list[Tensor] | None = self._values() if average else None
        self._kept: list[Tensor] | None = None

    @torch.no_grad()
    def follow(self) -> None:
        """Take note of one more step."""
        self._n_steps += 1
        if self._means is not None:
            decay = min(self._average, (1 + self._n_steps) / (10 + self._n_steps))
            torch._foreach_lerp_(self._means, self._parameters, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the parameters hold their averages, if there are any."""
        if self._means is None:
            yield
            return
        current = self._values()
        self._set(self._means)
        try:
            yield
        finally:
            self._set(current)

    def keep(self) -> None:
        """Remember the parameters as they are now."""
        self._kept = self._values()

    def restore(self) -> None:
        """Give the parameters what was kept; if nothing was, their averages, if there are any."""
        if values := self._kept or self._means:
            self._set(values)

    def _values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
