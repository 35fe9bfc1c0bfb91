"""The generation engine: sequences join, run together and leave, each with the answer it would have alone.

``Engine.step`` computes the next tokens of all sequences in one pass (Yu et al. 2022, "iteration-level scheduling"):
pieces of the prompts that are still to be read, and one token, or a token and its drafts, of the others. A sequence has
its own cache slot, settings and random numbers, so neither its neighbours nor the pieces change its answer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gpt_core.backends import ModuleBackend, PackedBackend
from gpt_core.checks import check_count, checked_ids
from gpt_core.inference import Chunk, InferenceModel
from gpt_core.prepare import is_plain
from gpt_core.sampling import Sampling, check_n_top, next_token, token_logprobs
from gpt_core.sequence import GeneratedToken, RunningSequence
from gpt_core.speculate import Drafter

PastContext = Literal["slide", "stop", "error"]
_PAST_CONTEXT = ("slide", "stop", "error")
# Prompt tokens read in one step: enough rows for the products to run at full speed, while the memory for
# activations stays small and the running sequences wait for one piece at most.
_PIECE = 512


class Engine:
    """Generates for many sequences at once: ``add`` some, call ``step`` until ``is_idle``.

    ``max_batch`` sequences run together, others wait in line. ``context_length`` caps the tokens that the model looks
    at (None: the model's own limit); the cache takes memory for as many, per running sequence, as they are used.

    ``past_context`` says what happens to a sequence longer than that: "slide" lets the model see the last ones only,
    recomputed for each token because positions are absolute; "stop" ends the answer where the context is full; "error"
    refuses a prompt that leaves no room for its ``max_new_tokens``.

    ``capacity`` is the most tokens, prompt and answer, that any sequence will have (None: no limit): the cache needs no
    room for more.

    ``use_cache=False`` computes the whole sequence for each token; the ids are the same. ``drafter`` guesses tokens
    that the model then confirms several at a time; the ids are the same (see ``gpt_core.speculate``).

    Any module that maps ids (B, T) to logits (B, T, V) will do. A plain ``GPTModel`` is computed by ``InferenceModel``,
    from its own weights, which are looked up anew when they change; anything else through its modules, in eval mode.
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
        model = getattr(model, "_orig_mod", model) if is_plain(getattr(model, "_orig_mod", model)) else model
        self._model = model
        self._backend: PackedBackend | ModuleBackend
        if isinstance(model, InferenceModel) or is_plain(model):
            assert limit is not None  # these models have a context_length
            self._backend = PackedBackend(model, n_slots=max_batch, capacity=min(limit, capacity or limit))
        else:
            self._backend = ModuleBackend(model, use_cache=use_cache)
        self._use_cache = use_cache and self._backend.has_cache
        self._piece = _PIECE if self._backend.has_cache else None
        self._waiting: deque[RunningSequence] = deque()
        self._running: list[RunningSequence] = []  # the place in this list is the slot
        self._next_key = 0

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
        generator = None
        if sampling.seed is not None:
            generator = torch.Generator(device=self._backend.device).manual_seed(sampling.seed)
        sequence = RunningSequence(
            self._next_key, ids, len(ids), max_new_tokens, min_new_tokens, sampling, stops, top_logprobs, generator
        )
        self._slide(sequence)
        self._waiting.append(sequence)
        self._next_key += 1
        return sequence.key

    def cancel(self, key: int) -> None:
        """Let a sequence leave; a key that is not running or waiting (any more) is ignored."""
        self._waiting = deque(sequence for sequence in self._waiting if sequence.key != key)
        self._remove({key})

    def step(self) -> list[tuple[int, GeneratedToken]]:
        """Compute one pass and return the new tokens with their sequences' keys, in the order of each answer.

        A sequence whose prompt is still being read has none; one whose drafts were confirmed has several; one whose
        token has a ``finish`` has left. Raises ValueError if the model's logits are not finite: the sequences stay as
        they were.
        """
        while self._waiting and len(self._running) < self._max_batch:
            self._running.append(self._waiting.popleft())
        work = self._plan()
        if not work:
            return []
        logits = self._backend.logits([chunk for _, chunk in work])                 # (rows, V)
        best, best_ids, normalizers = _facts(logits)
        if not all(map(math.isfinite, best)):
            for sequence, chunk in work:
                sequence.n_cached = 0
                self._backend.clear(chunk.slot)
            raise ValueError("the model's logits are not finite: its weights are damaged or its training diverged")
        results: list[tuple[int, GeneratedToken]] = []
        finished: set[int] = set()
        row = 0
        for sequence, chunk in work:
            drafts, sequence.drafts = sequence.drafts, []
            sequence.n_cached = chunk.start + len(chunk.ids) - len(drafts)
            for n in range(chunk.n_logits):
                place = row + n
                chosen = best_ids[place] if sequence.takes_the_best else self._draw(sequence, logits[place : place + 1])
                token = self._appended(sequence, chosen, logits[place], normalizers[place])
                results.append((sequence.key, token))
                if token.finish is not None:
                    finished.add(sequence.key)
                if token.finish is not None or n >= len(drafts) or drafts[n] != chosen:
                    break
                sequence.n_cached += 1
            row += chunk.n_logits
            if chunk.n_logits:
                self._slide(sequence)
        self._remove(finished)
        return results

    def _plan(self) -> list[tuple[RunningSequence, Chunk]]:
        """Return what the next pass computes: every running sequence's tokens, of long prompts a piece."""
        room = self._piece
        work = []
        for slot, sequence in enumerate(self._running):
            pending = sequence.ids[sequence.window_start + sequence.n_cached :]
            if room is not None and len(pending) > 1:
                if room == 0:
                    continue
                taken = pending[:room]
                room -= len(taken)
            else:
                taken = pending
            is_last = len(taken) == len(pending)
            sequence.drafts = self._drafts(sequence) if is_last else []
            n_logits = 1 + len(sequence.drafts) if is_last else 0
            work.append((sequence, Chunk(slot, sequence.n_cached, taken + sequence.drafts, n_logits)))
        return work

    def _drafts(self, sequence: RunningSequence) -> list[int]:
        if self._drafter is None or not self._use_cache:
            return []
        room = sequence.max_new_tokens - sequence.n_new - 1
        if self._limit is not None:
            room = min(room, self._limit - (len(sequence.ids) - sequence.window_start))
        return list(self._drafter.propose(sequence.key, sequence.ids))[: max(room, 0)]

    def _draw(self, sequence: RunningSequence, logits: Tensor) -> int:
        ids = None
        if sequence.sampling.has_penalties:
            ids = torch.tensor([sequence.ids], device=logits.device)
        with torch.inference_mode():
            chosen = next_token(
                logits, sampling=sequence.sampling, ids=ids, n_prompt=sequence.n_prompt,
                forbidden=sequence.forbidden, generator=sequence.generator,
            )
        return int(chosen[0])

    def _appended(self, sequence: RunningSequence, chosen: int, logits: Tensor, normalizer: float) -> GeneratedToken:
        """Add the token to its sequence and say what the caller is told of it."""
        sequence.ids.append(chosen)
        top: tuple[tuple[int, float], ...] = ()
        if sequence.n_top:
            logprob, top = token_logprobs(logits, chosen, sequence.n_top)
        else:
            logprob = float(logits[chosen]) - normalizer
        finish: Literal["stop", "length"] | None = None
        is_full = self._past_context == "stop" and len(sequence.ids) == self._limit
        if chosen in sequence.stop_ids:
            finish = "stop"
        elif sequence.n_new == sequence.max_new_tokens or is_full:
            finish = "length"
        return GeneratedToken(chosen, logprob, finish, top)

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


def _facts(logits: Tensor) -> tuple[list[float], list[int], list[float]]:
    """Return of each row the largest logit, its id, and the log of the sum of all exponentials."""
    with torch.inference_mode():
        best, ids = logits.max(dim=-1)
        return best.tolist(), ids.tolist(), logits.logsumexp(dim=-1).tolist()
