import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_eval.agreement import measure_agreement

# Scores from a short list, so that ties are many.
PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=12).filter(
    lambda pairs: len({a for a, _ in pairs}) > 1 and len({b for _, b in pairs}) > 1
)


def agree(pairs, **more):
    return measure_agreement([a for a, _ in pairs], [b for _, b in pairs], **{"n_resamples": 100, **more})


def values(agreement):
    return [agreement.pearson.value, agreement.spearman.value, agreement.kendall.value]


def pearson_by_hand(pairs):
    mean_a, mean_b = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
    spread = math.hypot(*(a - mean_a for a, _ in pairs)) * math.hypot(*(b - mean_b for _, b in pairs))
    return math.fsum((a - mean_a) * (b - mean_b) for a, b in pairs) / spread


def ranks(scores):
    """Return each score's rank, equal ones sharing their mean rank."""
    return [sum(other < score for other in scores) + (scores.count(score) + 1) / 2 for score in scores]


def kendall_by_hand(pairs):
    signs = [
        ((a > c) - (a < c), (b > d) - (b < d)) for k, (a, b) in enumerate(pairs) for c, d in pairs[k + 1 :]
    ]  # fmt: skip
    untied = [sum(sign[judge] != 0 for sign in signs) for judge in (0, 1)]
    return sum(one * other for one, other in signs) / math.sqrt(untied[0] * untied[1])


def test_the_textbooks_numbers():
    # IQ and hours of television, the example of many texts on rank correlation: rho is -29 / 165.
    iq = [106, 86, 100, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 0, 27, 50, 28, 29, 20, 12, 6, 17]

    assert measure_agreement(iq, hours, n_resamples=100).spearman.value == pytest.approx(-29 / 165)


@settings(max_examples=15, deadline=None)
@given(PAIRS)
def test_every_value_is_the_one_written_by_hand(pairs):
    ranked = list(zip(*(ranks(column) for column in zip(*pairs, strict=True)), strict=True))

    expected = [pearson_by_hand(pairs), pearson_by_hand(ranked), kendall_by_hand(pairs)]
    assert values(agree(pairs)) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=6, deadline=None)
@given(PAIRS, st.randoms())
def test_the_order_of_items_changes_nothing(pairs, random):
    shuffled = random.sample(pairs, len(pairs))

    assert agree(pairs) == agree(shuffled)


@settings(max_examples=6, deadline=None)
@given(PAIRS)
def test_turning_one_judges_scale_round_turns_the_signs(pairs):
    turned = [(a, -b) for a, b in pairs]

    assert values(agree(turned)) == pytest.approx([-value for value in values(agree(pairs))], abs=1e-12)


def test_an_item_that_a_judge_did_not_score_is_left_out_and_counted():
    pairs = [(50, 40), (None, 90), (70, None), (None, None), (80, 90), (20, 40), (60, 65)]
    agreement = agree(pairs)
    scored = agree([pair for pair in pairs if None not in pair])

    assert (agreement.n, agreement.n_left_out) == (4, 3)
    assert (agreement.pearson, agreement.spearman, agreement.kendall) == (
        scored.pearson, scored.spearman, scored.kendall,
    )  # fmt: skip
    assert agreement.kendall.n == 4


def test_more_items_narrow_the_intervals_and_these_hold_the_values():
    pairs = [(k, (k * 7 + k % 5 * 11) % 60) for k in range(40)]
    few, many = agree(pairs), agree(pairs * 9)

    for field in ("pearson", "spearman", "kendall"):
        narrow, wide = getattr(many, field), getattr(few, field)
        assert narrow.value == pytest.approx(wide.value, abs=0.02)
        assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
        assert narrow.method == "percentile bootstrap"


def test_judges_of_one_mind_agree_wholly_and_no_interval_is_made_up():
    agreement = agree([(k, 2 * k + 5) for k in range(20)])

    assert values(agreement) == pytest.approx([1, 1, 1])
    assert (agreement.kendall.low, agreement.kendall.high) == (None, None)
    assert agreement.kendall.method == "no interval: every resample gave the same value"


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([], "a correlation needs 2 items with both scores, there are 0"),
        ([(None, 3), (4, None), (5, 5)], "a correlation needs 2 items with both scores, there are 1"),
        ([(7, 1), (7, 2), (7, 3)], "the first judge gave every item the score 7"),
        ([(1, 2.5), (2, 2.5), (3, None)], "the second judge gave every item the score 2.5"),
    ],
)
def test_where_no_correlation_is_defined_the_reason_stands_there(pairs, reason):
    agreement = agree(pairs)

    assert values(agreement) == [None] * 3
    assert agreement.spearman.method == reason
    assert agreement.n + agreement.n_left_out == len(pairs)


def test_the_seed_draws_the_resamples():
    pairs = [(k, k * k % 11) for k in range(11)]

    assert agree(pairs, seed=1) == agree(pairs, seed=1) != agree(pairs, seed=2)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_named_with_its_place(score):
    with pytest.raises(ValueError, match=rf"second\[1\] is {score}, but a score must be finite; pass None"):
        agree([(1, 2), (2, score)])


def test_lists_of_different_length_and_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="there are 2 first and 1 second scores"):
        measure_agreement([1, 2], [1])
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        agree([(1, 2), (2, 3)], confidence=95)
    with pytest.raises(ValueError, match="n_resamples must be a whole number, at least 100, got 5"):
        agree([(1, 2), (2, 3)], n_resamples=5)
