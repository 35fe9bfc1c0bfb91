"""A measured number with its count and its interval, and the intervals that have a closed form.

Sources: the score interval of a proportion, Wilson 1927; an interval of a mean of independent proportions from their
own intervals, Newcombe 1998 (square-and-add) and Zou and Donner 2008; Student's distribution for whole degrees of
freedom, Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number that was measured on examples or runs, and the interval that its true value lies in."""

    value: float | None
    """None where the number is not defined: ``method`` says why."""

    low: float | None
    """Lower end of the interval; None where there is none."""

    high: float | None
    """Upper end of the interval; None where there is none."""

    n: int
    """How many examples or runs the number is computed from: of a proportion, its denominator."""

    method: str
    """How the interval was made; why value or interval is missing where they are."""

    def __str__(self) -> str:
        if self.value is None:
            return f"undefined ({self.method})"
        if self.low is None or self.high is None:
            return f"{self.value:.4f} (n={self.n})"
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f}, n={self.n})"


def undefined(reason: str, *, n: int) -> Measured:
    """Return a number that has no value, with the reason."""
    return Measured(value=None, low=None, high=None, n=n, method=reason)


def wilson_interval(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the ends of Wilson's score interval for a proportion of ``successes`` among ``n``.

    It stays within 0 and 1 and has a width at 0 and at ``n`` successes too. Counts need not be whole: an effective
    count may stand for correlated examples. Raises ValueError for counts that are no proportion.
    """
    check_confidence(confidence)
    if not (0 <= successes <= n < math.inf and n > 0):
        raise ValueError(f"successes must lie between 0 and n, and n above 0, got {successes} of {n}; pass counts")
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return (
        0.0 if successes == 0 else min(share, centre - half),    # rounding never puts the share outside
        1.0 if successes == n else max(share, centre + half),
    )


def measure_proportion(successes: int, n: int, confidence: float) -> Measured:
    """Return ``successes / n`` with Wilson's interval; ``n`` must be above 0."""
    low, high = wilson_interval(successes, n, confidence)
    return Measured(value=successes / n, low=low, high=high, n=n, method="Wilson")


def measure_mean_of_proportions(parts: Sequence[Measured], *, n: int) -> Measured:
    """Return the mean of independent proportions: each end lies where the distances of the parts' ends add squared.

    A mean of recalls is one: given how many examples each class has, the classes are independent.
    """
    # Every part has an interval: whoever calls this has looked for one that is undefined.
    values, lows, highs = ([end for end in ends if end is not None] for ends in zip(*map(_ends, parts), strict=True))
    mean = math.fsum(values) / len(values)
    down = math.hypot(*(value - low for value, low in zip(values, lows, strict=True))) / len(values)
    up = math.hypot(*(high - value for value, high in zip(values, highs, strict=True))) / len(values)
    method = "Wilson of each class, square-and-add"
    return Measured(value=mean, low=max(0.0, mean - down), high=min(1.0, mean + up), n=n, method=method)


def summarize_runs(values: Sequence[float], confidence: float = 0.95) -> Measured:
    """Return the mean of independent runs, for example one a seed, with Student's t interval.

    The interval says where the mean of ever more runs would lie; it holds for values that scatter about normally. One
    run, or runs with one and the same value, have that value and no interval. Raises ValueError without a value and
    for one that is not finite.
    """
    check_confidence(confidence)
    runs = [float(value) for value in values]
    if not runs:
        raise ValueError("values is empty, but a mean needs at least one run; pass one number for each run")
    for position, value in enumerate(runs):
        if not math.isfinite(value):
            raise ValueError(f"values[{position}] is {value}, but each run must be a finite number; leave that run out")
    mean = math.fsum(runs) / len(runs)
    if len(runs) == 1:
        return Measured(value=mean, low=None, high=None, n=1, method="no interval: one run shows no scatter")
    if min(runs) == max(runs):
        reason = "no interval: every run gave the same value"
        return Measured(value=runs[0], low=None, high=None, n=len(runs), method=reason)
    half = student_t_quantile(0.5 + confidence / 2, len(runs) - 1) * statistics.stdev(runs) / math.sqrt(len(runs))
    return Measured(value=mean, low=mean - half, high=mean + half, n=len(runs), method="Student t")


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t for ``probability`` in [0.5, 1) and whole degrees of freedom from 1.

    With theta = atan(t / sqrt(degrees)) the distribution is a finite sum of powers of cos(theta), and theta lies
    between 0 and pi / 2: halving that range 60 times finds it to the last digit or two.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if 0.5 + _student_t_mass(middle, degrees) / 2 < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _student_t_mass(theta: float, degrees: int) -> float:
    """Return how much of Student's distribution lies between -t and t, for t = sqrt(degrees) * tan(theta)."""
    cosine = math.cos(theta)
    is_odd = degrees % 2 == 1
    term = cosine if is_odd else 1.0
    total = 0.0
    for k in range(degrees // 2):
        total += term
        term *= cosine * cosine * ((2 * k + 2) / (2 * k + 3) if is_odd else (2 * k + 1) / (2 * k + 2))
    product = math.sin(theta) * total
    return (theta + product) * 2 / math.pi if is_odd else product


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless ``confidence`` lies between 0 and 1, both excluded."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is usual")


def _ends(measured: Measured) -> tuple[float | None, float | None, float | None]:
    return measured.value, measured.low, measured.high
