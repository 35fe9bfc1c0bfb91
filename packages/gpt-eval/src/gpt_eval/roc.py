"""The receiver operating characteristic: its curve, the area beneath it and the area's interval.

The curve and the area are scikit-learn's. Sources of the interval: the area's variance from each example's placement,
DeLong et al. 1988, placements from ranks, Sun and Xu 2014; its variance where scores are exponential, Hanley and McNeil
1982, made symmetric by Newcombe 2006 (method 5).

Shapes: N examples, of them m positive and n negative; C areas that are averaged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_eval.intervals import Measured, wilson_interval


@dataclass(frozen=True)
class Area:
    """An area under a curve, and what its interval needs."""

    value: float
    influence: NDArray[np.float64]
    """(N,): how far each example moves the area; the squares add up to the area's variance."""
    n_effective: float
    """As many examples would give a proportion of this size the variance of exponential scores."""


def roc_area(scores: NDArray[np.float64], is_positive: NDArray[np.bool_]) -> Area:
    """Return the area for ``scores`` (N,), of which ``is_positive`` (N,) marks at least one and not all."""
    from scipy.stats import rankdata  # type: ignore[import-untyped,unused-ignore]
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped,unused-ignore]

    m, n = np.count_nonzero(is_positive), np.count_nonzero(~is_positive)
    area = float(roc_auc_score(is_positive, scores))
    # An example's rank among all less its rank among its own kind counts the others below it, equal ones half.
    ranks = rankdata(scores)                                                   # (N,)
    share_below = (ranks[is_positive] - rankdata(scores[is_positive])) / n     # (m,) of the negatives
    share_above = 1 - (ranks[~is_positive] - rankdata(scores[~is_positive])) / m  # (n,) of the positives
    influence = np.empty(len(scores))
    influence[is_positive] = (share_below - area) / m
    influence[~is_positive] = (share_above - area) / n
    likeness = (1 - area) / (2 - area) + area / (1 + area)
    return Area(area, influence, m * n / (1 + ((m + n) / 2 - 1) * likeness))


def measure_mean_area(areas: Sequence[Area], *, confidence: float) -> Measured:
    """Return the mean of areas over the same N examples with Wilson's interval for an effective count.

    The count is what a proportion would need for the greater of two variances, DeLong's and Newcombe's. DeLong's alone
    is too small where few pairs are in the wrong order, and 0 where none is; so is what a bootstrap finds there.
    """
    C, N = len(areas), len(areas[0].influence)
    mean = math.fsum(area.value for area in areas) / C
    n_effective = C * C / math.fsum(1 / area.n_effective for area in areas)
    influence = np.sum([area.influence for area in areas], axis=0) / C
    variance = float(influence @ influence)
    if variance > 0:
        n_effective = min(n_effective, mean * (1 - mean) / variance)
    low, high = wilson_interval(mean * n_effective, n_effective, confidence)
    return Measured(value=mean, low=low, high=high, n=N, method="Wilson, effective count by DeLong and Newcombe")


def roc_points(
    scores: NDArray[np.float64], is_positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the curve's false and true positive rates, from (0, 0) to (1, 1), one point a distinct score."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(is_positive, scores, drop_intermediate=False)
    return false, true
