"""Speculation: guess the next tokens cheaply, confirm them with the model several at a time.

The model computes a token and its drafts in one pass, which reads the weights once, and goes on as if it had computed
them one by one: each choice is drawn from its own logits with the sequence's own random numbers, and a draft only saves
the pass where it names that very choice. So the answer is the one without speculation, greedy or sampled. (Leviathan et
al. 2023 accept drafts by their probability instead, which keeps the distribution but not the tokens.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from gpt_attention import SlotCache
from gpt_core.checks import check_count
from gpt_core.inference import Chunk, InferenceModel
from gpt_core.prepare import is_plain, language_model, prepare


class Drafter(Protocol):
    """Guesses how sequences go on; the engine calls it before each pass."""

    def propose(self, key: int, ids: Sequence[int], /) -> Sequence[int]:
        """Return a guess of the tokens that follow ``ids``, the sequence ``key`` so far; none is fine."""
        ...

    def forget(self, key: int, /) -> None:
        """Drop what is kept for a sequence that has ended."""
        ...


class PromptLookup:
    """Guesses that the last words go on as they did when they stood in the text before (Saxena 2023).

    It costs next to nothing and helps where answers quote: summaries, corrections, code. ``n_draft`` tokens are copied
    from behind the latest earlier place of the last ``ngram`` tokens, or of fewer, down to 2.
    """

    def __init__(self, *, n_draft: int = 4, ngram: int = 3) -> None:
        check_count("n_draft", n_draft, least=1)
        check_count("ngram", ngram, least=2)
        self._n_draft, self._ngram = n_draft, ngram
        # For each sequence: how many of its tokens are indexed, and behind which place each n-gram stood last.
        self._seen: dict[int, tuple[int, dict[tuple[int, ...], int]]] = {}

    def propose(self, key: int, ids: Sequence[int], /) -> Sequence[int]:
        """Return up to ``n_draft`` tokens."""
        start, ends = self._seen.get(key, (0, {}))
        # Up to the last token but one: the n-gram that ends the text is not to find itself.
        for end in range(start, len(ids)):
            for n in range(2, min(self._ngram, end) + 1):
                ends[tuple(ids[end - n : end])] = end
        self._seen[key] = (len(ids), ends)
        for n in range(self._ngram, 1, -1):
            found = ends.get(tuple(ids[-n:])) if n <= len(ids) else None
            if found is not None:
                return ids[found : found + self._n_draft]
        return []

    def forget(self, key: int, /) -> None:
        """Drop a sequence's index."""
        self._seen.pop(key, None)


class DraftModel:
    """Guesses with a smaller model of the same vocabulary, ``n_draft`` greedy tokens at a time.

    ``model`` is a plain ``GPTModel`` or what ``quantize`` made of one. Raises ValueError for another, and for one that
    classifies.
    """

    def __init__(self, model: nn.Module, *, n_draft: int = 4) -> None:
        check_count("n_draft", n_draft, least=1)
        model = language_model(model)
        if not isinstance(model, InferenceModel):
            if not is_plain(model):
                raise ValueError(
                    f"a draft model must be a plain GPTModel or a quantized one, got a {type(model).__name__}"
                )
            model = prepare(model)
        self._model: InferenceModel = model
        self._n_draft = n_draft
        self._states: dict[int, tuple[SlotCache, list[int]]] = {}  # of each sequence the cache and the ids in it

    def propose(self, key: int, ids: Sequence[int], /) -> Sequence[int]:
        """Return ``n_draft`` tokens, or none beyond the draft model's context or vocabulary."""
        config = self._model.config
        if len(ids) + self._n_draft > config.context_length or max(ids) >= config.vocab_size:
            return []
        with torch.inference_mode():
            if key not in self._states:
                self._states[key] = (self._model.new_cache(n_slots=1, capacity=config.context_length), [])
            cache, held = self._states[key]
            n_shared = _shared(held, ids[:-1])  # at least the last token is computed: its logits are wanted
            pending, drafts = list(ids[n_shared:]), list[int]()
            for _ in range(self._n_draft):
                chunk = Chunk(0, n_shared, pending, 1)
                choice = int(self._model.logits([chunk], cache).argmax())
                n_shared += len(pending)
                pending = [choice]
                drafts.append(choice)
        held[:] = [*ids, *drafts[:-1]]
        return drafts

    def forget(self, key: int, /) -> None:
        """Free a sequence's cache."""
        self._states.pop(key, None)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens the two begin with in common."""
    n = min(len(first), len(second))
    return next((i for i in range(n) if first[i] != second[i]), n)
