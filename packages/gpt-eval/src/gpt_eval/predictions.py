"""True classes and predicted probabilities, checked once.

Shapes: N examples, C classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SUM_TOLERANCE = 1e-4
_NAMED = 5


@dataclass(frozen=True)
class Predictions:
    """What a classifier said, and what was true."""

    classes: tuple[str, ...]
    truth: NDArray[np.intp]
    """(N,): the true class's place in ``classes``."""
    probabilities: NDArray[np.float64]
    """(N, C)."""
    predicted: NDArray[np.intp]
    """(N,): the place of the most probable class, of the first among equals."""
    confidence: NDArray[np.float64]
    """(N,): the probability of the predicted class."""

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """(N,): whether the predicted class is the true one."""
        return self.predicted == self.truth


def check_predictions(labels: Sequence[str], probabilities: ArrayLike, *, classes: Sequence[str]) -> Predictions:
    """Return the predictions, or raise ValueError for the first thing that is wrong with them."""
    names = _check_classes(classes)
    P = _check_probabilities(probabilities, names)
    truth = _check_labels(labels, names)
    if len(truth) != len(P):
        raise ValueError(
            f"there are {len(truth)} labels and {len(P)} rows of probabilities, but example k needs its label and its "
            "row; pass as many of one as of the other, in the same order"
        )
    predicted = P.argmax(axis=1)
    return Predictions(names, truth, P, predicted, P[np.arange(len(P)), predicted])


def check_positive(positive: str | None, classes: tuple[str, ...]) -> str | None:
    """Return the positive one of two classes, by default the last; None where there are more."""
    if positive is None:
        return classes[-1] if len(classes) == 2 else None
    if positive not in classes:
        raise ValueError(f"positive is {positive!r}, but the classes are {list(classes)}; name one of them")
    if len(classes) > 2:
        raise ValueError(
            f"positive is {positive!r}, but of {len(classes)} classes none is the positive one; leave it out and read "
            "the report's per_class"
        )
    return positive


def _check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    names = () if isinstance(classes, str) else tuple(classes)
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(
            f"classes must be two or more different names, got {classes!r}; pass them in the order of the columns of "
            "probabilities"
        )
    return tuple(str(name) for name in names)


def _check_probabilities(probabilities: ArrayLike, classes: tuple[str, ...]) -> NDArray[np.float64]:
    try:
        P = np.asarray(probabilities, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"probabilities must be rows of {len(classes)} numbers each, but {error}") from error
    if P.ndim != 2 or P.shape[1] != len(classes):
        raise ValueError(
            f"probabilities has the shape {P.shape}, but {len(classes)} classes need (N, {len(classes)}); pass a row "
            "for each example and a column for each class (of two: 1 - p and p)"
        )
    if len(P) == 0:
        raise ValueError("probabilities has no row, but a classifier is judged on examples; pass at least one")
    wrong = np.argwhere(~((P >= 0) & (P <= 1 + _SUM_TOLERANCE)))               # NaN, too, is not within
    if len(wrong):
        row, column = wrong[0]
        way_out = "logits need a softmax first"
        if np.isnan(P[row, column]):
            way_out = "look in the classifier, or its input, for what made it no number"
        raise ValueError(
            f"probabilities[{row}, {column}] is {P[row, column]}, but a probability lies between 0 and 1; {way_out}"
        )
    sums = P.sum(axis=1)
    rows = np.flatnonzero(np.abs(sums - 1) > _SUM_TOLERANCE)
    if len(rows):
        raise ValueError(
            f"row {rows[0]} of probabilities sums to {sums[rows[0]]:.6g}, but each must sum to 1 within "
            f"{_SUM_TOLERANCE}; {len(rows)} of {len(P)} rows do not: pass a softmax over all classes"
        )
    return P


def _check_labels(labels: Sequence[str], classes: tuple[str, ...]) -> NDArray[np.intp]:
    if isinstance(labels, str):
        raise ValueError(f"labels is the text {labels[:50]!r}, but each example needs a name; pass a list of names")
    place = {name: position for position, name in enumerate(classes)}
    labels = list(labels)
    for position, label in enumerate(labels):
        if not isinstance(label, str):
            raise ValueError(
                f"labels[{position}] is {label!r:.50}, but labels must be texts; pass the classes' names, for example "
                f"{classes[0]!r}"
            )
    truth = np.array([place.get(label, -1) for label in labels], dtype=np.intp)
    unknown = np.flatnonzero(truth < 0)
    if len(unknown):
        counts = Counter(labels[position] for position in unknown.tolist())
        first = {labels[position]: position for position in reversed(unknown.tolist())}
        told = [f"{name!r} {counts[name]} times, first at {first[name]}" for name in list(counts)[:_NAMED]]
        more = f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else ""
        raise ValueError(
            f"labels hold names that are none of the classes {list(classes)}: {'; '.join(told)}{more}; "
            "correct them, or add the class with its column of probabilities"
        )
    return truth
