"""Preferences as batches: both answers of a pair in rows of their own, pairs of like length together.

Shapes: P pairs, B pairs of a batch, T tokens of the longest row. Row 2n is pair n's prompt with the chosen answer,
row 2n + 1 with the rejected one. Inputs (2B, T) are rows padded on the right, targets (B,) the numbers of the pairs: a
loss looks up by them what else it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_finetune.buckets import bucketed_batches, check_batch_size
from gpt_finetune.chat import ChatModel
from gpt_finetune.padding import padded
from gpt_finetune.preference import Preference

_LEAST = 0.8  # of a rectangle's longest row: 5 to 9 % of padding where answers' lengths differ as people's do


@dataclass(frozen=True, kw_only=True)
class PreferencePairs:
    """Pairs ready to be learned from, and what became of the others."""

    rows: tuple[tuple[int, ...], ...]
    """The tokens of prompt, answer and its end; at most one more than the model's context."""

    starts: tuple[int, ...]
    """Where in each row the answer begins."""

    numbers: tuple[int, ...]
    """Which of the preferences each pair is."""

    too_long: tuple[int, ...] = ()
    """Which do not fit into the context: an answer that is cut off is another answer, so they are not among the pairs.
    """

    equal: tuple[int, ...] = ()
    """Which have twice the same answer, so that there is nothing to prefer."""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def report(self) -> str:
        """One sentence: how many there are, and how many were left out."""
        total = len(self.numbers) + len(self.too_long) + len(self.equal)
        return (
            f"{len(self):,} of {total:,} preferences can be learned from: {len(self.too_long):,} left out that do not "
            f"fit into the context, {len(self.equal):,} whose two answers are the same")


def encode_preferences(chat: ChatModel, preferences: Iterable[Preference]) -> PreferencePairs:
    """Return the preferences as pairs for ``chat``, by its own template."""
    rows: list[tuple[int, ...]] = []
    starts: list[int] = []
    numbers, too_long, equal = [], [], []
    for number, preference in enumerate(preferences):
        prompts, answers = zip(*map(chat.encode_answer, preference.conversations), strict=True)
        pair = [(*prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)]
        if answers[0] == answers[1]:
            equal.append(number)
        elif max(map(len, pair)) > chat.max_length + 1:
            too_long.append(number)
        else:
            rows += pair
            starts += map(len, prompts)
            numbers.append(number)
    return PreferencePairs(
        rows=tuple(rows), starts=tuple(starts), numbers=tuple(numbers), too_long=tuple(too_long), equal=tuple(equal))


class PreferenceBatches:
    """The batches of each epoch, a pure function of (seed, epoch): each pair comes once, one batch may be short."""

    def __init__(self, pairs: PreferencePairs, *, batch_size: int, seed: int) -> None:
        check_batch_size(batch_size)
        self._pairs, self._batch_size, self._seed = pairs, batch_size, seed
        # By the longer of both: its row is then nearly as long as its neighbours', and only the shorter ones differ.
        self._lengths = [max(map(len, pairs.rows[2 * pair : 2 * pair + 2])) for pair in range(len(pairs))]

    @property
    def n_steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self._pairs) // self._batch_size)

    def epochs(self, n_epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of ``n_epochs`` epochs, one after the other."""
        for epoch in range(n_epochs):
            yield from (preference_batch(self._pairs, pairs) for pairs in self._order(epoch))

    def padding_share(self, epoch: int = 0) -> float:
        """Return which share of the tokens that an epoch computes is padding."""
        n_computed = 0
        for pairs in self._order(epoch):
            lengths = [len(self._pairs.rows[row]) for row in rows_of(pairs)]
            n_computed += sum(len(places) * lengths[places[0]] for places in rectangles(lengths))
        return 1 - sum(map(len, self._pairs.rows)) / n_computed

    def _order(self, epoch: int) -> list[list[int]]:
        return bucketed_batches(self._lengths, batch_size=self._batch_size, seed=self._seed, epoch=epoch)


def preference_batch(pairs: PreferencePairs, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return one batch: inputs (2B, T) and targets (B,) as at this module's head."""
    inputs, _ = padded([pairs.rows[row] for row in rows_of(numbers)])
    return inputs, torch.tensor(numbers)


def rows_of(pairs: Sequence[int]) -> list[int]:
    """Return the rows of these pairs, the chosen answer's before the rejected one's."""
    return [row for pair in pairs for row in (2 * pair, 2 * pair + 1)]


def rectangles(lengths: Sequence[int]) -> list[list[int]]:
    """Return the places of rows to compute together, the longest first: none shorter than 4/5 of its first.

    The two answers of a pair may have very different lengths, so that one rectangle of a whole batch would be a third
    padding.
    """
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if found and lengths[place] >= _LEAST * lengths[found[-1][0]]:
            found[-1].append(place)
        else:
            found.append([place])
    return found
