"""The receiver operating characteristic: its curve, the area beneath it and the area's interval.

Sources: the area as the chance that a positive example outranks a negative one, ties half, and its variance from
each example's placement, DeLong et al. 1988; its variance where scores are exponential, Hanley and McNeil 1982, made
symmetric by Newcombe 2006 (method 5).

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
    positive, negative = np.sort(scores[is_positive]), np.sort(scores[~is_positive])
    m, n = len(positive), len(negative)
    share_below = _share_below(scores[is_positive], negative)                  # (m,)
    share_above = 1 - _share_below(scores[~is_positive], positive)             # (n,)
    area = float(share_below.mean())
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
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(np.diff(scores[order]) != 0, True)                     # of examples with the same score
    true = np.cumsum(is_positive[order])[is_last]
    false = np.cumsum(~is_positive[order])[is_last]
    return np.append(0, false) / false[-1], np.append(0, true) / true[-1]


def _share_below(scores: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each score the share of the sorted others below it, equal ones counted half."""
    return (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / (2 * len(others))
