import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gpt_eval.roc import measure_mean_area, roc_area, roc_points

# Scores from a short list, so that ties are many.
SCORES = st.sampled_from([0, 0.1, 0.25, 0.5, 0.9, 1])
EXAMPLES = st.lists(st.tuples(SCORES, st.booleans()), min_size=2, max_size=40).filter(
    lambda examples: len({is_positive for _, is_positive in examples}) == 2
)


def arrays(examples):
    scores, is_positive = zip(*examples, strict=True)
    return np.array(scores, dtype=float), np.array(is_positive)


@given(EXAMPLES)
def test_the_area_is_mann_and_whitneys_share_of_pairs_ties_half(examples):
    scores, is_positive = arrays(examples)
    theirs = stats.mannwhitneyu(scores[is_positive], scores[~is_positive], method="asymptotic").statistic

    assert roc_area(scores, is_positive).value == pytest.approx(theirs / (is_positive.sum() * (~is_positive).sum()))


@given(EXAMPLES)
def test_an_example_moves_the_area_by_the_share_of_pairs_that_it_is_in_the_right_order_in(examples):
    scores, is_positive = arrays(examples)
    area = roc_area(scores, is_positive)
    for place, (score, positive) in enumerate(examples):
        others = [other for other, kind in examples if kind != positive]
        n_in_order = sum((score > other if positive else score < other) + (score == other) / 2 for other in others)
        n_alike = sum(kind == positive for _, kind in examples)
        expected = (n_in_order / len(others) - area.value) / n_alike
        assert area.influence[place] == pytest.approx(expected, abs=1e-12)


@given(EXAMPLES)
def test_the_curve_has_the_shares_above_each_score(examples):
    scores, is_positive = arrays(examples)
    false, true = roc_points(scores, is_positive)

    steps = [2.0, *sorted(set(scores.tolist()), reverse=True)]
    assert false.tolist() == pytest.approx([(scores[~is_positive] >= step).mean() for step in steps])
    assert true.tolist() == pytest.approx([(scores[is_positive] >= step).mean() for step in steps])


@given(EXAMPLES)
def test_turning_scores_and_classes_round_leaves_area_and_interval(examples):
    scores, is_positive = arrays(examples)
    one = measure_mean_area([roc_area(scores, is_positive)], confidence=0.95)
    other = measure_mean_area([roc_area(-scores, ~is_positive)], confidence=0.95)

    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
    assert 0 <= one.low <= one.value <= one.high <= 1


def test_the_variance_far_from_1_is_the_bootstraps():
    random = np.random.default_rng(0)
    positive, negative = random.normal(0.8, 1.5, 80), random.normal(0, 1, 120)
    is_positive = np.arange(200) < 80
    area = roc_area(np.concatenate([positive, negative]), is_positive)
    theirs = stats.bootstrap(
        (positive, negative),
        lambda a, b: (a[:, None] > b).mean(),
        vectorized=False, n_resamples=500, rng=random,
    )  # fmt: skip

    assert (area.influence @ area.influence) ** 0.5 == pytest.approx(theirs.standard_error, rel=0.1)


def test_an_area_of_1_has_an_interval_that_more_examples_narrow():
    lows = []
    for n in (5, 50, 500):
        is_positive = np.arange(2 * n) < n
        measured = measure_mean_area([roc_area(is_positive.astype(float), is_positive)], confidence=0.95)
        assert (measured.value, measured.high) == (1, 1)
        lows.append(measured.low)

    assert 0.5 < lows[0] < lows[1] < lows[2] < 1


@pytest.mark.parametrize(("area", "spread"), [(0.8, 1.0), (0.95, 1.0), (0.99, 0.5), (0.99, 1.0), (0.998, 1.0)])
def test_the_true_area_lies_in_its_interval_as_often_as_it_says_also_near_1(area, spread):
    random = np.random.default_rng(11)
    shift = stats.norm.ppf(area) * (1 + spread**2) ** 0.5
    is_positive = np.arange(300) < 75
    hits = 0
    for _ in range(300):
        scores = random.normal(0, 1, 300)
        scores[is_positive] = shift + spread * scores[is_positive]
        measured = measure_mean_area([roc_area(scores, is_positive)], confidence=0.95)
        hits += measured.low <= area <= measured.high

    assert hits / 300 > 0.91
