import numpy as np
import pytest
from scipy import stats

from gpt_eval.bootstrap import measure_by_percentiles, measure_by_reversed_percentiles, resampled_means


def test_the_interval_of_a_mean_is_scipys_bootstrap():
    values = np.random.default_rng(0).exponential(size=200)
    ours = measure_by_percentiles(
        values.mean(), resampled_means(values[:, None], n_resamples=5000, seed=1)[:, 0], n=200, confidence=0.9
    )
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, confidence_level=0.9, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval

    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.01)    # of a width of 0.22


@pytest.mark.parametrize("N", [1, 7, 2**18 + 1])
def test_each_resample_draws_as_many_examples_as_there_are(N):
    means = resampled_means(np.ones((N, 1)), n_resamples=5, seed=0)

    assert means.shape == (5, 1)
    assert means == pytest.approx(1)


def test_columns_are_resampled_together():
    x = np.random.default_rng(0).normal(size=50)
    means = resampled_means(np.column_stack([x, 2 * x]), n_resamples=100, seed=0)

    assert means[:, 1] == pytest.approx(2 * means[:, 0])
    assert means[:, 0].std() == pytest.approx(x.std() / 50**0.5, rel=0.25)


def test_the_order_of_examples_changes_nothing_and_the_seed_does():
    columns = np.random.default_rng(0).integers(3, size=(60, 3)).astype(float)
    means = resampled_means(columns, n_resamples=100, seed=4)

    assert np.array_equal(means, resampled_means(columns[::-1], n_resamples=100, seed=4))
    assert not np.array_equal(means, resampled_means(columns, n_resamples=100, seed=5))


def test_where_no_resample_differs_there_is_no_interval_and_a_reason():
    for measure in (measure_by_percentiles, measure_by_reversed_percentiles):
        measured = measure(0.3, np.full(100, 0.3), n=9, confidence=0.95)
        assert (measured.value, measured.low, measured.high) == (0.3, None, None)
        assert "every resample" in measured.method


def test_reversed_percentiles_take_the_lift_off_stay_above_0_and_hold_the_value():
    lifted = np.linspace(0.2, 0.4, 1001)

    measured = measure_by_reversed_percentiles(0.25, lifted, n=9, confidence=0.9)
    assert (measured.low, measured.high) == pytest.approx((0.5 - 0.39, 0.5 - 0.21))
    measured = measure_by_reversed_percentiles(0.15, lifted, n=9, confidence=0.9)
    assert (measured.low, measured.high) == pytest.approx((0, 0.15))
