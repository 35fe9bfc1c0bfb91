"""One optimizer step: forward, backward, clip, check, update. Every training loop here is made of it."""

import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt_train.errors import DataError
from gpt_train.loss import IGNORED, sequence_loss

Batch = tuple[Tensor, Tensor]


class Loss(Protocol):
    """What is trained: a function of a model and one batch, such as ``sequence_loss``."""

    def __call__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, /, *, reduction: Literal["mean", "sum"]
    ) -> Tensor:
        """Return a 0-d tensor: "sum" over the counted targets (not -100), "mean" divided by their number."""
        ...


class Stepper:
    """Takes optimizer steps on ``model``, on the model's own device.

    ``precision`` as in ``TrainConfig``. With ``compile`` the loss is compiled by torch.compile at the first
    step; if that fails (it needs a C++ compiler), one warning says so and the plain function goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        precision: str = "float32",
        compile: bool = False,
        loss: Loss = sequence_loss,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.device = next(model.parameters()).device
        self.precision = precision
        self._plain = loss
        self._loss: Loss = torch.compile(loss) if compile else loss

    def __call__(
        self, batches: Sequence[Batch], *, step: int, first_batch: int, grad_clip: float = 0.0
    ) -> tuple[float, float]:
        """Follow the gradient of the mean loss over all counted targets of ``batches``; return (loss, norm).

        ``grad_clip`` is the largest norm of the gradient, 0 for none. The gradient stays in the parameters'
        ``grad``. ``step`` and ``first_batch`` (number of the first batch) are for messages. Raises
        DataError without a counted target, FloatingPointError if loss or gradient is not finite: both
        before a weight has changed.
        """
        n_targets = sum(int((targets != IGNORED).sum()) for _, targets in batches)
        if not n_targets:
            raise DataError(f"step {step} (batch {first_batch}) has no counted target: all are {IGNORED}")
        try:
            losses = self._backward(batches, n_targets)
        except Exception as error:
            if self._loss is self._plain:
                raise
            reason = str(error).strip().partition("\n")[0]
            reason = f"{type(error).__name__}: {reason}"
            warnings.warn(f"torch.compile failed, going on without it: {reason}", stacklevel=3)
            self._loss = self._plain
            losses = self._backward(batches, n_targets)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip or math.inf)
        # One transfer for all numbers: each .item() would wait for the device.
        *each, grad_norm = torch.stack([*losses, norm]).tolist()
        if not math.isfinite(sum(each) + grad_norm):
            self.optimizer.zero_grad()
            raise _not_finite(each, grad_norm, step, first_batch)
        self.optimizer.step()
        return sum(each), grad_norm

    def _backward(self, batches: Sequence[Batch], n_targets: int) -> list[Tensor]:
        """Leave the gradient in the parameters; return each batch's share of the mean loss."""
        self.optimizer.zero_grad()
        losses = []
        for inputs, targets in batches:
            inputs, targets = (ids.to(self.device, non_blocking=True) for ids in (inputs, targets))
            with arithmetic(self.precision, self.device):
                loss = self._loss(self.model, inputs, targets, reduction="sum") / n_targets
            loss.backward()
            losses.append(loss.detach())
        return losses


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which the forward pass runs: bfloat16 autocast, or nothing.

    "auto" takes bfloat16 where it is faster: CUDA from compute capability 8.0, processors with AVX512-BF16
    or AMX.
    """
    if precision == "bfloat16" or (precision == "auto" and _is_bfloat16_fast(device)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def _is_bfloat16_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # torch >= 2.11 tells all capabilities; before, these two functions are what there is.
        if hasattr(torch.cpu, "get_capabilities"):
            found = torch.cpu.get_capabilities()
            return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def _not_finite(each: list[float], grad_norm: float, step: int, first_batch: int) -> FloatingPointError:
    wrong = [first_batch + i for i, loss in enumerate(each) if not math.isfinite(loss)]
    if wrong:
        what = f"the loss is {sum(each)} at step {step} in batch {wrong[0]}"
    else:
        last = first_batch + len(each) - 1
        where = f"batch {last}" if len(each) == 1 else f"batches {first_batch} to {last}"
        what = f"the gradient's norm is {grad_norm} at step {step} in {where}"
    return FloatingPointError(
        f"{what}; the weights were not changed: lower lr, warm up for longer or look at that data")
