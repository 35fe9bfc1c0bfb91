"""Which sequences make up the batches of an epoch: those of like length together, so that there is little padding."""

import random
from collections.abc import Sequence

_SPREAD = 0.2  # how far a length may be off in the order: batches of equal lengths only would be the same each epoch


def bucketed_batches(lengths: Sequence[int], *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the sequences' numbers in batches, each number once; the batches in random order, one of them short.

    A pure function of its arguments: ``epoch`` (0-based) and ``seed`` draw the order.
    """
    check_batch_size(batch_size)
    draw = random.Random(f"{seed}/{epoch}")
    keys = [length * (1 + _SPREAD * draw.random()) for length in lengths]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    draw.shuffle(batches)
    return batches


def check_batch_size(batch_size: int) -> None:
    """Raise ValueError unless it is a whole number of at least 1."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
