"""Perplexity of a language model on texts: exp of the mean negative log-likelihood of a token (Jelinek et al. 1977).

Needs the extra ``model``. The interval is a block bootstrap (Künsch 1989) with blocks that do not overlap (Carlstein
1986): neighbouring tokens are easy or hard together, so runs of tokens are drawn, not tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpt_eval.bootstrap import check_resampling, measure_by_percentiles, resampled_means
from gpt_eval.figures import JSON, EvalReport, Figure
from gpt_eval.intervals import Measured, check_confidence, undefined
from gpt_eval.token_scores import check_ids, check_predicts_tokens, score_windows, sliding_windows

# Fewer values than this, drawn with replacement, say little about how they scatter.
_FEWEST_BLOCKS = 10
# What blocks are cut to at least, if the text is short: as many as give percentiles some grain.
_WANTED_BLOCKS = 20


@dataclass(frozen=True, kw_only=True)
class PerplexityReport:
    """How well a model predicts texts; ``perplexity`` says how each number is computed."""

    perplexity: Measured
    """exp of ``loss``; ``n`` is the number of tokens scored."""
    loss: Measured
    """Mean negative log-likelihood of a token, in nats."""
    bits_per_byte: Measured
    """The same in bits a byte of text, which compares across tokenizers; undefined unless ``n_bytes`` was given."""
    context_length: int
    stride: int
    block_length: int
    """Tokens of a block of the bootstrap, about."""
    n_blocks: int
    confidence: float
    n_resamples: int
    seed: int
    convention: str
    """What was scored and from how much context, as a sentence."""

    def report(self, facts: Mapping[str, JSON]) -> EvalReport:
        """Return the report that all evaluations share; the bootstrap's settings are added to ``facts``."""
        figures = [
            Figure("perplexity", self.perplexity, self.convention),
            Figure("loss (nats per token)", self.loss, self.convention),
            Figure("bits per byte", self.bits_per_byte, self.convention),
        ]
        bootstrap: dict[str, JSON] = {
            "seed": self.seed, "n_resamples": self.n_resamples, "n_blocks": self.n_blocks,
            "block_length": self.block_length,
        }  # fmt: skip
        return EvalReport("Perplexity", tuple(figures), {**facts, **bootstrap}, self.confidence)


