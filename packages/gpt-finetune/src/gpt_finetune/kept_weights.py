"""Which weights a training run ends with: the last, their moving average, or those of its best moment."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class KeptWeights:
    """Follows the trained parameters of a module.

    ``ema_decay`` is the decay a step of an exponential moving average, in float32 at least; 0: none. At step s it is at
    most (1 + s) / (10 + s), so that the first weights, drawn at random, are soon forgotten.
    """

    def __init__(self, module: nn.Module, *, ema_decay: float = 0.0) -> None:
        self._parameters: list[Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._ema_decay = ema_decay
        self._n_steps = 0
        self._means = self._widened(self._values()) if ema_decay else None
        self._kept: list[Tensor] | None = None

    @torch.no_grad()
    def follow(self) -> None:
        """Take note of one more step."""
        self._n_steps += 1
        if self._means is not None:
            decay = min(self._ema_decay, (1 + self._n_steps) / (10 + self._n_steps))
            torch._foreach_lerp_(self._means, self._widened(self._parameters), 1 - decay)

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

    def _widened(self, values: list[Tensor]) -> list[Tensor]:
        # In bfloat16 a thousandth of a weight's change is rounded to nothing, and the average would stand still.
        return [value.to(torch.promote_types(value.dtype, torch.float32)) for value in values]

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
