"""How probable a language model finds tokens, each given those before it. Needs the extra ``model``.

Shapes: B batch, T inputs of the longest window, D embedding width, V vocabulary, R scored tokens of a batch, C a chunk.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpt_core import GPTModel

# 2**24 logits, 64 MB in float32: 333 rows of GPT-2's vocabulary, enough for the products to run at full speed.
_CHUNK_LOGITS = 2**24


class Window(NamedTuple):
    """Tokens that the model sees at once, the last of which it only has to predict."""

    ids: Tensor
    """int64, at least two; the model sees all but the last."""
    n_scored: int
    """How many at the end are scored: 1 to one less than there are."""


class TokenScores(NamedTuple):
    """What a model thinks of a window's scored tokens."""

    logprobs: NDArray[np.float64]
    """Natural logs of their probabilities."""
    are_greedy: NDArray[np.bool_]
    """Whether each is the model's most probable token there."""


def sliding_windows(ids: Tensor, *, context_length: int, stride: int) -> Iterator[Window]:
    """Yield windows over ``ids`` that score each token but the first exactly once, in order.

    The first scores up to ``context_length`` tokens, each later one the next ``stride`` (the last: what is left). A
    later window shows the model ``context_length`` tokens, however few it scores: each of its tokens is predicted from
    at least ``context_length - stride + 1``.
    """
    scored = 1
    while scored < len(ids):
        end = min(len(ids), scored + (context_length if scored == 1 else stride))
        yield Window(ids[max(0, end - context_length - 1) : end], end - scored)
        scored = end


def score_windows(model: nn.Module, windows: Iterable[Window], *, batch_size: int = 8) -> Iterator[TokenScores]:
    """Yield the scores of each window, in order, computed in eval mode and in float32 at least.

    Of a ``GPTModel`` ``batch_size`` windows run together, padded on the right, and their logits are never held all at
    once; windows of about equal length next to each other waste least. Any other module that maps ids (1, T) to logits
    (1, T, V) gets a window at a time. Raises ValueError for a model that classifies, for an id outside the vocabulary
    and for logits that are not finite.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}; 8 is usual")
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    check_predicts_tokens(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    remaining = iter(windows)
    while batch := list(islice(remaining, batch_size if isinstance(model, GPTModel) else 1)):
        with _eval_mode(model), torch.inference_mode():
            scores = _score(model, batch, device)
        yield from scores


def check_predicts_tokens(model: nn.Module) -> None:
    """Raise ValueError if the model's config has ``n_classes``."""
    n_classes = getattr(getattr(model, "config", None), "n_classes", None)
    if n_classes is not None:
        raise ValueError(f"the model classifies (n_classes={n_classes}) and predicts no token; give a language model")


def check_ids(ids: Tensor, model: nn.Module) -> None:
    """Raise ValueError if an id lies outside the vocabulary that the model's config names."""
    vocab_size = getattr(getattr(model, "config", None), "vocab_size", None)
    least, most = (int(extreme) for extreme in ids.aminmax())
    if least < 0 or (vocab_size is not None and most >= vocab_size):
        raise ValueError(
            f"token ids must lie in 0..{'' if vocab_size is None else vocab_size - 1}, got {least}..{most}; encode "
            "with the tokenizer that the model was trained with"
        )


def _score(model: nn.Module, batch: list[Window], device: torch.device) -> list[TokenScores]:
    targets = torch.cat([window.ids[-window.n_scored :] for window in batch])       # (R,)
    for window in batch:
        check_ids(window.ids, model)
    logprobs, greedy = [], []
    start = 0
    for logits in _logits(model, batch, device):                                    # (C, V)
        expected = targets[start : start + len(logits), None].to(device)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        best, best_ids = logits.max(dim=-1, keepdim=True)
        if not torch.isfinite(best).all():
            raise ValueError(
                "the model's logits are not finite: its weights are damaged, its training diverged or its dtype is too "
                "small; check the checkpoint or load it in float32"
            )
        logprobs.append((logits.gather(1, expected) - logits.logsumexp(dim=-1, keepdim=True))[:, 0].double().cpu())
        greedy.append((best_ids == expected)[:, 0].cpu())
        start += len(logits)
    counts = [window.n_scored for window in batch]
    return [
        TokenScores(of.numpy(), best.numpy())
        for of, best in zip(torch.cat(logprobs).split(counts), torch.cat(greedy).split(counts), strict=True)
    ]


def _logits(model: nn.Module, batch: list[Window], device: torch.device) -> Iterator[Tensor]:
    """Yield the logits (C, V) of the batch's scored tokens, a chunk at a time."""
    if not isinstance(model, GPTModel):
        for ids, n_scored in batch:
            yield model(ids[None, :-1].to(device))[0, -n_scored:]
        return
    lengths = [len(window.ids) - 1 for window in batch]
    inputs = torch.zeros(len(batch), max(lengths), dtype=torch.int64, device=device)  # no token sees the padding
    for row, window, length in zip(inputs, batch, lengths, strict=True):
        row[:length] = window.ids[:-1]
    features = model.features(inputs)                                               # (B, T, D)
    rows = [
        of[length - window.n_scored : length]
        for of, window, length in zip(features, batch, lengths, strict=True)
    ]
    for chunk in torch.cat(rows).split(max(1, _CHUNK_LOGITS // model.config.vocab_size)):
        yield model.out_head(chunk)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off within the block; afterwards every submodule has the mode it had before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
