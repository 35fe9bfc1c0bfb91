"""Sequences of different lengths as rectangles: those of like length together, padded on the right.

Shapes: B texts, T tokens of the longest.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_AT_ONCE = 32  # texts in a batch without gradients


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) int64, shorter sequences padded on the right with 0, and their lengths (B,)."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    inputs = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, ids in zip(inputs, sequences, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return inputs, lengths


def padded_batches(
    sequences: Sequence[Sequence[int]], device: torch.device
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield all sequences once, the shortest first: their numbers, ids (B, T) and lengths (B,), on ``device``."""
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    for start in range(0, len(order), _AT_ONCE):
        numbers = order[start : start + _AT_ONCE]
        inputs, lengths = padded([sequences[number] for number in numbers])
        yield numbers, inputs.to(device), lengths.to(device)
