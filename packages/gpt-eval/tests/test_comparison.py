"""Two models compared: by scores of the same items, and by a judge who sees both answers in both orders."""

import json
import re

import numpy as np
import pytest
from judge_server import refusing, running, saying
from scipy import stats

from gpt_eval.asking import Asked, Patience
from gpt_eval.comparison import (
    AnswerPair,
    Compared,
    answer_pairs,
    compare_answers,
    compare_scores,
    parse_verdict,
    summarize_comparison,
)
from gpt_eval.judging import Judged
from gpt_eval.ollama import OllamaJudge
from gpt_eval.scores import JudgeItem


def scored(name, score, answer="x"):
    item = JudgeItem(instruction=name, output="ok", answer=answer)
    return Judged(item=item, asked=Asked(outcome="unparsed" if score is None else "scored", value=score))


def pairs(*answers):
    return [
        AnswerPair(instruction=f"item {i}", output="ok", answer_a=a, answer_b=b) for i, (a, b) in enumerate(answers)
    ]


def answers_of(question):
    return [re.search(rf"<<<ANSWER {n} (\w+)\n(.*?)\nEND OF ANSWER {n} \1>>>", question, re.DOTALL)[2] for n in (1, 2)]


def longer_is_better(question):
    first, second = map(len, answers_of(question))
    return json.dumps({"better": "tie" if first == second else "1" if first > second else "2"})


def compared(server, of):
    return list(compare_answers(of, OllamaJudge(url=server.url), patience=Patience(retries=0, stop_after=2)))


def test_scores_pair_by_item_whatever_their_order_and_the_rest_is_counted():
    a = [scored("x", 10), scored("y", 50), scored("z", 90), scored("only a", 1), scored("w", None)]
    b = [scored("z", 90), scored("x", 30), scored("y", 40), scored("only b", 1), scored("w", 50)]
    found = compare_scores(a, b)
    assert found.difference.value == pytest.approx(10 / 3)
    assert (found.n_wins, found.n_ties, found.n_losses) == (1, 1, 1)
    assert (found.difference.n, found.n_without_score, found.n_unpaired) == (3, 1, 2)


def test_equal_items_pair_in_their_order():
    found = compare_scores([scored("x", 10), scored("x", 20)], [scored("x", 10), scored("x", 20), scored("x", 70)])
    assert (found.n_ties, found.n_unpaired) == (2, 1)


def test_the_interval_is_the_paired_one():
    rng = np.random.default_rng(0)
    of_a = rng.integers(0, 90, size=100)
    of_b = of_a + rng.integers(0, 11, size=100)
    found = compare_scores(
        [scored(str(i), int(score)) for i, score in enumerate(of_a)],
        [scored(str(i), int(score)) for i, score in enumerate(of_b)],
    ).difference
    theirs = stats.bootstrap((of_b - of_a,), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.1)    # 15 unpaired


def test_without_a_pair_the_difference_is_undefined():
    assert compare_scores([scored("x", 1)], [scored("y", 1)]).difference.value is None


def test_a_judge_who_reads_the_answers_is_consistent_in_both_orders():
    with running(saying(longer_is_better)) as server:
        results = compared(server, pairs(("a", "long"), ("long", "b"), ("one", "two"), ("same", " same")))
    assert [one.winner for one in results] == ["b", "a", "tie", "tie"]
    assert len(server.bodies) == 6          # equal answers are not asked
    found = summarize_comparison(results)
    assert (found.n_wins, found.n_ties, found.n_losses, found.n_inconsistent) == (1, 2, 1, 0)
    assert (found.win_rate.value, found.win_rate.n, found.first_place.value) == (0.5, 4, 0.5)


def test_a_judge_who_always_takes_the_first_place_makes_ties_and_is_found_out():
    with running(saying('{"better": "1"}')) as server:
        found = summarize_comparison(compared(server, pairs(("a", "b"), ("c", "d"))))
    assert (found.n_ties, found.n_inconsistent, found.win_rate.value) == (2, 2, 0.5)
    assert (found.first_place.value, found.first_place.n) == (1, 2)


def pair_with(first, second):
    asked = [
        Asked(outcome="unparsed" if value is None else "scored", value=value) for value in (first, second)
    ]
    (pair,) = pairs(("a", "b"))
    winner = None if None in (first, second) else "tie" if first == second else "a" if first == "1" else "b"
    return Compared(pair=pair, winner=winner, first=asked[0], second=asked[1])


def test_the_first_place_is_counted_where_both_orders_have_a_verdict():
    found = summarize_comparison([pair_with("1", "2"), *[pair_with("1", None)] * 3, pair_with("tie", "tie")])
    assert (found.first_place.value, found.first_place.n) == (0.5, 1)
    assert summarize_comparison([pair_with("1", None)]).first_place.value is None


def test_the_first_places_interval_is_a_bootstrap_over_pairs():
    rng = np.random.default_rng(0)
    verdicts = [("1", "1" if liked else "2") for liked in rng.random(100) < 0.3]
    found = summarize_comparison([pair_with(*of) for of in verdicts]).first_place
    shares = np.array([of.count("1") / 2 for of in verdicts])
    theirs = stats.bootstrap((shares,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert found.value == pytest.approx(shares.mean())
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.006)   # Wilson's of verdicts: 0.02 off


def test_pairs_without_two_verdicts_are_counted_and_in_no_share():
    with running(saying("the second, I think")) as server:
        found = summarize_comparison(compared(server, pairs(("a", "b"))))
    assert (found.n_without_verdict, found.win_rate.value, found.win_rate.n) == (1, None, 0)
    with running(refusing(404, "no")) as server:
        results = compared(server, pairs(*[(str(i), "b") for i in range(5)]))
        assert len(server.bodies) == 2
    assert [one.winner for one in results] == [None] * 5


def test_a_verdict_is_kept_for_the_next_run(tmp_path):
    of = pairs(("a", "long"))
    with running(saying(longer_is_better)) as server:
        for _ in range(2):
            (one,) = compare_answers(of, OllamaJudge(url=server.url), cache=tmp_path / "cache.jsonl")
            assert one.winner == "b"
        assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("text", "verdict"),
    [('{"better": "1"}', "1"), ('{"better": 2}', "2"), ("Tie.", "tie"), ("**2**", "2"), ("Answer 1", "1"),
     ("", None), ("1 or 2", None), ("3", None), ('{"winner": "1"}', None), ('{"better": "1", "better": "2"}', None),
     ("Answer 1 is worse", None), ("12", None), ("1" + " " * 120 + "is worse than 2", None),
     ('<think>1?</think>{"better": "2"}', "2"), ('<think>{"better": "1"}', None)],
)  # fmt: skip
def test_a_verdict_is_one_of_three_or_none(text, verdict):
    if verdict is None:
        with pytest.raises(ValueError, match="reply"):
            parse_verdict(text)
    else:
        assert parse_verdict(text) == verdict


def test_answers_of_two_files_become_pairs():
    a = [JudgeItem(instruction=name, output="ok", answer=f"a{name}") for name in "xyz"]
    b = [JudgeItem(instruction=name, output="ok", answer=f"b{name}") for name in "zyw"]
    found, n_unpaired = answer_pairs(a, b)
    assert [(pair.answer_a, pair.answer_b) for pair in found] == [("ay", "by"), ("az", "bz")]
    assert n_unpaired == 2
