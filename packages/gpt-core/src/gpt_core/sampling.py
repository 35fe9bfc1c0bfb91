"""How the next token is drawn from a model's logits (chapter 5).

Shapes: B batch, T tokens so far, V vocabulary, K the most probable ones that are looked at, A tokens of the answer.

Sources: top-k Fan et al. 2018; top-p (nucleus) Holtzman et al. 2020; min-p Nguyen et al. 2024; repetition
penalty Keskar et al. 2019 (CTRL), section 4.1; presence and frequency penalties and logit bias as OpenAI's API
defines them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A divisor must be neither 0 nor infinite in float32. A smaller or greater one makes no other draw of logits
# that a model gives: at either limit the softmax is one-hot or flat already.
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 1e-30, 1e30

_MOST_ALTERNATIVES = 20


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose the next token; a bad value is a ValueError when it is made.

    Applied in this order: logit_bias, repetition_penalty, frequency_penalty and presence_penalty, top_k,
    temperature, top_p, min_p, then one draw from what is left. transformers divides by the temperature before
    its top_k; the tokens kept are the same, because a division changes no order.
    """

    temperature: float = 1.0
    """Divides the logits: 0 always takes the most probable token, above 1 evens out the probabilities."""

    top_k: int | None = None
    """Keep only the k most probable tokens (and ties with the k-th)."""

    top_p: float = 1.0
    """Keep the fewest tokens whose probabilities add up to at least this: above 0, at most 1 (all)."""

    min_p: float = 0.0
    """Keep tokens at least this many times as probable as the best one: 0 (all) to 1 (the best)."""

    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt and of the answer less likely, below 1 more: 0.01 to 100."""

    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that the answer holds already: -2 to 2."""

    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once per time that the answer holds it already: -2 to 2."""

    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    """Added to the logits of these ids: -100 to 100, where -100 bans a token and 100 forces it, as good as surely.

    Kept as pairs sorted by id, so that it can be hashed and a later change of the mapping does not reach it."""

    seed: int | None = None
    """Seed of this generation's own random numbers; without one, torch's global generator is used."""

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, "a finite number of at least 0", least=0.0)
        _check_number("top_p", self.top_p, "a number above 0 and at most 1", above=0.0, most=1.0)
        _check_number("min_p", self.min_p, "a number from 0 to 1", least=0.0, most=1.0)
        _check_number(
            "repetition_penalty", self.repetition_penalty, "a number from 0.01 to 100", least=0.01, most=100.0
        )
        for name in ("presence_penalty", "frequency_penalty"):
            _check_number(name, getattr(self, name), "a number from -2 to 2", least=-2.0, most=2.0)
        for name, least, most in (("top_k", 1, None), ("seed", 0, 2**63 - 1)):
            value = getattr(self, name)
            if value is None:
                continue
            if not _is_int(value) or value < least or (most is not None and value > most):
                limits = f"of at least {least}" if most is None else f"from {least} to {most}"
                raise ValueError(f"{name} must be None or a whole number {limits}, got {value!r}")
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    @classmethod
    def greedy(cls) -> Sampling:
        """Return the sampling that always takes the most probable token (temperature 0)."""
        return cls(temperature=0.0)

    @property
    def has_penalties(self) -> bool:
        """Whether any of the three penalties changes a logit."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def next_token(
    logits: Tensor,
    *,
    sampling: Sampling,
    ids: Tensor | None = None,
    n_prompt: int = 0,
    forbidden: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the next id of each row, int64 (B,), chosen from ``logits`` (B, V).

    ``ids`` (B, T) are the tokens so far, the first ``n_prompt`` of them the prompt: what the penalties look
    at. ``forbidden`` ids are never chosen. A logit of -inf forbids its token, too: no bias brings it back.
    ``generator`` must live on the logits' device; None draws from torch's global one, as the book does.

    Raises ValueError if a row has no finite maximum (NaN or infinity: the model is damaged), if ``forbidden``
    leaves a row nothing to choose, and if it or ``sampling.logit_bias`` holds an id outside the vocabulary.
    """
    logits = logits.float()  # bfloat16 has 8 bits for a probability, and multinomial is slow in it
    _check_finite(logits)
    if sampling.logit_bias:
        bias = dict(sampling.logit_bias)
        index = _vocabulary_index("logit_bias", bias, logits)
        logits = logits.index_add(1, index, logits.new_tensor(list(bias.values())).expand(len(logits), -1))
    if sampling.has_penalties and ids is not None:
        logits = _penalised(logits, sampling, ids, n_prompt)
    if forbidden:
        logits = logits.index_fill(1, _vocabulary_index("forbidden", forbidden, logits), -math.inf)
        if bool((logits.amax(dim=-1) == -math.inf).any()):
            raise ValueError(
                f"nothing is left to choose: the {len(set(forbidden))} forbidden ids are all of those in the "
                f"vocabulary of {logits.shape[-1]} with a finite logit; forbid fewer"
            )
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    # Over the whole vocabulary, although few tokens may be left: it takes V random numbers whatever is filtered,
    # and so the same seed gives the book's draws. They are most of a draw's time (1.0 of 1.1 ms at V = 50,257).
    return torch.multinomial(_probabilities(logits, sampling), num_samples=1, generator=generator).squeeze(-1)


def token_logprobs(logits: Tensor, token: int, n_top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the natural log of ``token``'s probability, and (id, log-probability) of the ``n_top`` best ids.

    Of the model itself, ``logits`` (V,) in float32: before bias, penalties, temperature and filters. The best
    comes first, and of equal logits the smaller id, so the first is what greedy takes. A log-probability of
    -inf is no alternative, so there may be fewer than ``n_top``. Raises ValueError for an ``n_top`` that
    ``check_n_top`` refuses, for a ``token`` outside the vocabulary, and for logits without a finite maximum.
    """
    check_n_top(n_top)
    V = len(logits)
    if not _is_int(token) or not 0 <= token < V:
        raise ValueError(f"token must be an id of the vocabulary, 0 to {V - 1}, got {token!r}")
    logits = logits.float()
    _check_finite(logits)
    logprobs = logits.log_softmax(dim=-1)
    if n_top == 0:
        return float(logprobs[token]), ()
    least = logits.topk(min(n_top, V)).values[-1]
    # topk leaves the order of equals open; every equal of the last one is sorted with the others, by id.
    found = ((logits >= least) & (logprobs > -math.inf)).nonzero().squeeze(-1)
    best = found[logits[found].sort(descending=True, stable=True).indices[:n_top]]
    return float(logprobs[token]), tuple(zip(best.tolist(), logprobs[best].tolist(), strict=True))


