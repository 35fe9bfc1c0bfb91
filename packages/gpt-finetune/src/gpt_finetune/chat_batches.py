"""Conversations as batches: targets by position, what was cut off or left out counted, little padding.

Shapes: B conversations, T tokens of the longest. Inputs (B, T) are ids padded on the right with 0; targets (B, T) are
the ids that follow, -100 where nobody learns them: the prompt's and the padding's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from gpt_finetune.buckets import bucketed_batches, check_batch_size
from gpt_finetune.chat import ChatModel
from gpt_finetune.class_batches import IGNORED
from gpt_finetune.conversation import Conversation
from gpt_finetune.padding import padded


@dataclass(frozen=True, kw_only=True)
class ChatExamples:
    """Conversations ready to be learned, and what became of the others."""

    ids: tuple[tuple[int, ...], ...]
    """The tokens of each, at most one more than the model's context."""

    targets: tuple[tuple[int, ...], ...]
    """What follows each token but the last; -100 where it is not learned."""

    numbers: tuple[int, ...]
    """Which of the conversations each is."""

    truncated: tuple[int, ...] = ()
    """Which were longer than the context: their first tokens are learned, without an end."""

    left_out: tuple[int, ...] = ()
    """Which had nothing to learn within the context, so that they are not among the examples."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """Tokens that are learned."""
        return sum(target != IGNORED for row in self.targets for target in row)

    @property
    def report(self) -> str:
        """One sentence: how many there are, were cut off and were left out."""
        total = len(self.ids) + len(self.left_out)
        return (
            f"{len(self.ids):,} of {total:,} conversations with {self.n_targets:,} tokens to learn; "
            f"{len(self.truncated):,} longer than the context and cut off there, {len(self.left_out):,} left out with "
            "nothing to learn within it")


def encode_conversations(
    chat: ChatModel, conversations: Iterable[Conversation], *, learn: Literal["answers", "all"] = "answers"
) -> ChatExamples:
    """Return the conversations as examples for ``chat``.

    With "answers" the assistant's tokens are learned, with "all" every token but the first, as in chapter 7; the token
    that ends an answer always is. Which token is a target follows from its place, never from its value. Raises
    ValueError if a conversation does not end with an answer.
    """
    if learn not in ("answers", "all"):
        raise ValueError(f"learn must be 'answers' or 'all', got {learn!r}")
    rows: list[tuple[int, ...]] = []
    targets: list[tuple[int, ...]] = []
    numbers, truncated, left_out = [], [], []
    for number, conversation in enumerate(conversations):
        if not conversation.is_answered:
            raise ValueError(f"conversation {number} ends with the user's message; give it an answer, or leave it out")
        encoded = chat.encode(conversation)
        ids, is_target = encoded.ids[: chat.max_length + 1], encoded.is_target[: chat.max_length + 1]
        following = tuple(
            token if is_said or learn == "all" else IGNORED
            for token, is_said in zip(ids[1:], is_target[1:], strict=True)
        )
        if all(target == IGNORED for target in following) or not any(is_target):
            left_out.append(number)
            continue
        if len(ids) < len(encoded.ids):
            truncated.append(number)
        rows.append(tuple(ids))
        targets.append(following)
        numbers.append(number)
    return ChatExamples(
        ids=tuple(rows), targets=tuple(targets), numbers=tuple(numbers), truncated=tuple(truncated),
        left_out=tuple(left_out),
    )


class ChatBatches:
    """The batches of each epoch, a pure function of (seed, epoch): each example comes once, one batch may be short."""

    def __init__(self, examples: ChatExamples, *, batch_size: int, seed: int) -> None:
        check_batch_size(batch_size)
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        self._lengths = [len(row) for row in examples.targets]

    @property
    def n_steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self._lengths) // self._batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch (0-based)."""
        for numbers in self._order(number):
            yield chat_batch(self._examples, numbers)

    def epochs(self, n_epochs: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of ``n_epochs`` epochs, one after the other, from batch ``start`` of them all on."""
        first, skipped = divmod(start, self.n_steps or 1)
        for number in range(first, n_epochs):
            for numbers in islice(self._order(number), skipped if number == first else 0, None):
                yield chat_batch(self._examples, numbers)

    def padding_share(self, epoch: int = 0) -> float:
        """Return which share of an epoch's input tokens is padding."""
        batches = [[self._lengths[number] for number in numbers] for numbers in self._order(epoch)]
        n_computed = sum(len(lengths) * max(lengths) for lengths in batches)
        return 1 - sum(self._lengths) / n_computed if n_computed else 0.0

    def _order(self, epoch: int) -> list[list[int]]:
        return bucketed_batches(self._lengths, batch_size=self._batch_size, seed=self._seed, epoch=epoch)


def chat_batch(examples: ChatExamples, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return one batch: inputs (B, T) and targets (B, T) as at this module's head."""
    inputs, lengths = padded([examples.ids[number][:-1] for number in numbers])
    targets = torch.full_like(inputs, IGNORED)
    for row, number, length in zip(targets, numbers, lengths.tolist(), strict=True):
        row[:length] = torch.tensor(examples.targets[number])
    return inputs, targets


def chat_batches_in_order(examples: ChatExamples, *, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the batches of all examples, the shortest first: for evaluation."""
    check_batch_size(batch_size)
    order = sorted(range(len(examples)), key=lambda number: len(examples.ids[number]))
    return [chat_batch(examples, order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
