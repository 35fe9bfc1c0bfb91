"""Both judges against a real server that answers right, or with each of the faults."""

import json
import socket
import time

import pytest
from judge_server import (
    broken_off,
    cut_line,
    dripping,
    dripping_header,
    error_line,
    first,
    openai_saying,
    refusing,
    running,
    saying,
    scoring,
    silent,
    truncated,
)

from gpt_eval.exchange import Limits
from gpt_eval.judge import JudgeError
from gpt_eval.ollama import OllamaJudge, is_prompt_cut
from gpt_eval.openai_api import OpenAIJudge
from gpt_eval.scores import SCORE_SCHEMA

SHORT = Limits(connect=0.5, silence=0.3, total=0.8, n_bytes=10_000)
HI = [{"role": "user", "content": "hi"}]
KEY = "sk-very-secret-key"


def ollama(server, **settings):
    return OllamaJudge("llama3", url=server.url, limits=SHORT, **settings)


def openai(server, **settings):
    return OpenAIJudge("gpt", url=f"{server.url}/v1", api_key=KEY, limits=SHORT, **settings)


def test_ollama_is_asked_as_its_api_says():
    with running(scoring(80)) as server:
        reply = ollama(server, num_ctx=512, seed=7).ask(HI, schema=SCORE_SCHEMA)
    assert json.loads(reply.text) == {"score": 80}
    assert (reply.model, reply.n_prompt_tokens) == ("llama3", 300)
    assert not reply.is_prompt_cut
    assert not reply.is_reply_cut
    (body,) = server.bodies
    assert server.paths == ["/api/chat"]
    assert body["messages"] == HI
    assert body["format"] == SCORE_SCHEMA
    assert body["options"] == {"seed": 7, "temperature": 0, "num_ctx": 512, "num_predict": 1024}
    assert body["stream"] is True
    assert body["truncate"] is False


def test_openai_is_asked_as_its_api_says():
    with running(openai_saying('{"score": 80}')) as server:
        reply = openai(server, seed=7).ask(HI, schema=SCORE_SCHEMA)
    assert (reply.text, reply.model, reply.n_prompt_tokens) == ('{"score": 80}', "served", 200)
    (body,) = server.bodies
    assert server.paths == ["/v1/chat/completions"]
    assert (body["model"], body["seed"], body["temperature"], body["stream"]) == ("gpt", 7, 0, False)
    assert body["response_format"]["json_schema"]["schema"] == SCORE_SCHEMA
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_server_without_schemas_is_asked_without_and_only_once_with():
    def answer(handler):
        takes = "response_format" not in handler.body
        (openai_saying("85") if takes else refusing(400, b'{"error": {"message": "response_format"}}'))(handler)

    with running(answer) as server:
        judge = openai(server)
        assert [judge.ask(HI, schema=SCORE_SCHEMA).text for _ in range(3)] == ["85"] * 3
    assert ["response_format" in body for body in server.bodies] == [True, False, False, False]


def test_a_refusal_that_has_another_reason_is_told_and_the_schema_stays():
    with running(refusing(400, b'{"error": {"message": "too long"}}')) as server:
        judge = openai(server)
        for _ in range(2):
            with pytest.raises(JudgeError, match="400: too long"):
                judge.ask(HI, schema=SCORE_SCHEMA)
    assert ["response_format" in body for body in server.bodies] == [True, False] * 2


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503])
def test_a_fault_that_passes_is_told_where_the_request_without_a_schema_meets_it(status):
    answers = first(1, refusing(400, b'{"error": {"message": "response_format"}}'), refusing(status, "busy"))
    with running(answers) as server, pytest.raises(JudgeError, match=f"{status}: busy") as caught:
        openai(server).ask(HI, schema=SCORE_SCHEMA)
    assert caught.value.is_retryable


@pytest.mark.parametrize("judge", [ollama, openai])
def test_a_path_which_may_hold_a_key_is_asked_and_never_shown(judge):
    with running(refusing(500, "busy")) as server:
        placed = type(judge(server))("llama3", url=f"{server.url}/hunter2hunter2", limits=SHORT)
        with pytest.raises(JudgeError, match="500: busy") as caught:
            placed.ask(HI)
        assert server.paths[0].startswith("/hunter2hunter2/")
    assert placed.place == server.url
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "kind", "is_retryable", "message"),
    [
        (refusing(400, "too long"), "question", False, "400: too long"),
        (refusing(413, "too large"), "question", False, "413: too large"),
        (refusing(422, "no"), "question", False, "422: no"),
        (refusing(401, "no key"), "http", False, "401: no key"),
        (refusing(404, "model 'llama3' not found"), "http", False, "404: model 'llama3' not found"),
        (refusing(500, "out of memory"), "http", True, "500: out of memory"),
        (refusing(502, b"<!DOCTYPE html><html>"), "http", True, "502: a web page"),
        (refusing(500, b""), "http", True, "500: nothing"),
        (refusing(200, b"<html>proxy</html>"), "malformed", True, "a web page"),
        (refusing(200, b"[1]"), "malformed", True, "protocol"),
        (refusing(200, b"[" * 9000), "malformed", True, "protocol"),
        (refusing(200, b"x" * 20_000), "malformed", False, "more than 10,000 bytes"),
        (broken_off, "connection", True, "broke"),
        (silent, "time-out", True, "silent for 0.3 s"),
        (dripping(0.1), "time-out", True, "within 0.8 s"),
        (dripping_header, "time-out", True, "within 0.8 s"),
    ],
)
@pytest.mark.parametrize("judge", [ollama, openai])
def test_each_fault_has_its_kind(answer, kind, is_retryable, message, judge):
    with running(answer) as server:
        started = time.monotonic()
        with pytest.raises(JudgeError, match=message) as caught:
            judge(server).ask(HI)
    assert time.monotonic() - started < 5
    assert (caught.value.kind, caught.value.is_retryable) == (kind, is_retryable)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (truncated, "malformed", "ends before"),
        (cut_line, "malformed", "protocol"),
        (error_line, "http", "runner has unexpectedly stopped"),
        (refusing(200, b'{"message": "hi", "done": true}'), "malformed", "protocol"),
        (refusing(200, b'{"message": {"content": 5}, "done": true}'), "malformed", "no text"),
        (refusing(200, b'{"message": null, "done": 1}'), "malformed", "sends"),
        (refusing(200, b""), "malformed", "ends before"),
    ],
)
def test_what_ollama_streams_must_be_whole_and_its_protocol(answer, kind, message):
    with running(answer) as server, pytest.raises(JudgeError, match=message) as caught:
        ollama(server).ask(HI)
    assert (caught.value.kind, caught.value.is_retryable) == (kind, True)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 5}}]}', b'{"choices": [null]}', b"null"]
)
def test_what_openai_sends_must_be_its_protocol(body):
    with running(refusing(200, body)) as server, pytest.raises(JudgeError, match="not OpenAI's protocol"):
        openai(server).ask(HI)


