"""Output head and cross-entropy as one function that never holds the logits of a whole batch.

The logits of a batch are the largest thing in training: 8 x 1,024 tokens of GPT-2 are 1.6 GB in float32, and autograd
keeps several copies. Here each chunk of rows becomes its own gradient in place, during the forward pass.

Shapes: R rows (batch times tokens), C a chunk's rows, D embedding width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# 2**25 logits, 64 MB in bfloat16: 667 rows of GPT-2's vocabulary, enough for the products to run at full speed.
_CHUNK_LOGITS = 2**25
# The softmax passes several times over its rows: 2 MB of them in float32 stay in the processor's cache meanwhile.
_CACHED_LOGITS = 2**19


def head_cross_entropy(features: Tensor, head: nn.Linear, targets: Tensor, *, ignored: int) -> Tensor:
    """Return the summed cross-entropy of ``targets`` (R,) under ``head(features)``, features (R, D).

    ``head`` has no bias. Targets equal to ``ignored`` are not counted. Under autocast the products run in its
    dtype, as ``head`` would; the softmax is never below float32: in bfloat16 it keeps only 8 bits of each
    probability. The gradient can be taken once (RuntimeError at the second time), and not of itself.
    """
    # Asked here: within the function gradients are always off, and a weight "needs" one under no_grad too.
    keep_gradients = torch.is_grad_enabled()
    total: Tensor = _HeadCrossEntropy.apply(features, head.weight, targets, head, ignored, keep_gradients)
    return total


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        head: nn.Linear,
        ignored: int,
        keep_gradients: bool,
    ) -> Tensor:
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        needs_features, needs_weight = (keep_gradients and needed for needed in ctx.needs_input_grad[:2])
        total = torch.zeros((), dtype=_at_least_float32(dtype), device=features.device)
        grad_features = torch.empty_like(features) if needs_features else None
        grad_weight: Tensor | None = None
        with torch.autocast(device, enabled=False):
            cast_weight = weight.to(dtype)
            for rows in _slices(features.shape[0], _CHUNK_LOGITS // weight.shape[0]):
                inputs = features[rows].to(dtype)                               # (C, D)
                # The layer itself may know a quicker kernel for its own dtype. Not by a call: that would run hooks on
                # all modules, and torch's own (FlopCounterMode) fail where gradients are off.
                logits = head.forward(inputs) if dtype == weight.dtype else linear(inputs, cast_weight)
                total += _to_gradient_(logits, targets[rows], ignored)          # (C, V)
                if grad_features is not None:
                    grad_features[rows] = logits @ cast_weight
                if needs_weight:
                    part = (logits.t() @ inputs).to(weight.dtype)               # (V, D)
                    grad_weight = part if grad_weight is None else grad_weight.add_(part)
        ctx.gradients = grad_features, grad_weight
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradient of this loss was taken before and can be taken once: compute the loss again for a second "
                "backward pass"
            )
        grad_features, grad_weight = ctx.gradients
        ctx.gradients = None  # scaled in place below, so of no use to a second backward pass
        return _scaled_(grad_features, grad), _scaled_(grad_weight, grad), None, None, None, None


def _to_gradient_(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Replace logits (C, V) by the gradient of the summed loss, in place; return that loss."""
    total = torch.zeros((), dtype=_at_least_float32(logits.dtype), device=logits.device)
    for rows in _slices(logits.shape[0], _CACHED_LOGITS // logits.shape[1]):
        block, counted = logits[rows], (targets[rows] != ignored)[:, None]
        labels = targets[rows].masked_fill(~counted[:, 0], 0)[:, None]
        log_probabilities = torch.log_softmax(block, dim=-1, dtype=total.dtype)
        total -= log_probabilities.gather(1, labels).masked_fill_(~counted, 0.0).sum()
        gradient = log_probabilities.exp_()                                     # softmax - one_hot(labels)
        gradient.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=gradient.dtype))
        block.copy_(gradient.masked_fill_(~counted, 0.0))
    return total


def _scaled_(gradient: Tensor | None, by: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.mul_(by)


def _slices(n_rows: int, size: int) -> Iterator[slice]:
    size = max(size, 1)
    return (slice(start, start + size) for start in range(0, n_rows, size))


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
