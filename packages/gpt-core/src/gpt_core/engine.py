"""The generation engine: sequences join, run together and leave, each with the answer it would have alone.

``Engine.step`` computes the next tokens of all sequences in one pass (Yu et al. 2022, "iteration-level scheduling"):
pieces of the prompts that are still to be read, and one token, or a token and its drafts, of the others. A sequence has
its own cache slot, settings and random numbers, so neither its neighbours nor the pieces change its answer.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gpt_core.backends import ModuleBackend, PackedBackend
from gpt_core.checks import check_count, checked_ids
from gpt_core.inference import Chunk, InferenceModel
from gpt_core.prepare import is_plain, language_model
from gpt_core.sampling import Sampling, check_n_top
from gpt_core.sequence import GeneratedToken, LogitFacts, RunningSequence
from gpt_core.speculate import Drafter

PastContext = Literal["slide", "stop", "error"]
_PAST_CONTEXT = ("slide", "stop", "error")
# Prompt tokens read in one step: enough rows for the products to run at full speed, while the memory for
# activations stays small and no running sequence waits for a whole prompt.
_PIECE = 512
# Keys differ between engines too, so that a drafter may serve several.
_KEYS = itertools.count()

_Work = tuple[RunningSequence, Chunk, list[int]]  # a sequence, its next tokens, and the drafts at their end


class Engine:
    """Generates for many sequences at once: ``add`` some, call ``step`` until ``is_idle``.

    ``max_batch`` sequences run together, others wait in line. ``context_length`` caps the tokens that the model looks
    at (None: the model's own limit); the cache's memory grows with the longest sequence, up to that.

    ``past_context`` says what happens to a sequence longer than that: "slide" lets the model see the last ones only,
    recomputed for each token because positions are absolute; "stop" ends the answer where the context is full; "error"
    refuses a prompt that leaves no room for its ``max_new_tokens``.

    ``capacity`` is the most tokens, prompt and answer, that any sequence will have (None: no limit): the cache needs no
    room for more.

    ``use_cache=False`` computes the whole sequence for each token; the ids are the same. ``drafter`` guesses tokens
    that the model then confirms several at a time; the ids are the same (see ``gpt_core.speculate``).

    Any module that maps ids (B, T) to logits (B, T, V) will do. A plain ``GPTModel`` is computed by ``InferenceModel``,
    from its own weights, which are looked up anew when they change (a hook, a replaced layer and what is written
    through ``.data`` need a new engine); anything else through its modules, in eval mode. Raises ValueError for a
    model that classifies.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_batch: int = 8,
        context_length: int | None = None,
        past_context: PastContext = "slide",
        use_cache: bool = True,
        drafter: Drafter | None = None,
        capacity: int | None = None,
    ) -> None:
        check_count("max_batch", max_batch, least=1)
        if past_context not in _PAST_CONTEXT:
            raise ValueError(f"past_context must be one of {', '.join(_PAST_CONTEXT)}, got {past_context!r}")
        limit: int | None = getattr(getattr(model, "config", None), "context_length", None)
        if context_length is not None:
            check_count("context_length", context_length, least=1)
            limit = context_length if limit is None else min(limit, context_length)
        if capacity is not None:
            check_count("capacity", capacity, least=1)
        self._limit, self._capacity = limit, capacity
        self._max_batch, self._past_context, self._drafter = max_batch, past_context, drafter
        self._full_at = limit if past_context == "stop" else None
        plain = language_model(model)
        self._backend: PackedBackend | ModuleBackend
        if isinstance(plain, InferenceModel) or is_plain(plain):
            assert limit is not None  # these models have a context_length
            model = plain
            self._backend = PackedBackend(plain, n_slots=max_batch, capacity=min(limit, capacity or limit))
        else:
            self._backend = ModuleBackend(model, use_cache=use_cache)
        self._model = model
        self._use_cache = use_cache and self._backend.has_cache
        self._piece = _PIECE if self._backend.has_cache else None
        self._waiting: deque[RunningSequence] = deque()
        self._running: list[RunningSequence] = []  # the place in this list is the slot
        self._turn = 0

    @property
    def is_idle(self) -> bool:
        """Whether no sequence is running or waiting."""
        return not self._running and not self._waiting

    def add(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        sampling: Sampling = Sampling.greedy(),  # noqa: B008 - frozen
        stop_ids: Iterable[int] = (),
        top_logprobs: int = 0,
    ) -> int:
        """Put a sequence in line and return its key; nothing is computed yet.

        ``stop_ids`` end the answer, but not before ``min_new_tokens``: until then they cannot be chosen. Without
        ``sampling.seed`` the draws come from torch's global generator. ``top_logprobs`` alternatives (0 to 20) are
        reported with each token.

        Raises ValueError for an empty or, by ``past_context``, too long prompt, an id outside the vocabulary, and a
        count out of range.
        """
        check_count("max_new_tokens", max_new_tokens, least=1)
        check_count("min_new_tokens", min_new_tokens, least=0)
        if min_new_tokens > max_new_tokens:
            raise ValueError(f"min_new_tokens must be at most max_new_tokens ({max_new_tokens}), got {min_new_tokens}")
        check_n_top(top_logprobs)
        stops = frozenset(checked_ids(self._model, stop_ids, "stop_ids"))
        if min_new_tokens and len(stops) == getattr(getattr(self._model, "config", None), "vocab_size", None):
            raise ValueError("stop_ids holds every id of the vocabulary, which leaves none for min_new_tokens")
        checked_ids(self._model, dict(sampling.logit_bias), "logit_bias")
        ids = checked_ids(self._model, prompt_ids, "prompt_ids")
        if not ids:
            raise ValueError("prompt_ids is empty: give at least one token, such as the tokenizer's eot_token")
        self._check_length(len(ids), max_new_tokens)
        sequence = RunningSequence(
            next(_KEYS), ids, len(ids), max_new_tokens, min_new_tokens, sampling, stops, top_logprobs
        )
        self._slide(sequence)
        self._waiting.append(sequence)
        return sequence.key

    def cancel(self, key: int) -> None:
        """Let a sequence leave; a key that is not running or waiting (any more) is ignored."""
        self._waiting = deque(sequence for sequence in self._waiting if sequence.key != key)
        self._remove({key})

    def step(self) -> list[tuple[int, GeneratedToken]]:
        """Compute one pass and return the new tokens with their sequences' keys, in the order of each answer.

        A sequence whose prompt is still being read has none; one whose drafts were confirmed has several; one whose
        token has a ``finish`` has left. If it raises, no sequence has moved, and the next call computes the same pass.
        Raises ValueError if logits are not finite, naming the keys of the sequences: ``cancel`` them, or mend the
        model, to go on.
        """
        while self._waiting and len(self._running) < self._max_batch:
            sequence = self._waiting.popleft()
            if sequence.sampling.seed is not None:
                sequence.generator = torch.Generator(device=self._backend.device).manual_seed(sequence.sampling.seed)
            self._running.append(sequence)
        if self._backend.refresh():
            for sequence in self._running:
                sequence.n_cached = 0
        work = self._plan()
        if not work:
            return []
        logits = self._backend.logits([chunk for _, chunk, _ in work])              # (rows, V)
        chosen = self._choose(work, logits)
        results: list[tuple[int, GeneratedToken]] = []
        for (sequence, chunk, drafts), tokens in zip(work, chosen, strict=True):
            n_confirmed = max(len(tokens) - 1, 0)
            sequence.n_cached = chunk.start + len(chunk.ids) - len(drafts) + n_confirmed
            sequence.ids += [token.id for token in tokens]
            if tokens:
                self._slide(sequence)
            results += [(sequence.key, token) for token in tokens]
        self._remove({key for key, token in results if token.finish is not None})
        self._turn += 1
        return results

    def _plan(self) -> list[_Work]:
        """Return what the next pass computes: every running sequence's tokens, of long prompts a piece."""
        room = self._piece
        taken: dict[int, list[int]] = {}
        # Each pass begins with another sequence, so that one that always fills the room keeps no other waiting.
        n = len(self._running)
        for slot in [(self._turn + i) % n for i in range(n)]:
            sequence = self._running[slot]
            pending = sequence.ids[sequence.window_start + sequence.n_cached :]
            if room is not None and len(pending) > 1:
                pending = pending[:room]
                room -= len(pending)
            if pending:
                taken[slot] = pending
        work = []
        for slot in sorted(taken):
            sequence, ids = self._running[slot], taken[slot]
            is_last = sequence.window_start + sequence.n_cached + len(ids) == len(sequence.ids)
            drafts = self._drafts(sequence) if is_last else []
            n_logits = 1 + len(drafts) if is_last else 0
            work.append((sequence, Chunk(slot, sequence.n_cached, ids + drafts, n_logits), drafts))
        return work

    def _drafts(self, sequence: RunningSequence) -> list[int]:
        if self._drafter is None or not self._use_cache:
            return []
        room = sequence.max_new_tokens - sequence.n_new - 1
        if self._limit is not None:
            room = min(room, self._limit - (len(sequence.ids) - sequence.window_start))
        if room < 1:
            return []
        drafts = list(self._drafter.propose(sequence.key, sequence.ids))[:room]
        vocab_size = getattr(getattr(self._model, "config", None), "vocab_size", math.inf)
        unknown = next((i for i, token in enumerate(drafts) if not 0 <= token < vocab_size), len(drafts))
        return drafts[:unknown]

    def _choose(self, work: list[_Work], logits: Tensor) -> list[list[GeneratedToken]]:
        """Return each sequence's new tokens, given the logits (rows, V) of the whole pass; no sequence is changed."""
        facts = LogitFacts.of(logits)
        first, spans = 0, []
        for _, chunk, _ in work:
            spans.append(range(first, first + chunk.n_logits))
            first += chunk.n_logits
        damaged = [item for item, span in zip(work, spans, strict=True) if not facts.are_finite(span)]
        if damaged:
            for sequence, chunk, _ in damaged:
                sequence.n_cached = 0
                self._backend.clear(chunk.slot)
            keys = ", ".join(str(sequence.key) for sequence, _, _ in damaged)
            raise ValueError(
                f"the model's logits are not finite (sequence {keys}): its weights are damaged, its training diverged, "
                "or its dtype is too small; mend the model or cancel the sequence"
            )
        generators = [sequence.generator for sequence, _, _ in work if sequence.generator is not None]
        states = [generator.get_state() for generator in generators]
        try:
            return [
                sequence.choose(logits, facts, rows=span, drafts=drafts, full_at=self._full_at)
                for (sequence, _, drafts), span in zip(work, spans, strict=True)
            ]
        except BaseException:  # Ctrl-C too: the pass is computed again, and must draw the same numbers
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            raise

    def _slide(self, sequence: RunningSequence) -> None:
        """Move the window to the last tokens where they are more than the context, and forget what is not cached."""
        excess = 0 if self._limit is None else len(sequence.ids) - self._limit
        if excess > sequence.window_start:
            sequence.window_start = excess
            sequence.n_cached = 0
        if not self._use_cache:
            sequence.n_cached = 0

    def _check_length(self, n_prompt: int, max_new_tokens: int) -> None:
        if self._capacity is not None and n_prompt + max_new_tokens > self._capacity:
            raise ValueError(
                f"the prompt's {n_prompt} tokens and max_new_tokens={max_new_tokens} exceed the engine's capacity of "
                f"{self._capacity}; shorten one of them or build the engine with more"
            )
        limit = self._limit
        if limit is None or self._past_context == "slide":
            return
        if self._past_context == "stop" and n_prompt >= limit:
            raise ValueError(
                f"the prompt has {n_prompt} tokens, but the context is {limit}, the answer included; shorten it or "
                "use past_context='slide'"
            )
        if self._past_context == "error" and n_prompt + max_new_tokens > limit:
            raise ValueError(
                f"the prompt's {n_prompt} tokens and max_new_tokens={max_new_tokens} exceed the context of {limit}; "
                "shorten one of them or use past_context='slide'"
            )

    def _remove(self, keys: set[int]) -> None:
        """Free the slots of these sequences; the last ones move into the gaps, so that slots stay dense."""
        for slot in reversed(range(len(self._running))):
            sequence = self._running[slot]
            if sequence.key not in keys:
                continue
            last = self._running.pop()
            if last is not sequence:
                self._backend.move(len(self._running), slot, last.n_cached)
                self._running[slot] = last
            self._backend.free(len(self._running))
            if self._drafter is not None:
                self._drafter.forget(sequence.key)
