"""lm-eval's results as a report: which interval a number has."""

import pytest

from gpt_eval.commands.harness import harness_report


def measured(metric, value, error):
    results = {"results": {"pets": {f"{metric},none": value, f"{metric}_stderr,none": error, "sample_len": 10}}}
    (figure,) = harness_report(results, {}).figures
    return figure.measured


def test_an_error_of_0_is_no_interval_without_a_width():
    found = measured("acc", 1.0, 0.0)
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert found.method == "no interval: lm-eval's standard error is 0"


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "exact_match"])
def test_the_interval_of_a_share_ends_at_0_and_1(metric):
    assert measured(metric, 0.9, 0.1).high == 1.0
    assert measured(metric, 0.1, 0.1).low == 0.0
    assert measured(metric, 0.5, 0.1).low == pytest.approx(0.5 - 1.96 * 0.1, abs=1e-4)


def test_what_is_no_share_keeps_its_interval():
    assert measured("bits_per_byte", 0.9, 0.1).high == pytest.approx(1.096, abs=1e-4)
    assert measured("bleu", 40.0, 1.0).high == pytest.approx(41.96, abs=1e-2)


def test_a_number_without_an_error_says_so():
    assert measured("acc", 0.5, "N/A").method == "no interval: lm-eval gives no standard error"
