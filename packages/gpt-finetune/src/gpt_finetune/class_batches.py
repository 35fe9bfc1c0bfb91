"""Batches of texts with their classes, texts of like length together, so that little padding is computed.

Shapes: B texts, T tokens of the longest. Inputs (B, T) are ids padded on the right; targets (B, T) hold a text's class
at its last token and -100 everywhere else: the batch that every loss of these packages takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gpt_finetune.buckets import bucketed_batches
from gpt_finetune.padding import padded

IGNORED = -100


class ClassBatches:
    """The batches of each epoch, a pure function of (seed, epoch).

    ``sequences`` are the token ids of the texts, or a function that gives them for an epoch (0-based); ``classes`` are
    their classes' numbers. Each text comes once in an epoch; the last batch may be short.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int]] | Callable[[int], Sequence[Sequence[int]]],
        classes: Sequence[int],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._sequences, self._classes, self._batch_size, self._seed = sequences, classes, batch_size, seed

    @property
    def n_steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self._classes) // self._batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch (0-based)."""
        sequences = self._sequences(number) if callable(self._sequences) else self._sequences
        assert len(sequences) == len(self._classes)
        lengths = [len(ids) for ids in sequences]
        for numbers in bucketed_batches(lengths, batch_size=self._batch_size, seed=self._seed, epoch=number):
            yield class_batch([sequences[i] for i in numbers], [self._classes[i] for i in numbers])

    def epochs(self, n_epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of ``n_epochs`` epochs, one after the other."""
        for number in range(n_epochs):
            yield from self.epoch(number)


def class_batch(sequences: Sequence[Sequence[int]], classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return one batch: inputs (B, T) and targets (B, T) as at this module's head."""
    inputs, lengths = padded(sequences)
    targets = torch.full_like(inputs, IGNORED)
    targets[torch.arange(len(lengths)), lengths - 1] = torch.tensor(classes)
    return inputs, targets


def last_tokens(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the position (B,) of each text's last token, and the class (B,) that ``targets`` (B, T) hold there."""
    rows = (targets != IGNORED).to(torch.int8).argmax(dim=1)
    return rows, targets.gather(1, rows.unsqueeze(1)).squeeze(1)
