"""The loss of a language model: mean negative log-likelihood of the next token (chapter 5).

Shapes: B batch, T tokens, V vocabulary. Targets are the inputs shifted by one; -100 is not counted.
"""

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gpt_core import GPTModel
from gpt_train.cross_entropy import head_cross_entropy

IGNORED = -100
# Where torch's Linear and the model's own live: by name, because this package does not depend on gpt-attention.
_LINEAR_MODULES = ("torch.nn.modules.linear", "gpt_attention.products")


def sequence_loss(
    model: nn.Module, inputs: Tensor, targets: Tensor, *, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Return the cross-entropy of ``targets`` (B, T) under the model's logits for ``inputs`` (B, T).

    "mean" divides by the number of counted targets, as in the book: nan if there is none. "sum" does not
    divide. The gradient can be taken once; RuntimeError says so where a ``GPTModel``'s is asked for again.
    """
    if not torch.compiler.is_compiling() and _has_plain_head(model):
        vectors = model.features(inputs).flatten(0, 1)                   # (B * T, D)
        total = head_cross_entropy(vectors, model.out_head, targets.flatten(), ignored=IGNORED)
        return total if reduction == "sum" else total / (targets != IGNORED).sum()
    logits = model(inputs)                                               # (B, T, V)
    # float32: a bfloat16 softmax over 50,257 classes keeps only 8 bits of each probability.
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction)


def _has_plain_head(model: nn.Module) -> TypeGuard[GPTModel]:
    """Whether the logits are the features and one product: no forward but our own, no hook, bias or LoRA."""
    if not isinstance(model, GPTModel) or type(model).forward is not GPTModel.forward:
        return False
    head = model.out_head
    is_linear = isinstance(head, nn.Linear) and type(head).__module__ in _LINEAR_MODULES
    return is_linear and head.bias is None and not _is_changed(model) and not _is_changed(head)


def _is_changed(module: nn.Module) -> bool:
    """Whether this one object has a hook, or a ``forward`` that is not its class's."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def calc_loss_batch(
    input_batch: Tensor, target_batch: Tensor, model: nn.Module, device: torch.device | str
) -> Tensor:
    """Move one batch to ``device`` and return its mean loss as a 0-d tensor that can be differentiated."""
    return sequence_loss(model, input_batch.to(device), target_batch.to(device))


def calc_loss_loader(
    data_loader: Iterable[tuple[Tensor, Tensor]],
    model: nn.Module,
    device: torch.device | str,
    num_batches: int | None = None,
    *,
    batch_loss: Callable[[Tensor, Tensor, nn.Module, torch.device | str], Tensor] = calc_loss_batch,
) -> float:
    """Return the mean of the mean losses of the first ``num_batches`` batches; None: of all of them.

    Every batch weighs the same, a short last one too. An empty loader gives nan. ``batch_loss`` is another loss than
    the next token's. The caller chooses train or eval mode, and ``torch.no_grad``. Raises ValueError if
    ``num_batches`` is below 1.
    """
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"num_batches must be at least 1 or None for all, got {num_batches}")
    losses = [batch_loss(x, y, model, device).item() for x, y in islice(data_loader, num_batches)]
    return sum(losses) / len(losses) if losses else math.nan


def evaluate_model(
    model: nn.Module,
    train_loader: Iterable[tuple[Tensor, Tensor]],
    val_loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str,
    eval_iter: int | None,
    *,
    batch_loss: Callable[[Tensor, Tensor, nn.Module, torch.device | str], Tensor] = calc_loss_batch,
) -> tuple[float, float]:
    """Return the mean training and validation loss over ``eval_iter`` batches each, without dropout.

    ``batch_loss`` as in ``calc_loss_loader``. The model is in train mode afterwards, whatever it was before: the book's
    training loops rely on it.
    """
    model.eval()
    with torch.no_grad():
        train_loss, val_loss = (
            calc_loss_loader(loader, model, device, num_batches=eval_iter, batch_loss=batch_loss)
            for loader in (train_loader, val_loader)
        )
    model.train()
    return train_loss, val_loss
