"""The book's training functions (chapter 5, appendix D): its signatures, lines and numbers.

They rest on the same step and schedule as ``train`` and draw random numbers in the book's order, so its
seeds print its losses. New code uses ``train``.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from gpt_core import generate_text_simple, text_to_token_ids, token_ids_to_text
from gpt_train.data import SupportsEncode
from gpt_train.loss import evaluate_model
from gpt_train.schedule import warmup_and_cosine
from gpt_train.step import Batch, Stepper


class SupportsText(SupportsEncode, Protocol):
    """What printing a sample needs of a tokenizer."""

    def decode(self, ids: list[int], /) -> str:
        """Return the text of some ids."""
        ...


def train_model_simple(
    model: nn.Module,
    train_loader: DataLoader[Batch],
    val_loader: DataLoader[Batch],
    optimizer: Optimizer,
    device: torch.device | str,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer: SupportsText,
) -> tuple[list[float], list[float], list[int]]:
    """Train without schedule and clipping; return training losses, validation losses and tokens seen.

    The three lists have an entry for each evaluation: after the first step, called step 0, and every
    ``eval_freq`` steps from there. Each prints a line, each epoch a sample. Raises FloatingPointError if
    the loss is not finite.
    """
    return _train(
        model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter, start_context,
        tokenizer, label="Step", clip_at=lambda step: 0.0,
    )


def train_model(
    model: nn.Module,
    train_loader: DataLoader[Batch],
    val_loader: DataLoader[Batch],
    optimizer: Optimizer,
    device: torch.device | str,
    n_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer: SupportsText,
    warmup_steps: int,
    initial_lr: float = 3e-05,
    min_lr: float = 1e-6,
    orig_book_version: bool = False,
) -> tuple[list[float], list[float], list[int], list[float]]:
    """Train with warm-up, cosine and clipping (appendix D); return the same and each step's rate.

    The peak rate is the optimizer's; if it lies below ``min_lr``, the cosine rises. The gradient is clipped to norm 1
    once the warm-up is over; with ``orig_book_version`` only after the first step that follows it. Otherwise as
    ``train_model_simple``.
    """
    peak_lr, max_steps = optimizer.param_groups[0]["lr"], len(train_loader) * n_epochs
    track_lrs: list[float] = []

    def clip_at(step: int) -> float:
        lr = warmup_and_cosine(
            step, max_steps=max_steps, warmup_steps=warmup_steps, initial_lr=initial_lr, lr=peak_lr, min_lr=min_lr
        )
        track_lrs.append(lr)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return 1.0 if step >= warmup_steps + orig_book_version else 0.0

    losses_and_tokens = _train(
        model, train_loader, val_loader, optimizer, device, n_epochs, eval_freq, eval_iter, start_context,
        tokenizer, label="Iter", clip_at=clip_at,
    )
    return *losses_and_tokens, track_lrs


def generate_and_print_sample(
    model: nn.Module, tokenizer: SupportsText, device: torch.device | str, start_context: str
) -> None:
    """Print ``start_context`` and the 50 tokens the model finds likeliest after it, on one line.

    The model is in train mode afterwards, as ``train_model_simple`` needs it.
    """
    model.eval()
    config = getattr(model, "config", None)  # the book's own models have none, and always position embeddings
    context_size = config.context_length if config is not None else model.get_parameter("pos_emb.weight").shape[0]
    ids = text_to_token_ids(start_context, tokenizer).to(device)
    with torch.no_grad():
        ids = generate_text_simple(model, ids, max_new_tokens=50, context_size=context_size)
    print(token_ids_to_text(ids, tokenizer).replace("\n", " "))
    model.train()


def find_highest_gradient(model: nn.Module) -> Tensor | None:
    """Return the largest gradient value (signed, 0-d) of all parameters; None if there is no gradient yet."""
    highest = [parameter.grad.max() for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack(highest).max() if highest else None


def _train(
    model: nn.Module,
    train_loader: DataLoader[Batch],
    val_loader: DataLoader[Batch],
    optimizer: Optimizer,
    device: torch.device | str,
    n_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer: SupportsText,
    *,
    label: str,
    clip_at: Callable[[int], float],
) -> tuple[list[float], list[float], list[int]]:
    """Do what both share; ``clip_at`` is called before each step (from 0) and gives the norm to clip to."""
    take_step = Stepper(model, optimizer)
    train_losses: list[float] = []
    val_losses: list[float] = []
    track_tokens_seen: list[int] = []
    tokens_seen, step = 0, 0
    for epoch in range(1, n_epochs + 1):
        model.train()
        for batch in train_loader:
            take_step([batch], step=step, first_batch=step, grad_clip=clip_at(step))
            tokens_seen += batch[0].numel()
            if step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_tokens_seen.append(tokens_seen)
                when = f"Ep {epoch} ({label} {step:06d})"
                print(f"{when}: Train loss {train_loss:.3f}, Val loss {val_loss:.3f}")
            step += 1
        generate_and_print_sample(model, tokenizer, device, start_context)
    return train_losses, val_losses, track_tokens_seen
