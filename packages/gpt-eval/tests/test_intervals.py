import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gpt_eval import Measured, summarize_runs, wilson_interval
from gpt_eval.intervals import measure_mean_of_proportions, measure_proportion, student_t_quantile


@given(n=st.integers(1, 3000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
def test_wilsons_interval_is_scipys(n, share, confidence):
    successes = round(share * n)
    theirs = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")

    assert wilson_interval(successes, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(n=st.integers(1, 10**9), share=st.floats(0, 1))
def test_wilsons_interval_holds_the_share_and_lies_within_0_and_1(n, share):
    successes = min(n, round(share * n))
    low, high = wilson_interval(successes, n)

    assert 0 <= low <= successes / n <= high <= 1
    assert low < high


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0), (math.nan, 5), (1, math.inf), (1, math.nan)])
def test_counts_that_are_no_share_are_refused(successes, n):
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.1, math.nan])
def test_a_confidence_outside_0_and_1_is_refused(confidence):
    with pytest.raises(ValueError, match=f"confidence must lie between 0 and 1, got {confidence}"):
        wilson_interval(1, 2, confidence)
    with pytest.raises(ValueError, match=f"got {confidence}"):
        summarize_runs([1.0, 2.0], confidence)


def test_a_mean_of_shares_has_the_true_one_in_its_interval_as_often_as_it_says_also_near_1():
    draws = np.random.default_rng(5)
    true, counts, hits = (0.985, 0.999), (40, 300), 0
    for _ in range(1000):
        parts = [measure_proportion(int(draws.binomial(n, p)), n, 0.95) for n, p in zip(counts, true, strict=True)]
        mean = measure_mean_of_proportions(parts, n=sum(counts))
        hits += mean.low <= sum(true) / 2 <= mean.high

    assert 0.93 < hits / 1000 < 0.99


def test_the_mean_of_one_share_is_that_share_with_wilsons_interval():
    one = measure_proportion(7, 9, 0.9)
    mean = measure_mean_of_proportions([one], n=9)

    assert (mean.value, mean.low, mean.high) == pytest.approx((one.value, one.low, one.high))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 30, 99, 1000])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.995, 0.99995])
def test_students_quantile_is_scipys(degrees, probability):
    theirs = stats.t.ppf(probability, degrees)

    assert student_t_quantile(probability, degrees) == pytest.approx(theirs, rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20).filter(lambda values: np.std(values) > 1e-6))
def test_runs_have_the_mean_and_the_interval_that_scipy_gives_them(values):
    runs = summarize_runs(values, 0.9)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.9)

    assert (runs.value, runs.n) == (pytest.approx(np.mean(values), abs=1e-6), len(values))
    assert (runs.low, runs.high) == pytest.approx((theirs.low, theirs.high), rel=1e-6, abs=1e-6)


def test_one_run_has_a_value_and_says_why_it_has_no_interval():
    run = summarize_runs([0.5])

    assert (run.value, run.low, run.high, run.n) == (0.5, None, None, 1)
    assert "one run" in run.method


@pytest.mark.parametrize("values", [[1, 1, 1], [0.1] * 3])
def test_runs_with_one_and_the_same_value_say_why_they_have_no_interval(values):
    runs = summarize_runs(values)

    assert (runs.value, runs.low, runs.high, runs.n) == (values[0], None, None, 3)
    assert runs.method == "no interval: every run gave the same value"


def test_no_run_and_a_run_that_is_not_finite_are_refused():
    with pytest.raises(ValueError, match="values is empty"):
        summarize_runs([])
    with pytest.raises(ValueError, match=r"values\[1\] is nan"):
        summarize_runs([0.5, math.nan])


def test_a_measured_number_reads_as_one_line():
    assert str(measure_proportion(8, 10, 0.95)) == "0.8000 (0.4902 to 0.9433, n=10)"
    assert str(summarize_runs([0.25])) == "0.2500 (n=1)"
    assert str(Measured(value=None, low=None, high=None, n=0, method="class 'a' has no example")) == (
        "undefined (class 'a' has no example)"
    )