@pytest.mark.parametrize("judge", [ollama, openai])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused_and_names_its_target(judge, status):
    target = "http://me:hunter2hunter2@169.254.169.254/latest/meta-data?x=hunter2hunter2"
    with running(refusing(status, b"", Location=target)) as server:
        with pytest.raises(JudgeError, match=r"redirects to http://169\.254\.169\.254,") as caught:
            judge(server).ask(HI)
        assert len(server.bodies) == 1
    assert (caught.value.kind, caught.value.is_retryable) == ("redirect", False)
    assert "hunter2" not in str(caught.value)


def test_a_redirect_to_another_server_never_reaches_it():
    with running(scoring()) as other, running(refusing(307, b"", Location=f"{other.url}/api/chat")) as server:
        with pytest.raises(JudgeError, match="redirects"):
            ollama(server).ask(HI)
        assert other.bodies == []


def test_nobody_listening_is_a_connection_that_may_come_back():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(JudgeError, match="cannot be reached") as caught:
        OllamaJudge(url=f"127.0.0.1:{port}", limits=SHORT).ask(HI)
    assert (caught.value.kind, caught.value.is_retryable) == ("connection", True)


def test_the_servers_wish_to_wait_is_kept():
    for headers, wait in [({"Retry_After": "7"}, 7), ({"retry_after_ms": "1500", "Retry_After": "7"}, 1.5)]:
        with running(refusing(429, "busy", **headers)) as server, pytest.raises(JudgeError) as caught:
            openai(server).ask(HI)
        assert (caught.value.wait, caught.value.is_retryable) == (wait, True)
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    with running(refusing(503, "busy", Retry_After=date)) as server, pytest.raises(JudgeError) as caught:
        openai(server).ask(HI)
    assert caught.value.wait == 0


def test_replies_at_the_limit_of_their_length_say_so():
    with running(saying("8", done_reason="length")) as server:
        assert ollama(server).ask(HI).is_reply_cut
    with running(openai_saying("8", finish_reason="length")) as server:
        assert openai(server).ask(HI).is_reply_cut
    with running(openai_saying(None)) as server:
        assert openai(server).ask(HI).text == ""


@pytest.mark.parametrize(
    ("n_tokens", "n_bytes", "is_cut"),
    [
        (300, 1200, False),
        (2048, 9000, True),     # newer servers cut to num_ctx exactly
        (2047, 9000, True),
        (1500, 6000, False),    # 4 bytes a token
        (1500, 12_000, True),   # older ones to between a half and the whole
        (20, 6000, False),      # the rest was in the server's cache
        (None, 6000, False),
        (None, 13_000, True),
    ],
)
def test_a_prompt_that_ollama_has_cut_is_found(n_tokens, n_bytes, is_cut):
    assert is_prompt_cut(n_tokens, n_bytes=n_bytes, num_ctx=2048) is is_cut
    with running(saying("8", prompt_eval_count=n_tokens)) as server:
        reply = ollama(server, num_ctx=2048).ask([{"role": "user", "content": "x" * n_bytes}])
    assert reply.is_prompt_cut is is_cut


def test_credentials_come_from_the_address_only_and_netrc_and_proxies_are_left_alone(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login evil password evil", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with running(scoring()) as server:
        ollama(server).ask(HI)
        OllamaJudge(url=server.url.replace("http://", "http://me:pass@"), limits=SHORT).ask(HI)
    assert [headers.get("Authorization") for headers in server.headers] == [None, "Basic bWU6cGFzcw=="]


def test_a_key_that_the_server_repeats_is_blotted_out():
    with running(openai_saying(f"{KEY} 85")) as server:
        assert openai(server).ask(HI).text == "*** 85"
    refusal = refusing(401, b'{"error": {"message": "Incorrect key: sk-very-secret-key."}}')
    with running(refusal) as server, pytest.raises(JudgeError, match=r"401: Incorrect key: \*\*\*\."):
        openai(server).ask(HI)


def test_keys_and_numbers_that_cannot_be_are_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="set OPENAI_API_KEY"):
        OpenAIJudge("gpt")
    with pytest.raises(ValueError, match="character that no key has") as caught:
        OpenAIJudge("gpt", api_key="sk-1\r\nX: y")
    assert "sk-1" not in str(caught.value)
    with pytest.raises(ValueError, match="num_ctx"):
        OllamaJudge(num_ctx=0)
    with pytest.raises(ValueError, match="silence must be above 0"):
        Limits(silence=0)
