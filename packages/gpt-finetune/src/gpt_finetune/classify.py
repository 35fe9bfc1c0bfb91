"""The book's functions of chapter 6: its signatures, lines and numbers.

They read the class at the last position, which is usually padding, as the book does: the answer depends on the padding.
``gpt_finetune.classifier`` reads it at a text's own last token; new code uses that. Of the names that chapter
5 has too, ``calc_loss_batch`` is the loss of a class here and that of the next token in gpt-train.

Shapes: B batch, T tokens, C classes.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import gpt_train
from gpt_finetune.encode import SupportsEncode, encode_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batches = Iterable[tuple[Tensor, Tensor]]
"""Token ids (B, T) int64 and classes (B,) int64, what a DataLoader over ``SpamDataset`` gives."""


def calc_loss_batch(
    input_batch: Tensor, target_batch: Tensor, model: nn.Module, device: torch.device | str
) -> Tensor:
    """Return the mean cross-entropy of the classes (B,) under the last position's logits, as a 0-d tensor."""
    return cross_entropy(model(input_batch.to(device))[:, -1, :], target_batch.to(device))


def calc_loss_loader(
    data_loader: Batches, model: nn.Module, device: torch.device | str, num_batches: int | None = None
) -> float:
    """Return the mean loss of the first ``num_batches`` batches, as ``gpt_train.calc_loss_loader`` does."""
    return gpt_train.calc_loss_loader(data_loader, model, device, num_batches, batch_loss=calc_loss_batch)


def evaluate_model(
    model: nn.Module, train_loader: Batches, val_loader: Batches, device: torch.device | str, eval_iter: int | None
) -> tuple[float, float]:
    """Return the mean training and validation loss, as ``gpt_train.evaluate_model`` does."""
    return gpt_train.evaluate_model(model, train_loader, val_loader, device, eval_iter, batch_loss=calc_loss_batch)


def calc_accuracy_loader(
    data_loader: Batches, model: nn.Module, device: torch.device | str, num_batches: int | None = None
) -> float:
    """Return the share of right answers, 0 to 1, over the first ``num_batches`` batches; None: over all.

    The model is in eval mode afterwards, as the book leaves it. An empty loader gives nan. Raises ValueError if
    ``num_batches`` is below 1.
    """
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"num_batches must be at least 1 or None for all, got {num_batches}")
    model.eval()
    n_right, n_seen = 0, 0
    with torch.no_grad():
        for inputs, classes in islice(data_loader, num_batches):
            found = model(inputs.to(device))[:, -1, :].argmax(dim=-1)                     # (B,)
            n_right += int((found == classes.to(device)).sum())
            n_seen += len(classes)
    return n_right / n_seen if n_seen else math.nan


def train_classifier_simple(
    model: nn.Module,
    train_loader: Batches,
    val_loader: Batches,
    optimizer: Optimizer,
    device: torch.device | str,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
) -> tuple[list[float], list[float], list[float], list[float], int]:
    """Train as the book does; return training losses, validation losses, both accuracies and the examples seen.

    The losses have an entry for each evaluation: after the first step, called step 0, and every ``eval_freq`` steps
    from there; the accuracies one for each epoch. Each prints a line. Raises FloatingPointError, with the weights
    unchanged, if the loss is not finite.
    """
    train_losses: list[float] = []
    val_losses: list[float] = []
    train_accs: list[float] = []
    val_accs: list[float] = []
    examples_seen, step = 0, 0
    for epoch in range(1, num_epochs + 1):
        model.train()
        for inputs, classes in train_loader:
            optimizer.zero_grad()
            loss = calc_loss_batch(inputs, classes, model, device)
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {step}; the weights were not changed: lower the learning rate"
                )
            loss.backward()
            optimizer.step()
            examples_seen += len(inputs)
            if step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                print(f"Ep {epoch} (Step {step:06d}): Train loss {train_loss:.3f}, Val loss {val_loss:.3f}")
            step += 1
        train_accs.append(calc_accuracy_loader(train_loader, model, device, num_batches=eval_iter))
        val_accs.append(calc_accuracy_loader(val_loader, model, device, num_batches=eval_iter))
        print(f"Training accuracy: {train_accs[-1]:.2%} | Validation accuracy: {val_accs[-1]:.2%}")
    return train_losses, val_losses, train_accs, val_accs, examples_seen


def plot_values(
    epochs_seen: Sequence[float],
    examples_seen: Sequence[float],
    train_values: Sequence[float],
    val_values: Sequence[float],
    label: str = "loss",
    path: Path | str | None = None,
) -> "Figure":
    """Return a figure of losses or accuracies over epochs, the examples seen at the top.

    The book writes ``{label}-plot.pdf`` into the working directory; here a file is written only if ``path`` is given.
    Raises ImportError without matplotlib.
    """
    return gpt_train.plot_losses(
        epochs_seen, examples_seen, train_values, val_values, path, label=label, seen="examples"
    )


def classify_review(
    text: str,
    model: nn.Module,
    tokenizer: SupportsEncode,
    device: torch.device | str,
    max_length: int | None = None,
    pad_token_id: int = 50256,
) -> str:
    """Return "spam" (class 1) or "not spam" (class 0) for ``text``, cut or padded to ``max_length`` tokens.

    None is the model's context length. The model is in eval mode afterwards. Raises ValueError if ``max_length`` lies
    outside 1..context length.
    """
    model.eval()
    config = getattr(model, "config", None)  # the book's own models have none, and always position embeddings
    context_length = config.context_length if config is not None else model.get_parameter("pos_emb.weight").shape[0]
    max_length = context_length if max_length is None else max_length
    if not 1 <= max_length <= context_length:
        raise ValueError(
            f"max_length must lie between 1 and the model's context length {context_length}, got {max_length}"
        )
    ids = encode_text(tokenizer, text)[:max_length]
    ids += [pad_token_id] * (max_length - len(ids))
    with torch.no_grad():
        logits = model(torch.tensor([ids], device=device))[:, -1, :]                      # (1, C)
    return "spam" if logits.argmax(dim=-1).item() == 1 else "not spam"
