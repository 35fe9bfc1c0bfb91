"""One sequence that the engine generates, and what it tells of each token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from gpt_core.sampling import Sampling


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
    generator: torch.Generator | None
    window_start: int = 0
    """Place in ``ids`` of the token at position 0: above 0 once the window slides."""
    n_cached: int = 0
    """Tokens from ``window_start`` on that the cache holds."""
    drafts: list[int] = field(default_factory=list)

    @property
    def n_new(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self.n_prompt

    @property
    def forbidden(self) -> tuple[int, ...]:
        """Ids that cannot be chosen next."""
        return tuple(self.stop_ids) if self.n_new < self.min_new_tokens else ()

    @property
    def takes_the_best(self) -> bool:
        """Whether the choice is the argmax of the model's own logits."""
        return self.sampling == Sampling.greedy() and not self.forbidden