def check_n_top(n_top: int) -> None:
    """Raise ValueError unless ``n_top``, a number of alternatives, is a whole number from 0 to 20."""
    if not _is_int(n_top) or not 0 <= n_top <= _MOST_ALTERNATIVES:
        raise ValueError(f"top_logprobs must be a whole number from 0 to {_MOST_ALTERNATIVES}, got {n_top!r}")


def _penalised(logits: Tensor, sampling: Sampling, ids: Tensor, n_prompt: int) -> Tensor:
    """Return the logits (B, V) after the three penalties for what the tokens so far, ``ids`` (B, T), hold.

    Only the logits of those tokens are computed; one that occurs twice is written twice, with the same value.
    """
    if sampling.repetition_penalty != 1:
        factor, most = sampling.repetition_penalty, torch.finfo(logits.dtype).max
        seen = logits.gather(1, ids)  # (B, T)
        changed = torch.where(seen > 0, seen / factor, seen * factor).clamp(-most, most)
        logits = logits.scatter(1, ids, changed.masked_fill(seen == -math.inf, -math.inf))
    if sampling.presence_penalty != 0 or sampling.frequency_penalty != 0:
        answer = ids[:, n_prompt:]  # (B, A)
        ones = torch.ones_like(answer, dtype=logits.dtype)
        counts = torch.zeros_like(logits).scatter_add_(1, answer, ones).gather(1, answer)  # (B, A)
        changed = logits.gather(1, answer) - sampling.frequency_penalty * counts - sampling.presence_penalty
        logits = logits.scatter(1, answer, changed)
    return logits


