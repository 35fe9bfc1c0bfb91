"""Labelled texts in three parts, of which none holds a duplicate of a text in another.

A row-by-row split puts some copies of a text into training and others into the test, which then measures memory. Here
a whole group of duplicates goes where its first text would have gone row by row, if it has room; single texts fill up.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpt_finetune.duplicates import duplicate_groups, normalised
from gpt_finetune.labelled import LabelledTexts
from gpt_train import DataError

_Counts = Counter[tuple[str, str]]  # texts by part and label


@dataclass(frozen=True, kw_only=True)
class Split:
    """The parts, each in the file's order, and what keeping groups whole has meant."""

    train: LabelledTexts

    validation: LabelledTexts

    test: LabelledTexts

    n_duplicates: int
    """Texts that come again, beyond the first of each group; 0 if ``groups`` was None."""

    n_moved: int
    """Texts that a row-by-row split with the same seed puts into another part."""

    n_conflicting: int
    """Texts that are equal after normalising to one with another label."""


def split_labelled(
    data: LabelledTexts,
    *,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 123,
    groups: Sequence[int] | Literal["duplicates"] | None = "duplicates",
) -> Split:
    """Return ``data`` in three parts; ``validation`` and ``test`` are fractions of each label's texts.

    ``groups`` are kept whole: "duplicates" finds them (``duplicate_groups``), a number for each text says which is in
    which, None splits row by row. Each label's numbers are those of the fractions, rounded, as long as there are
    enough single texts to fill up with. The same seed gives the same parts on every system; no other random numbers
    are touched. A fraction of 0 leaves that part empty.

    Raises ValueError for fractions that are negative or leave nothing to train, or groups of another length; DataError
    if a part that is not to be empty would lack a label.
    """
    for name, value in (("validation", validation), ("test", test)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a fraction of at least 0, got {value}")
    if validation + test >= 1:
        raise ValueError(f"validation + test must stay below 1, so that some texts train, got {validation + test:g}")
    if groups == "duplicates":
        groups = duplicate_groups(data.texts)
    elif groups is not None and (isinstance(groups, str) or len(groups) != len(data)):
        raise ValueError(f"groups must be 'duplicates', None or {len(data)} numbers, one a text, got {groups!r:.60}")
    fractions = {"test": test, "validation": validation, "train": 1 - test - validation}
    # Parts without a fraction are no choice at all: a group that fits nowhere would go there, too.
    room = _room(data, {part: fraction for part, fraction in fractions.items() if fraction})
    row_by_row = _row_by_row(data.labels, room, seed)
    parts = row_by_row if groups is None else _whole(data.labels, room, row_by_row, groups)
    chosen = {name: data.select(i for i, part in enumerate(parts) if part == name) for name in fractions}
    for name, part in chosen.items():
        missing = sorted(set(data.labels) - set(part.labels))
        if fractions[name] and missing:
            numbers = [i for i, label in enumerate(data.labels) if label == missing[0]]
            n_apart = len(numbers) if groups is None else len({groups[i] for i in numbers})
            raise DataError(
                f"{name} would have no text labelled {missing[0]!r}, of which {data.source} has {len(numbers)}, "
                f"{n_apart} of them apart from duplicates; add texts of it, or make the fraction for {name} larger"
            )
    return Split(
        **chosen,
        n_duplicates=0 if groups is None else len(groups) - len(set(groups)),
        n_moved=sum(there != here for there, here in zip(row_by_row, parts, strict=True)),
        n_conflicting=_n_conflicting(data),
    )


def _room(data: LabelledTexts, fractions: dict[str, float]) -> _Counts:
    """Return how many texts of each label each part is to get."""
    room: _Counts = Counter()
    for label, count in data.counts.items():
        end, ends = 0.0, [0]
        for part, fraction in fractions.items():
            end += fraction
            ends.append(math.floor(count * min(end, 1.0) + 0.5))
            room[part, label] = ends[-1] - ends[-2]
    return room


def _row_by_row(labels: Sequence[str], room: _Counts, seed: int) -> list[str]:
    """Return each text's part: those of a label in random order, as many as a part has room for."""
    draws = random.Random(seed)
    waiting = defaultdict(list)
    for i in sorted(range(len(labels)), key=[draws.random() for _ in labels].__getitem__):
        waiting[labels[i]].append(i)
    parts = [""] * len(labels)
    for (part, label), count in room.items():
        for _ in range(count):
            parts[waiting[label].pop()] = part
    return parts


def _whole(labels: Sequence[str], room: _Counts, row_by_row: Sequence[str], groups: Sequence[int]) -> list[str]:
    """Return each text's part, the same for all texts of a group."""
    members = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    left = room.copy()
    parts = [""] * len(labels)
    names = list(dict.fromkeys(part for part, _ in room))
    for texts in sorted(members.values(), key=len, reverse=True):  # stable: the first of equal size comes first
        counts = Counter(labels[i] for i in texts)

        def excess(part: str, counts: Counter[str] = counts) -> int:
            return sum(max(0, n - left[part, label]) for label, n in counts.items())

        first = row_by_row[texts[0]]
        chosen = min([first, *names], key=excess)  # the first of those where least is too much
        for i in texts:
            parts[i] = chosen
            left[chosen, labels[i]] -= 1
    return parts


def _n_conflicting(data: LabelledTexts) -> int:
    found = defaultdict(list)
    for text, label in zip(data.texts, data.labels, strict=True):
        found[normalised(text)].append(label)
    return sum(len(labels) for labels in found.values() if len(set(labels)) > 1)
