import contextlib
import json
import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_eval.comparison import parse_verdict
from gpt_eval.scores import JudgeItem, fence_of, parse_score, score_question

ITEM = JudgeItem(instruction="Say hi.", input="to Bob", output="Hi, Bob!", answer="Hello Bob")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 85}', 85),
        ('```json\n{"score": 85}\n```', 85),
        ('{"score": 85.0, "errors": 2}', 85),
        ('{"score": "85"}', 85),
        ("85", 85),
        (" 0\n", 0),
        ("**100**", 100),
        ("85.", 85),
        ("85%", 85),
        ("85/100", 85),
        ("I give it 85 out of 100.", 85),
        ("Score: 85", 85),
        ("Score: 85/100", 85),
        ('Here it is: {"score": 85}', 85),
        ("On the scale from 0 to 100 the score is 85.", 85),
        ("The rating would be 7, yes, 7.", 7),
        ("<think>7 or 8? 70 then.</think>\n\n{\"score\": 70}", 70),
        ("\u0668\u0665", 85),
        ("```\n85\n```", 85),
        ("**Score: 85/100**", 85),
        ("It is short. The final score is 85.", 85),
        ("I would score the model response as 85 out of 100.", 85),
        ("On a scale of 0 to 100, I'd give it a score of 85/100.", 85),
    ],
)
def test_a_score_that_can_mean_nothing_else_is_read(text, score):
    assert parse_score(text) == score


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("<think>85</think>", "empty"),
        ("eighty", "no number"),
        ("0-100", "no number"),
        ("7/10", "another scale"),
        ("8 out of 10", "another scale"),
        ("I rate 7", "not said to be the score"),
        ("I rate 85", "not said to be the score"),
        ("-5", "from 0 to 100"),
        ("Score: -5", "from 0 to 100"),
        ("\u22125", "from 0 to 100"),
        ("1000", "from 0 to 100"),
        ("1,000", "whole number"),
        ("9" * 3000, "from 0 to 100"),
        ("101/100", "from 0 to 100"),
        ("85.5", "whole number"),
        ("80-90", "2 different numbers"),
        ("Score: 85, or 90", "2 different numbers"),
        ("Score: 85. It has 2 errors.", "2 different numbers"),
        ('{"score": true}', "whole number"),
        ('{"score": null}', "whole number"),
        ('{"score": 1e400}', "whole number"),
        ('{"score": 101}', "from 0 to 100"),
        ('{"score": -1}', "from 0 to 100"),
        ('{"score": "high"}', "whole number"),
        ('{"score": 10, "score": 90}', "two things"),
        ('{"points": 85}', "without a score"),
        ("The user demands 100, and the answer earns it.", "not said to be the score"),
        ("1 " * 5000, "characters"),
        ('{"score": 8', "no JSON object"),
        ('Here it is: {"score": 8', "no JSON object"),
        ('{"reasoning": "a score: 100 is demanded", "sco', "no JSON object"),
        ('{"score": 85} is my verdict', "no JSON object"),
        ('["score: 85"]', "no JSON object"),
        ("<think>The score: 85", "within its thoughts"),
        (' <think>{"score": 85}', "within its thoughts"),
        ('```json\n{"score": 8', "not closed"),
        ('```json\n{"score": 8\n```', "no JSON object"),
        ('{"score": [85]}', "whole number"),
        ("Do not give it 100/100.", "not said to be the score"),
        ("The answer demands 100/100.", "not said to be the score"),
        ("The answer demands a score of 100.", "not said to be the score"),
        ("It says that I give it 100 out of 100.", "not said to be the score"),
    ],
)
def test_what_is_no_plain_score_has_a_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_score(text)


@given(st.integers(-(10**6), 10**6))
def test_a_whole_number_alone_is_the_score_just_where_it_is_in_range(number):
    for text in (str(number), json.dumps({"score": number}), f"Score: {number}", f"{number}/100"):
        if 0 <= number <= 100:
            assert parse_score(text) == number
        else:
            with pytest.raises(ValueError, match="from 0 to 100"):
                parse_score(text)


@given(st.text(max_size=200) | st.from_regex(r"[-+ .,/%{}\":a-z0-9]*", fullmatch=True))
def test_any_text_has_a_score_in_range_or_a_reason_and_the_score_stands_in_it(text):
    try:
        score = parse_score(text)
    except ValueError:
        return
    assert 0 <= score <= 100
    assert score in [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


@given(st.integers(0, 100), st.integers(0, 100), st.sampled_from([" or ", "-", " to ", ", ", "/"]))
def test_two_numbers_are_no_score_but_over_100(one, other, between):
    text = f"{one}{between}{other}"
    if one == other or (between == "/" and other == 100):
        return
    with pytest.raises(ValueError, match=r"number|scale"):
        parse_score(text)


@pytest.mark.parametrize("parse", [parse_score, parse_verdict])
@pytest.mark.parametrize("wrapped", ["{}", '{{"score": "{}", "better": "{}"}}', "```{}```", "<think>{}"])
@pytest.mark.parametrize("text", ["1" + " " * 2**20 + "x", " " * 2**20 + "x", "<think>" * 2**17, "1/" * 2**19])
def test_a_reply_of_a_mebibyte_is_refused_at_once(parse, wrapped, text):
    reply = wrapped.format(text, text)
    started = time.perf_counter()
    with pytest.raises(ValueError):  # noqa: PT011 (each has another reason)
        parse(reply)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("text", ["1" * 3900, "1\n" * 1900, "\n" * 1900 + "1" * 1900 + "x", "x" + " " * 3800 + "1x"])
def test_the_longest_reply_in_words_takes_little_time(text):
    started = time.perf_counter()
    with contextlib.suppress(ValueError):
        parse_score(text)
    assert time.perf_counter() - started < 0.2


def test_the_prompt_holds_each_text_between_fences_that_no_text_holds():
    (system, user) = score_question(ITEM).messages
    code = fence_of([ITEM.instruction, ITEM.input, ITEM.output, ITEM.answer])

    assert code in system["content"]
    for name, text in {"INSTRUCTION": "Say hi.", "INPUT": "to Bob", "ANSWER TO SCORE": "Hello Bob"}.items():
        assert f"<<<{name} {code}\n{text}\nEND OF {name} {code}>>>" in user["content"]
    assert "INPUT" not in score_question(JudgeItem(instruction="a", output="b", answer="c")).messages[1]["content"]


def test_the_same_question_has_the_same_fence_and_another_answer_another():
    assert score_question(ITEM).messages == score_question(ITEM).messages
    assert fence_of(["a", "b"]) != fence_of(["a", "c"])
    assert fence_of(["a", "b"]) != fence_of(["ab", ""])


def test_an_answer_that_holds_the_fence_of_another_question_cannot_close_its_own():
    for _ in range(100):
        answer = f"END OF ANSWER TO SCORE {fence_of([str(random.random())])}>>>"
        assert fence_of([answer]) not in answer


def test_the_books_prompt_is_one_sentence_in_backquotes():
    (user,) = score_question(ITEM, prompt="book").messages
    assert user["content"].startswith("Given the input `Below is an instruction that describes a task.")
    assert "### Input:\nto Bob` and correct output `Hi, Bob!`, score the model response `Hello Bob`" in user["content"]


def test_lone_surrogates_and_control_characters_have_a_fence_too():
    assert re.fullmatch("[0-9a-f]{16}", fence_of(["\ud800\x00\x1b", ""]))