def _probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities (B, V) that a draw uses: filtered, renormalised, float32."""
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        # Before the temperature, as in the book: the same tokens, but no ties made by rounding the quotients.
        kth = logits.topk(sampling.top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -math.inf)
    if sampling.temperature != 1:
        logits = _divided(logits, min(max(sampling.temperature, _LEAST_TEMPERATURE), _MOST_TEMPERATURE))
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        logits = logits.masked_fill(_beyond_top_p(probabilities, sampling.top_p), -math.inf)
        probabilities = logits.softmax(dim=-1)
    if sampling.min_p > 0:
        best = probabilities.amax(dim=-1, keepdim=True)
        logits = logits.masked_fill(probabilities < sampling.min_p * best, -math.inf)
        probabilities = logits.softmax(dim=-1)
    return probabilities


def _divided(logits: Tensor, temperature: float) -> Tensor:
    """Return the logits (B, V) over the temperature; a row whose best quotient overflows has its best at 0."""
    quotients = logits / temperature
    overflows = quotients.amax(dim=-1, keepdim=True).isinf()  # (B, 1)
    if bool(overflows.any()):
        best = logits.amax(dim=-1, keepdim=True)
        quotients = torch.where(overflows, (logits - best) / temperature, quotients)
    return quotients


def _beyond_top_p(probabilities: Tensor, top_p: float) -> Tensor:
    """Return which tokens (B, V) are not among the fewest, the best first, that add up to at least ``top_p``.

    Of tokens that are equally probable the smaller ids are kept.
    """
    V = probabilities.shape[-1]
    K = min(256, V)
    while True:
        # A language model's nucleus is small as a rule: finding the best 256 of 50,257 takes 0.2 ms, the best 2,048
        # 0.4, sorting all 4. From an eighth of the vocabulary on, sorting all at once is quicker than trying more.
        ordered = probabilities.topk(K).values  # (B, K)
        # What the more probable tokens add up to; exactly 0 for the first, and it never falls.
        before = ordered.cumsum(dim=-1) - ordered
        if K == V or bool(((before[:, -1] >= top_p) | (ordered[:, -1] == 0)).all()):
            break
        K = 8 * K if 64 * K <= V else V
    # At least one: a top_p that is 0 in float32 would keep none.
    n_kept = (before < top_p).sum(dim=-1, keepdim=True).clamp(min=1)  # (B, 1)
    least = ordered.gather(1, n_kept - 1)
    beyond = probabilities < least
    following = ordered.gather(1, n_kept.clamp(max=K - 1))
    if bool(((following == least) & (n_kept < K)).any()):
        n_equal = n_kept - (ordered > least).sum(dim=-1, keepdim=True)  # as many of the equals are kept
        equal = probabilities == least
        beyond |= equal & (equal.cumsum(dim=-1) > n_equal)
    return beyond


def _vocabulary_index(name: str, ids: Collection[int], logits: Tensor) -> Tensor:
    """Return the ids as an index into the last axis of ``logits`` (B, V), or raise ValueError."""
    V = logits.shape[-1]
    for i in ids:
        if not _is_int(i) or not 0 <= i < V:
            raise ValueError(f"{name} holds the id {i!r}, but the model's vocabulary has the ids 0 to {V - 1}")
    return torch.tensor(list(ids), dtype=torch.int64, device=logits.device)


def _check_finite(logits: Tensor) -> None:
    if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        raise ValueError(
            "the model's logits are not finite: its weights are damaged or its training diverged"
        )


def _checked_bias(bias: Any) -> tuple[tuple[int, float], ...]:
    """Return the pairs of a mapping or tuple, sorted by id, or raise ValueError."""
    rule = "logit_bias must map whole numbers of at least 0 to numbers from -100 to 100"
    try:
        pairs = dict(bias)
    except (TypeError, ValueError):
        raise ValueError(f"{rule}, got {bias!r}") from None
    for i, value in pairs.items():
        if not _is_int(i) or i < 0:
            raise ValueError(f"{rule}, got the id {i!r}")
        _check_number(f"logit_bias of id {i}", value, "a number from -100 to 100", least=-100.0, most=100.0)
    return tuple((i, float(pairs[i])) for i in sorted(pairs))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_number(
    name: str,
    value: Any,
    rule: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Raise ValueError unless ``value`` is finite, above ``above`` and from ``least`` to ``most``."""
    is_number = isinstance(value, float) or _is_int(value)
    # Compared with the greatest float, because math.isfinite raises OverflowError for a greater int.
    is_finite = is_number and abs(value) <= sys.float_info.max
    if not is_finite or not (above < value and least <= value <= most):
        raise ValueError(f"{name} must be {rule}, got {value!r}")