def perplexity(
    model: nn.Module,
    ids: Sequence[int] | Sequence[Sequence[int]] | Tensor,
    *,
    context_length: int | None = None,
    stride: int | None = None,
    bos_id: int | None = None,
    n_bytes: int | None = None,
    batch_size: int = 8,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    block_length: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> PerplexityReport:
    """Return the perplexity of a text's token ids, or of several texts', each scored on its own and counted by tokens.

    Each token is scored exactly once, in windows of ``context_length`` tokens (None: the model's context). The first
    window scores all of its tokens, each later one ``stride`` more, from at least ``context_length - stride + 1``
    tokens before them; None is ``context_length``: windows that do not overlap, the cheapest and the highest number. A
    text's first token has nothing before it and is not scored, unless ``bos_id`` is given: then it is predicted from
    that. ``n_bytes`` are the bytes of text that the scored tokens stand for. Logits are float32 at least, their sum is
    float64, and ``batch_size`` changes only the memory.

    The interval comes from ``n_resamples`` bootstrap samples of blocks of about ``block_length`` tokens of one text.
    None is ``context_length``, since what depends on one stretch of context should stay together, but so few that
    there are 20 blocks. ``progress`` is called with the tokens scored so far and in all.

    ``model`` is any module that maps ids (B, T) to logits (B, T, V) and looks only backwards. Raises ValueError for ids
    outside the vocabulary, texts without a token to score, and counts out of range.
    """
    check_confidence(confidence)
    check_resampling(n_resamples, seed)
    check_predicts_tokens(model)
    context_length = _checked_context(model, context_length)
    stride = _checked_count("stride", stride, default=context_length, most=context_length)
    texts = [_sequence(text, bos_id, model) for text in _texts(ids)]
    lengths = [max(0, len(text) - 1) for text in texts]
    n_tokens = sum(lengths)
    if n_tokens < 1:
        way_out = "give a longer text" if bos_id is not None else "give a longer text, or bos_id to score the first one"
        raise ValueError(f"there is no token to score: a token needs one before it; {way_out}")
    wanted = max(1, min(context_length, n_tokens // _WANTED_BLOCKS))
    block_length = _checked_count("block_length", block_length, default=wanted)
    if n_bytes is not None:
        _checked_count("n_bytes", n_bytes)

    losses = np.empty(n_tokens)
    done = 0
    windows = (of for text in texts for of in sliding_windows(text, context_length=context_length, stride=stride))
    for scores in score_windows(model, windows, batch_size=batch_size):
        losses[done : done + len(scores.logprobs)] = -scores.logprobs
        done += len(scores.logprobs)
        if progress is not None:
            progress(done, n_tokens)

    blocks = _blocks(losses, lengths, block_length)                                 # (blocks, 2): sum, count
    nats = _measured_loss(losses, blocks, n_resamples=n_resamples, seed=seed, confidence=confidence)
    per_byte = undefined("the number of bytes was not given", n=n_tokens)
    if n_bytes is not None:
        tokens_per_byte = n_tokens / n_bytes
        per_byte = _transformed(nats, lambda value: value * tokens_per_byte / math.log(2))
    return PerplexityReport(
        perplexity=_transformed(nats, math.exp), loss=nats, bits_per_byte=per_byte, context_length=context_length,
        stride=stride, block_length=block_length, n_blocks=len(blocks), confidence=confidence, n_resamples=n_resamples,
        seed=seed, convention=_convention(len(texts), context_length, stride, bos_id),
    )


def _measured_loss(
    losses: NDArray[np.float64], blocks: NDArray[np.float64], *, n_resamples: int, seed: int, confidence: float
) -> Measured:
    """Return the mean loss, with the interval that drawing the blocks (blocks, 2) of sums and counts gives."""
    loss = math.fsum(losses) / len(losses)
    if len(blocks) < _FEWEST_BLOCKS:
        reason = f"no interval: {_FEWEST_BLOCKS} blocks are needed, got {len(blocks)}"
        return Measured(value=loss, low=None, high=None, n=len(losses), method=reason)
    sums, counts = resampled_means(blocks, n_resamples=n_resamples, seed=seed).T
    measured = measure_by_percentiles(loss, sums / counts, n=len(losses), confidence=confidence)
    if measured.low is None:
        return measured
    return replace(measured, method=f"{measured.method} over {len(blocks)} blocks of neighbouring tokens")


def _transformed(measured: Measured, increasing: Callable[[float], float]) -> Measured:
    """Return the number and both ends through a function that grows with its argument."""
    assert measured.value is not None
    try:
        ends = [None if end is None else increasing(end) for end in (measured.value, measured.low, measured.high)]
    except OverflowError:
        return undefined(f"the loss of {measured.value:.4g} nats is too large for an exponential", n=measured.n)
    return Measured(value=ends[0], low=ends[1], high=ends[2], n=measured.n, method=measured.method)


def _blocks(losses: NDArray[np.float64], lengths: Sequence[int], block_length: int) -> NDArray[np.float64]:
    """Return the sum and the count (blocks, 2) of the losses of blocks, each within one text and about as long."""
    rows = []
    for text in np.split(losses, np.cumsum(lengths)[:-1]):
        for block in np.array_split(text, max(1, round(len(text) / block_length))):
            if len(block):
                rows.append((math.fsum(block), len(block)))
    return np.array(rows, dtype=np.float64)


def _convention(n_texts: int, context_length: int, stride: int, bos_id: int | None) -> str:
    first = "the first one not counted" if bos_id is None else f"the first one predicted from token {bos_id}"
    overlap = (
        "that do not overlap" if stride == context_length
        else f"that move by {stride}, so that past the first window a token sees {context_length - stride + 1} or more"
    )  # fmt: skip
    several = "" if n_texts == 1 else f"; each of {n_texts} texts on its own, weighted by its tokens"
    return f"every token scored once, {first}, in windows of {context_length} tokens {overlap}{several}"


def _texts(ids: Sequence[int] | Sequence[Sequence[int]] | Tensor) -> list[Sequence[int] | Tensor]:
    is_one = isinstance(ids, Tensor) or not len(ids) or not hasattr(ids[0], "__len__")
    return cast("list[Sequence[int] | Tensor]", [ids] if is_one else list(ids))


def _sequence(ids: Sequence[int] | Tensor, bos_id: int | None, model: nn.Module) -> Tensor:
    """Return the text's ids, ``bos_id`` before them, as int64 (T,), checked."""
    text = torch.as_tensor(ids) if len(ids) else torch.empty(0, dtype=torch.int64)
    if text.ndim != 1 or text.is_floating_point() or text.is_complex() or text.dtype == torch.bool:
        raise ValueError(
            f"ids must be whole numbers, one after the other, got {text.dtype} of shape {tuple(text.shape)}; give one "
            "text's ids, or a list with each text's"
        )
    start = [] if bos_id is None else [bos_id]
    text = torch.cat([torch.tensor(start, dtype=torch.int64), text.cpu().long()])
    if len(text):
        check_ids(text, model)
    return text


def _checked_context(model: nn.Module, context_length: int | None) -> int:
    limit = getattr(getattr(model, "config", None), "context_length", None)
    if context_length is None and limit is None:
        raise ValueError(f"a {type(model).__name__} does not name its context; give context_length")
    return _checked_count("context_length", context_length, default=limit, most=limit)


def _checked_count(name: str, value: int | None, *, default: int | None = None, most: int | None = None) -> int:
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        rule = "of at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} must be a whole number {rule}, got {value!r}; None takes the default")
    return value
