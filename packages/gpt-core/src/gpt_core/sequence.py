"""One sequence that the engine generates, and what it tells of each token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpt_core.sampling import Sampling, next_token, token_logprobs


@dataclass(frozen=True)
class GeneratedToken:
    """One token that a model chose."""

    id: int
    """The token's id."""

    logprob: float
    """Natural log of its probability under the model itself: before temperature, filters and penalties."""

    finish: Literal["stop", "length"] | None = None
    """None: more will come. "stop": this is a stop token. "length": max_new_tokens or the context is reached."""

    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The most probable ids and their log-probabilities, the best first, as many as were asked for."""


@dataclass(frozen=True)
class LogitFacts:
    """Of each row of logits the largest, its id, and the log of the sum of all exponentials, in one transfer."""

    best: list[float]
    best_ids: list[int]
    normalizers: list[float]

    @classmethod
    def of(cls, logits: Tensor) -> LogitFacts:
        """Return the facts of logits (R, V)."""
        with torch.inference_mode():
            best, ids = logits.max(dim=-1)
            return cls(best.tolist(), ids.tolist(), logits.logsumexp(dim=-1).tolist())

    def are_finite(self, rows: range) -> bool:
        """Whether each of these rows has a finite maximum: with NaN or infinity in it, it has none."""
        return all(math.isfinite(self.best[row]) for row in rows)


@dataclass
class RunningSequence:
    """A sequence's tokens and settings, and how much of it is computed."""

    key: int
    ids: list[int]
    n_prompt: int
    max_new_tokens: int
    min_new_tokens: int
    sampling: Sampling
    stop_ids: frozenset[int]
    n_top: int
    generator: torch.Generator | None = None
    """Its own random numbers, from when it runs; None without a seed."""
    window_start: int = 0
    """Place in ``ids`` of the token at position 0: above 0 once the window slides."""
    n_cached: int = 0
    """Tokens from ``window_start`` on that the cache holds."""

    @property
    def n_new(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self.n_prompt

    def forbidden(self, n_more: int) -> tuple[int, ...]:
        """Ids that cannot be chosen when ``n_more`` tokens have been added."""
        return tuple(self.stop_ids) if self.n_new + n_more < self.min_new_tokens else ()

    def takes_the_best(self, n_more: int) -> bool:
        """Whether the choice after ``n_more`` more tokens is the argmax of the model's own logits."""
        sampling = self.sampling
        changes_logits = sampling.has_penalties or sampling.logit_bias or self.forbidden(n_more)
        return sampling.temperature == 0 and not changes_logits

    def choose(
        self, logits: Tensor, facts: LogitFacts, *, rows: range, drafts: list[int], full_at: int | None
    ) -> list[GeneratedToken]:
        """Return the next tokens: one, and one more for each of ``drafts`` that is the token chosen.

        ``logits`` (R, V) and ``facts`` are those of the whole pass, ``rows`` this sequence's among them. ``full_at`` is
        the length at which the answer ends. The sequence itself is not changed, its generator is.
        """
        tokens: list[GeneratedToken] = []
        for n, row in enumerate(rows):
            if self.takes_the_best(n):
                chosen = facts.best_ids[row]
            else:
                chosen = self._draw(logits[row : row + 1], [token.id for token in tokens])
            top: tuple[tuple[int, float], ...] = ()
            if self.n_top:
                logprob, top = token_logprobs(logits[row], chosen, self.n_top)
            else:
                logprob = float(logits[row, chosen]) - facts.normalizers[row]
            finish: Literal["stop", "length"] | None = None
            if chosen in self.stop_ids:
                finish = "stop"
            elif self.n_new + n + 1 == self.max_new_tokens or len(self.ids) + n + 1 == full_at:
                finish = "length"
            tokens.append(GeneratedToken(chosen, logprob, finish, top))
            if finish is not None or n >= len(drafts) or drafts[n] != chosen:
                break
        return tokens

    def _draw(self, logits: Tensor, new: list[int]) -> int:
        """Return the id chosen from ``logits`` (1, V) after the tokens so far and ``new``."""
        ids = torch.tensor([self.ids + new], device=logits.device) if self.sampling.has_penalties else None
        with torch.inference_mode():
            chosen = next_token(
                logits, sampling=self.sampling, ids=ids, n_prompt=self.n_prompt, forbidden=self.forbidden(len(new)),
                generator=self.generator,
            )
        return int(chosen[0])
