"""Judge a classifier by its probabilities (chapter 6 judges by accuracy alone).

Counts, F1, area, Brier score and log loss are scikit-learn's, which the extra ``classification`` brings; a share has
its value and its interval from the same counts. Sources of the rest: expected calibration error, Guo et al. 2017; macro
averages over classes, Sokolova and Lapalme 2009; the area for many classes as the mean of one against the rest, Provost
and Domingos 2001 without their weights. The intervals' sources stand in ``intervals``, ``bootstrap`` and ``roc``.

Shapes: N examples, C classes, R resamples.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt_eval.bootstrap import (
    check_resampling,
    measure_by_percentiles,
    measure_by_reversed_percentiles,
    resampled_means,
)
from gpt_eval.calibration import N_BINS, calibration_gaps
from gpt_eval.intervals import (
    Measured,
    check_confidence,
    measure_mean_of_proportions,
    measure_proportion,
    undefined,
    wilson_interval,
)
from gpt_eval.predictions import Predictions, check_positive, check_predictions
from gpt_eval.report import ClassificationReport, ClassScores
from gpt_eval.roc import measure_mean_area, roc_area
from gpt_eval.scikit_learn import require_scikit_learn


def evaluate_classifier(
    labels: Sequence[str],
    probabilities: ArrayLike,
    *,
    classes: Sequence[str],
    positive: str | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> ClassificationReport:
    """Return accuracy, F1, ROC area, calibration and more of a classifier, each with its count and its interval.

    ``labels`` are the N true classes' names, ``probabilities`` is (N, C) with a column for each of ``classes``; the
    most probable class counts as predicted, the first among equals. Precision, recall, F1 and the area are those of
    ``positive``, by default the last of two classes; with more classes they are means over the classes, which count
    the same (macro averages), the area that of each class against the rest.

    Intervals hold for examples that were drawn independently, and for this classifier, not for another training run
    (``summarize_runs``). A share is given Wilson's. Given how many examples a class has, its recall is a share, and
    given how many were called it, its precision; their means take the shares' intervals together. F1 is 2J / (1 + J)
    of the share J of right ones among the examples that are or were called the class, and has J's ends. For the area
    see ``roc.measure_mean_area``. A bootstrap over all examples, whatever their class (so the classes' shares vary as
    in a new draw), makes those of the Brier score, the log loss, the macro F1 and the calibration error, whose
    percentiles are reversed, because chance lifts it above 0 also where calibration is perfect.

    The calibration error has 10 bins of equal width. The Brier score of two classes is the positive one's mean squared
    error, from 0 to 1; that of more is summed over the classes, from 0 to 2. In the log loss a probability of 0 counts
    as 2.2e-16, one of 1 as that much less than 1. What is undefined, such as the recall of a class without an example,
    has the value None and the reason.

    The same examples in any order give the same report. Raises ValueError for predictions that fail a check, and
    ImportError without scikit-learn.
    """
    require_scikit_learn("judging a classifier")
    check_confidence(confidence)
    check_resampling(n_resamples, seed)
    seen = check_predictions(labels, probabilities, classes=classes)
    positive = check_positive(positive, seen.classes)
    N, C = seen.probabilities.shape
    P = seen.probabilities / seen.probabilities.sum(axis=1, keepdims=True)     # sums to 1e-4 pass, but losses need 1
    values = _library_values(seen, P)
    confusion = values.confusion
    per_class = _per_class(seen.classes, values, confidence)
    recalls, precisions = [scores.recall for scores in per_class], [scores.precision for scores in per_class]
    balanced = _undefined_part(recalls, n=N) or measure_mean_of_proportions(recalls, n=N)

    losses = _losses(seen.truth, P)
    gaps = calibration_gaps(seen.confidence, seen.is_right)                    # (N, 10)
    columns = [gaps, losses] if positive is not None else [_indicators(seen), gaps, losses]
    resampled = resampled_means(np.column_stack(columns), n_resamples=n_resamples, seed=seed)
    calibration_error = float(np.abs(gaps.mean(axis=0)).sum())
    resampled_errors = np.abs(resampled[:, -2 - N_BINS : -2]).sum(axis=1)      # (R,)

    if positive is not None:
        chosen = per_class[seen.classes.index(positive)]
        precision, recall, f1 = chosen.precision, chosen.recall, chosen.f1
    else:
        precision = _undefined_part(precisions, n=N) or measure_mean_of_proportions(precisions, n=N)
        recall = balanced
        f1 = _macro_f1([scores.f1 for scores in per_class], resampled[:, : 3 * C], n=N, confidence=confidence)
    return ClassificationReport(
        n=N,
        classes=seen.classes,
        positive=positive,
        confidence=confidence,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        accuracy=measure_proportion(int(confusion.trace()), N, confidence),
        balanced_accuracy=balanced,
        precision=precision,
        recall=recall,
        f1=f1,
        roc_auc=measure_roc_auc(seen, positive, confidence=confidence),
        expected_calibration_error=measure_by_reversed_percentiles(
            calibration_error, resampled_errors, n=N, confidence=confidence
        ),
        brier=measure_by_percentiles(values.brier, resampled[:, -2], n=N, confidence=confidence),
        log_loss=measure_by_percentiles(values.log_loss, resampled[:, -1], n=N, confidence=confidence),
        per_class=per_class,
    )


def measure_roc_auc(seen: Predictions, positive: str | None, *, confidence: float) -> Measured:
    """Return the ROC area of the positive class or, where that is None, the mean over all classes."""
    N, C = seen.probabilities.shape
    missing = np.flatnonzero(np.bincount(seen.truth, minlength=C) == 0)
    if len(missing):
        return undefined(f"class {seen.classes[missing[0]]!r} has no example", n=N)
    columns = range(C) if positive is None else [seen.classes.index(positive)]
    areas = [roc_area(seen.probabilities[:, column], seen.truth == column) for column in columns]
    return measure_mean_area(areas, confidence=confidence)


@dataclass(frozen=True)
class _LibraryValues:
    """What scikit-learn says of predictions."""

    confusion: NDArray[np.intp]
    """(C, C): a row for each true class, a column for each predicted one."""
    f1: NDArray[np.float64]
    """(C,): 0 where it is undefined."""
    brier: float
    log_loss: float


def _library_values(seen: Predictions, P: NDArray[np.float64]) -> _LibraryValues:
    from sklearn import metrics  # type: ignore[import-untyped,unused-ignore]  # a second; scikit-learn is an extra

    places = np.arange(len(seen.classes))
    with warnings.catch_warnings():
        # Where there are more classes than half the examples, scikit-learn before 1.9 takes places for measurements.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        return _LibraryValues(
            confusion=metrics.confusion_matrix(seen.truth, seen.predicted, labels=places),
            f1=metrics.f1_score(seen.truth, seen.predicted, labels=places, average=None, zero_division=0),
            brier=float(metrics.brier_score_loss(seen.truth, P, labels=places)),
            log_loss=float(metrics.log_loss(seen.truth, P, labels=places)),
        )


def _per_class(classes: tuple[str, ...], values: _LibraryValues, confidence: float) -> tuple[ClassScores, ...]:
    confusion = values.confusion
    rows = []
    for place, name in enumerate(classes):
        n_right = int(confusion[place, place])
        n_examples, n_predicted = int(confusion[place].sum()), int(confusion[:, place].sum())
        recall = measure_proportion(n_right, n_examples, confidence) if n_examples else None
        precision = measure_proportion(n_right, n_predicted, confidence) if n_predicted else None
        rows.append(
            ClassScores(
                name=name,
                n_examples=n_examples,
                n_predicted=n_predicted,
                precision=precision or undefined(f"no example was called {name!r}", n=0),
                recall=recall or undefined(f"class {name!r} has no example", n=0),
                f1=_f1(name, float(values.f1[place]), n_right, n_examples + n_predicted - n_right, confidence),
            )
        )
    return tuple(rows)


def _f1(name: str, value: float, n_right: int, n_either: int, confidence: float) -> Measured:
    """Return F1 with the interval of the share of right ones among the examples that are or were called the class."""
    if n_either == 0:
        return undefined(f"no example is {name!r} or was called it", n=0)
    low, high = (2 * share / (1 + share) for share in wilson_interval(n_right, n_either, confidence))
    return Measured(value=value, low=low, high=high, n=n_either, method="Wilson of the share behind F1")


def _macro_f1(parts: Sequence[Measured], means: NDArray[np.float64], *, n: int, confidence: float) -> Measured:
    """Return the mean of the classes' F1, ``means`` (R, 3C) being the resampled means of ``_indicators``."""
    missing = _undefined_part(parts, n=n)
    if missing is not None:
        return missing
    value = math.fsum(part.value for part in parts if part.value is not None) / len(parts)
    right, true, predicted = np.split(means, 3, axis=1)                        # (R, C) each
    either = true + predicted
    # A class that a resample lost altogether has no F1 there; the others' mean stands for it.
    resampled = np.divide(2 * right, either, out=np.zeros_like(either), where=either > 0).sum(axis=1)
    return measure_by_percentiles(value, resampled / (either > 0).sum(axis=1), n=n, confidence=confidence)


def _indicators(seen: Predictions) -> NDArray[np.float64]:
    """Return (N, 3C): whether an example is and was called class c, is it, was called it."""
    each = np.arange(len(seen.classes))
    true, predicted = seen.truth[:, None] == each, seen.predicted[:, None] == each
    return np.column_stack([true & predicted, true, predicted]).astype(np.float64)


def _losses(truth: NDArray[np.intp], P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N, 2): each example's Brier score and log loss, whose means scikit-learn gives, for the resamples."""
    N, C = P.shape
    squares = (P - (truth[:, None] == np.arange(C))) ** 2
    brier = squares[:, -1] if C == 2 else squares.sum(axis=1)
    epsilon = np.finfo(np.float64).eps
    return np.column_stack([brier, -np.log(np.clip(P[np.arange(N), truth], epsilon, 1 - epsilon))])


def _undefined_part(parts: Sequence[Measured], *, n: int) -> Measured | None:
    """Return a mean that is undefined because a part is, with the first one's reason; None if all are defined."""
    return next((undefined(part.method, n=n) for part in parts if part.value is None), None)
