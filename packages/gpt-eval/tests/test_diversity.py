from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_eval.diversity import cut_share, distinct_n, diversity_report, sequence_repetition
from gpt_eval.intervals import wilson_interval

ANSWERS = [["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "the", "cat", "the", "cat"], ["no"], []]


def test_distinct_n_on_a_case_counted_by_hand():
    # 1-grams: the cat sat on mat no: 6 of 13; 2-grams: 5 of the first, "cat the" of the second: 6 of 10.
    assert distinct_n(ANSWERS, 1).value == pytest.approx(6 / 13)
    assert distinct_n(ANSWERS, 1).n == 13
    assert distinct_n(ANSWERS, 2).value == pytest.approx(6 / 10)
    assert "depends on how many answers" in distinct_n(ANSWERS, 2).method


def test_repetition_on_a_case_counted_by_hand():
    # 2-grams that came before: 0 of 5, 3 of 5; the two short answers have none.
    measured = sequence_repetition(ANSWERS, 2)
    assert (measured.value, measured.n) == (pytest.approx(0.3), 2)
    assert 0 <= measured.low <= 0.3 <= measured.high <= 0.6


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 5))
def test_repetition_of_one_answer_is_the_count_of_ngrams_seen_before(answer, n):
    grams = [tuple(answer[i : i + n]) for i in range(max(0, len(answer) - n + 1))]
    repeats = sum(count - 1 for count in Counter(grams).values())
    measured = sequence_repetition([answer], n)
    assert measured.value == (pytest.approx(repeats / len(grams)) if grams else None)
    assert measured.low is None


def test_the_interval_does_not_depend_on_the_answers_order():
    random = np.random.default_rng(0)
    answers = [random.integers(6, size=size).tolist() for size in random.integers(5, 40, size=30)]
    assert sequence_repetition(answers, 2) == sequence_repetition(answers[::-1], 2)
    assert sequence_repetition(answers, 2) != sequence_repetition(answers, 2, seed=1)


def test_cut_answers_are_a_proportion_with_wilsons_interval():
    measured = cut_share([True, False, False, True, False])
    assert (measured.value, measured.n) == (0.4, 5)
    assert (measured.low, measured.high) == wilson_interval(2, 5)
    assert cut_share([]).value is None


def test_without_a_long_enough_answer_there_is_no_number_but_the_reason():
    for measured in (distinct_n([["a"]], 2), sequence_repetition([["a"]], 2), sequence_repetition([], 2)):
        assert (measured.value, measured.method) == (None, "no answer has 2 tokens")


def test_the_report_has_a_row_for_each_number():
    report = diversity_report(ANSWERS, {"checkpoint": "c"}, are_cut=[True] * 4, orders=(1, 3), unit="word", seed=5)
    assert [of.name for of in report.figures] == ["distinct-1", "distinct-3", "seq-rep-1", "seq-rep-3", "cut answers"]
    assert report.facts == {"checkpoint": "c", "n_answers": 4, "seed": 5, "n_resamples": 2000}
    assert "1-grams of words" in report.to_markdown()
    assert len(diversity_report(ANSWERS, {}).figures) == 6


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_a_bad_n_is_named(n):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
        distinct_n(ANSWERS, n)


def test_a_text_in_place_of_words_and_a_wrong_count_are_refused():
    with pytest.raises(ValueError, match="split it first"):
        distinct_n(["the cat"], 1)
    with pytest.raises(ValueError, match="one for each of 4 answers, got 1"):
        diversity_report(ANSWERS, {}, are_cut=[True])
