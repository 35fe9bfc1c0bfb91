"""The bootstrap over examples (Efron 1979), for whatever is computed from means over them.

Shapes: N examples, K columns to take means of, R resamples.
"""

from collections.abc import Iterator
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from gpt_eval.intervals import Measured

_FEWEST_RESAMPLES = 100


def resampled_means(columns: NDArray[np.float64], *, n_resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the columns' means (R, K) in resamples of the N examples, drawn with replacement and equal chances.

    Examples are put in the order of their values first, so that the result does not depend on the order they came in.
    """
    N, K = columns.shape
    columns = columns[np.lexsort(columns.T)]                                   # by the last column, ties by the others
    means = np.empty((n_resamples, K))
    start = 0
    for weights in _weights(N, n_resamples, np.random.default_rng(seed)):
        means[start : start + len(weights)] = weights @ columns / N            # (r, N) @ (N, K)
        start += len(weights)
    return means


def measure_by_percentiles(value: float, resampled: NDArray[np.float64], *, n: int, confidence: float) -> Measured:
    """Return ``value`` with the interval between two percentiles of its resampled values (R,)."""
    low, high = _percentiles(resampled, confidence)
    return _measured(value, low, high, n=n, method="percentile bootstrap")


def measure_by_reversed_percentiles(
    value: float, resampled: NDArray[np.float64], *, n: int, confidence: float
) -> Measured:
    """Return ``value``, which cannot be below 0, with the percentiles' distances from it put on the other side.

    For a value that chance alone lifts: resampling lifts it once more, by about as much, and this takes that lift off
    where percentiles would double it. The interval is cut at 0 and reaches to the value at least.
    """
    low, high = _percentiles(resampled, confidence)
    if high - low > _NO_WIDTH:
        low, high = max(0.0, min(value, 2 * value - high)), max(value, 2 * value - low)
    return _measured(value, low, high, n=n, method="reversed percentile bootstrap")


def check_resampling(n_resamples: int, seed: int) -> None:
    """Raise ValueError for too few resamples, for a seed that numpy does not take, and where one is no whole number."""
    if not isinstance(n_resamples, Integral) or n_resamples < _FEWEST_RESAMPLES:
        raise ValueError(
            f"n_resamples must be a whole number, at least {_FEWEST_RESAMPLES}, got {n_resamples}; the ends of an "
            "interval need 2000"
        )
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or above, got {seed}; 0 will do")


# Equal values come out of a matrix product equal to about this.
_NO_WIDTH = 1e-12


def _measured(value: float, low: float, high: float, *, n: int, method: str) -> Measured:
    if high - low <= _NO_WIDTH:
        reason = "no interval: every resample gave the same value"
        return Measured(value=value, low=None, high=None, n=n, method=reason)
    return Measured(value=value, low=low, high=high, n=n, method=method)


def _percentiles(resampled: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(resampled, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _weights(N: int, R: int, random: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Yield how often each resample holds each example, (r, N) at a time, R in all."""
    rows = max(1, 2**18 // N)                                 # 2 MiB at a time: counting stays within a core's cache
    for start in range(0, R, rows):
        r = min(rows, R - start)
        drawn = random.integers(N, size=(r, N)) + N * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * N).reshape(r, N).astype(np.float64)
