"""The book's three functions, with its signatures and its prompt, against a real server."""

import inspect
import os

import psutil
import pytest
from judge_server import error_line, first, running, saying, scoring, silent, truncated

from gpt_eval.book import check_if_running, generate_model_scores, query_model
from gpt_eval.exchange import Limits
from gpt_eval.judge import JudgeError

ENTRIES = [
    {"instruction": "Say hi.", "input": "to Bob", "output": "Hi, Bob!", "model_response": "Hello"},
    {"instruction": "Say bye.", "input": "", "output": "Bye!", "model_response": ""},
    {"instruction": "Say no.", "input": "", "output": "No!", "model_response": "Nope"},
]


def test_signatures_begin_as_the_books():
    first_ones = [
        (query_model, ["prompt", "model", "url"], ["llama3", "http://localhost:11434/api/chat"]),
        (generate_model_scores, ["json_data", "json_key", "model"], ["llama3"]),
        (check_if_running, ["process_name"], []),
    ]
    for function, names, defaults in first_ones:
        parameters = list(inspect.signature(function).parameters.values())[: len(names)]
        assert [one.name for one in parameters] == names
        assert [one.default for one in parameters if one.default is not inspect.Parameter.empty] == defaults


def test_query_model_asks_with_the_books_options_and_joins_the_stream():
    with running(saying("Llamas eat grass.")) as server:
        assert query_model("What do Llamas eat?", url=f"{server.url}/api/chat") == "Llamas eat grass."
    (body,) = server.bodies
    assert server.paths == ["/api/chat"]
    assert body["model"] == "llama3"
    assert body["messages"] == [{"role": "user", "content": "What do Llamas eat?"}]
    assert {"seed": 123, "temperature": 0, "num_ctx": 2048}.items() <= body["options"].items()
    assert body["options"]["num_predict"] >= 2048  # no limit but the context's, as in the book


@pytest.mark.parametrize("answer", [error_line, truncated, silent])
def test_query_model_does_not_take_a_fault_for_a_reply(answer):
    with running(answer) as server, pytest.raises(JudgeError):
        query_model("hi", url=f"{server.url}/api/chat", limits=Limits(silence=0.2, total=1))


@pytest.mark.parametrize(
    ("last", "what"), [({"done_reason": "length"}, "reply was cut"), ({"prompt_eval_count": 2048}, "prompt was cut")]
)
def test_what_the_context_cut_is_no_reply_and_no_score(last, what, capsys):
    with running(saying("85", **last)) as server:
        with pytest.raises(JudgeError, match=f"{what}.*2,048 tokens"):
            query_model("hi", url=server.url)
        assert generate_model_scores(ENTRIES, "model_response", url=server.url) == [None, 0, None]
    assert what in capsys.readouterr().out


def test_scores_keep_their_place_where_a_reply_has_none(capsys):
    with running(first(1, scoring(85), saying("eighty\x1b[31m"))) as server:
        assert generate_model_scores(ENTRIES, "model_response", url=server.url) == [85, 0, None]
    assert len(server.bodies) == 2
    printed = capsys.readouterr().out
    assert "Entry 3" in printed
    assert "eighty" in printed
    assert "\x1b" not in printed


def test_the_prompt_is_the_books_and_the_formatter_can_be_anothers():
    with running(scoring()) as server:
        generate_model_scores(ENTRIES[:1], "model_response", url=server.url)
        generate_model_scores(ENTRIES[:1], "model_response", url=server.url, format_input=lambda entry: "THIS")
    alpaca = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay hi.\n\n### Input:\nto Bob"
    )
    assert server.questions == [
        f"Given the input `{given}` and correct output `Hi, Bob!`, score the model response `Hello` on a scale from 0 "
        "to 100, where 100 is the best score. Respond with the integer number only."
        for given in (alpaca, "THIS")
    ]


def test_a_running_process_is_found_by_a_part_of_its_name():
    name = psutil.Process(os.getpid()).name()
    assert check_if_running(name[:4])
    assert not check_if_running("no such process, surely")
    with pytest.raises(TypeError):
        check_if_running(None)
