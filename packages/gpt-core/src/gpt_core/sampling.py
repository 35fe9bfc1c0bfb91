"""How the next token is drawn from a model's logits (chapter 5).

Shapes: B batch, T tokens so far, V vocabulary.

Sources: top-k Fan et al. 2018; top-p (nucleus) Holtzman et al. 2020; min-p Nguyen et al. 2024; repetition
penalty Keskar et al. 2019 (CTRL), section 4.1; presence and frequency penalties as OpenAI's API defines them.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Beyond these a quotient of float32 logits could overflow, or a limit become infinite; there the softmax is
# one-hot or flat already, so clamping changes no draw.
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 1e-30, 1e30


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose the next token; a bad value is a ValueError when it is made.

    Applied in this order: penalties, top_k, temperature, top_p, min_p, then one draw from what is left.
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
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the next id of each row, int64 (B,), chosen from ``logits`` (B, V).

    ``ids`` (B, T) are the tokens so far, the first ``n_prompt`` of them the prompt: what the penalties look
    at. ``generator`` must live on the logits' device; None draws from torch's global one, as the book does.
    Raises ValueError if a row has no finite maximum (NaN or infinity: the model is damaged).
    """
    logits = logits.float()  # bfloat16 has 8 bits for a probability, and multinomial is slow in it
    if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        raise ValueError(
            "the model's logits are not finite: its weights are damaged or its training diverged"
        )
    if sampling.has_penalties and ids is not None:
        logits = _penalised(logits, sampling, ids, n_prompt)
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    return torch.multinomial(_probabilities(logits, sampling), num_samples=1, generator=generator).squeeze(-1)


def _penalised(logits: Tensor, sampling: Sampling, ids: Tensor, n_prompt: int) -> Tensor:
    """Return the logits (B, V) after the three penalties for what the tokens so far, ``ids`` (B, T), hold."""
    if sampling.repetition_penalty != 1:
        factor = sampling.repetition_penalty
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, True)  # (B, V)
        logits = torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)
    answer = ids[:, n_prompt:]
    counts = torch.zeros_like(logits).scatter_add_(1, answer, torch.ones_like(answer, dtype=logits.dtype))
    return logits - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)


def _probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities (B, V) that a draw uses: filtered, renormalised, float32."""
    if sampling.top_k is not None:
        # Before the temperature, as in the book: the same tokens, but no ties made by rounding the quotients.
        kth = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -math.inf)
    if sampling.temperature != 1:
        logits = logits / min(max(sampling.temperature, _LEAST_TEMPERATURE), _MOST_TEMPERATURE)
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        # What the more probable tokens add up to; exactly 0 for the first.
        before = ordered.cumsum(dim=-1) - ordered
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, order, before >= sampling.top_p)
        logits = logits.masked_fill(dropped, -math.inf)
        probabilities = logits.softmax(dim=-1)
    if sampling.min_p > 0:
        best = probabilities.amax(dim=-1, keepdim=True)
        logits = logits.masked_fill(probabilities < sampling.min_p * best, -math.inf)
        probabilities = logits.softmax(dim=-1)
    return probabilities


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
