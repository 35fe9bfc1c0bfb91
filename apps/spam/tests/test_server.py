"""The real server in a process of its own, asked by httpx and, for what no client would send, by raw sockets."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_spam.guard import RequestError
from gpt_spam.messages import SYNTHETIC
from gpt_spam.request_body import messages_in
from gpt_spam.run_folder import open_classifier
from gpt_spam.server import create_app, serve
from gpt_spam.synthetic import SYNTHETIC_NOTE


@dataclass(frozen=True)
class Running:
    url: str
    process: subprocess.Popen[str]
    log: Path


@contextlib.contextmanager
def running(*flags: str) -> Iterator[Running]:
    """Start tests/keyword_server.py, its errors in a file."""
    script = Path(__file__).with_name("keyword_server.py")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log.txt"
        with log.open("w", encoding="utf-8") as errors:
            command = [sys.executable, str(script), *flags]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8")
        with process:
            try:
                assert process.stdout is not None
                yield Running(process.stdout.readline().strip(), process, log)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def main_server() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def hasty_server() -> Iterator[str]:
    """Return the address of a server whose patience ends soon."""
    with running("--connection-seconds", "1.5", "--body-seconds", "0.7") as started:
        assert classified(started.url).status_code == 200  # until then few connections fit
        yield started.url


@pytest.fixture
def server(main_server: Running) -> str:
    return main_server.url


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=20) as made:
        yield made


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=15)


def everything(connection: socket.socket) -> bytes:
    """Return what comes until the server ends the connection, in whatever way it does."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65_536):
            received += data
    return received


def exchange(url: str, data: bytes) -> bytes:
    with connect(url) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        return everything(connection)


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /classify HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def length(body: bytes) -> str:
    return f"Content-Length: {len(body)}"


def classified(url: str, text: str = "hello") -> httpx.Response:
    return httpx.post(f"{url}classify", json={"texts": [text]}, timeout=20)


def test_classify_answers_one_result_a_text_in_order(client: httpx.Client) -> None:
    answer = client.post("/classify", json={"texts": ["spam for you", "good morning", "x " * 40]})
    assert answer.status_code == 200
    assert answer.json() == {
        "model": "keyword",
        "results": [
            {
                "label": "spam",
                "probability": 0.98,
                "probabilities": {"ham": pytest.approx(0.02), "spam": 0.98},
                "n_tokens": 3,
                "truncated": False,
            },
            {
                "label": "ham",
                "probability": 0.9996,
                "probabilities": {"ham": 0.9996, "spam": 0.0004},
                "n_tokens": 2,
                "truncated": False,
            },
            {
                "label": "ham",
                "probability": 0.9996,
                "probabilities": {"ham": 0.9996, "spam": 0.0004},
                "n_tokens": 40,
                "truncated": True,
            },
        ],
    }


def test_health_names_the_model_and_its_labels(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok", "model": "keyword", "labels": ["ham", "spam"]}


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/page.svg", "/health", "/nothing"])
def test_every_answer_forbids_foreign_content_and_frames(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/classify/", "/../server.py", "/%2e%2e/x"])
def test_other_paths_are_not_found(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith("Not Found")


def test_another_method_is_told_the_right_one(client: httpx.Client) -> None:
    answer = client.get("/classify")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


NOT_JSON = {
    "nothing": b"",
    "half": b'{"texts": ["a"',
    "two values": b'{"texts": ["a"]} {}',
    "not UTF-8": b'{"texts": ["\xff"]}',
    "UTF-16": '{"texts": ["a"]}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"texts": ["a"]}',
    "NaN": b'{"texts": NaN}',
    "infinity": b'{"texts": [-Infinity]}',
    "a field twice": b'{"texts": ["a"], "texts": ["b"]}',
    "a field twice inside": b'{"texts": [{"a": 1, "a": 1}]}',
    "deep lists": b"[" * 33 + b"]" * 33,
    "very deep lists": b"[" * 400_000,
    "very deep objects": b'{"a":' * 150_000,
    "a number of 10,000 digits": b'{"texts": ' + b"9" * 10_000 + b"}",
    "a raw newline": b'{"texts": ["a\nb"]}',
    "NUL": b'{"texts": ["a", "b\\u0000"]}',
    "half a pair": b'{"texts": ["\\ud83d"]}',
    "half a pair in a name": b'{"\\udc00": 1}',
    "brackets in an open string": b'{"texts": ["' + b"[" * 100,
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_strict_json_is_400(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/classify", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "field"}


def test_a_number_of_too_many_digits_is_told_in_words_for_the_client(client: httpx.Client) -> None:
    body = b'{"texts": [' + b"9" * 5_000 + b"]}"
    message = client.post("/classify", content=body, headers={"Content-Type": "application/json"}).json()["error"]
    assert message["message"].startswith("a number is too long")
    assert "sys." not in message["message"]


BAD_VALUES = [-1, 0, 10**18, 1e400, 0.5, True, None, {}, {"a": "b"}]
TEXT_IS_WRONG = [([text], "texts[0]") for text in [*BAD_VALUES, [], ["a"], "", " \n\t", "\u3000", "a" * 100_001]]
TEXTS_ARE_WRONG = [(texts, "texts") for texts in [*BAD_VALUES, [], "a", "", ["a"] * 65]]


@pytest.mark.parametrize(("texts", "field"), [*TEXT_IS_WRONG, *TEXTS_ARE_WRONG, (["a", "b", ""], "texts[2]")])
def test_a_bad_value_is_422_and_named(client: httpx.Client, texts: object, field: str) -> None:
    content = json.dumps({"texts": texts}).replace("Infinity", "1e400")
    answer = client.post("/classify", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == field
    assert field in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "texts"),
        ({"text": "a"}, "text"),
        ({"texts": ["a"], "n": 1}, "n"),
        ({"texts": ["a"], "\x1b[2J": 1}, "\x1b[2J"),
        (["a"], None),
        ("a", None),
        (7, None),
        (None, None),
    ],
)
def test_another_shape_is_422(client: httpx.Client, content: object, field: str | None) -> None:
    answer = client.post("/classify", content=json.dumps(content), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


def test_the_largest_allowed_texts_are_taken(client: httpx.Client) -> None:
    assert client.post("/classify", json={"texts": ["a" * 100_000] * 9}).status_code == 200
    assert client.post("/classify", json={"texts": ["a"] * 64}).status_code == 200


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "application/json; charset=x"]
)
def test_a_body_that_a_web_form_could_send_is_415(client: httpx.Client, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = client.post("/classify", content=b'{"texts": ["a"]}', headers=headers)
    assert answer.status_code == 415


def test_json_with_its_charset_is_taken_and_a_compressed_body_is_not(client: httpx.Client) -> None:
    body = b'{"texts": ["a"]}'
    headers = {"Content-Type": 'Application/JSON; charset="UTF-8"'}
    assert client.post("/classify", content=body, headers=headers).status_code == 200
    assert client.post("/classify", content=body, headers={**headers, "Content-Encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "", "a:b:1"]
)
@pytest.mark.parametrize("path", ["/", "/health", "/classify"])
def test_a_foreign_host_is_403(client: httpx.Client, host: str, path: str) -> None:
    assert client.get(path, headers={"Host": host}).status_code == 403
    assert client.get(path, headers={"Host": f"{host}:8000"}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:8000", "[::1]", "[::1]:8000"])
def test_loopback_names_are_answered(client: httpx.Client, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://localhost", "file://", "", "http://["]
)
def test_a_page_of_another_origin_is_403(client: httpx.Client, origin: str) -> None:
    headers = {"Host": "localhost:8000", "Origin": origin}
    assert client.post("/classify", json={"texts": ["a"]}, headers=headers).status_code == 403
    assert client.options("/classify", headers=headers).status_code == 403


def test_the_own_page_may_ask_behind_a_proxy_with_tls_too(client: httpx.Client) -> None:
    for origin in ("http://localhost:8000", "https://localhost:8000"):
        headers = {"Host": "localhost:8000", "Origin": origin}
        assert client.post("/classify", json={"texts": ["a"]}, headers=headers).status_code == 200


def test_with_a_token_only_the_page_is_open() -> None:
    token = "correct-horse-battery"
    with running("--token", token) as started, httpx.Client(base_url=started.url) as client:
        assert client.get("/").status_code == 200
        for wrong in ("", "Bearer", f"Basic {token}", f"Bearer {token}x", f"Bearer {token[:-1]}", token):
            answer = client.get("/health", headers={"Authorization": wrong})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert client.post("/classify", json={"texts": ["a"]}, headers={"Authorization": wrong}).status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert client.post("/classify", json={"texts": ["a"]}, headers=headers).status_code == 200
        assert client.get("/health", headers={**headers, "Origin": "https://evil.example"}).status_code == 403


class Unused:
    labels = ("ham", "spam")

    def classify(self, texts: Sequence[str]) -> list[None]:
        raise AssertionError


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.2"])
def test_an_address_that_others_can_reach_needs_a_token(host: str) -> None:
    with pytest.raises(ValueError, match=r"needs a token .*GPT_SPAM_TOKEN"):
        serve(Unused(), name="x", host=host, port=0)


@pytest.mark.parametrize("host", ["fe80::1%nosuch", "no..such.host"])  # known to be unknown without a network
@pytest.mark.parametrize("token", [None, "correct-horse-battery"])
def test_an_unknown_host_is_told(host: str, token: str | None) -> None:
    with pytest.raises(ValueError, match=f"the host '{host}' is unknown"):
        serve(Unused(), name="x", host=host, port=0, token=token)


def test_bad_arguments_are_refused() -> None:
    for port in (-1, 65_536):
        with pytest.raises(ValueError, match=f"got {port}"):
            serve(Unused(), name="x", port=port)
    with pytest.raises(ValueError, match=r"it has 1 character$"):
        serve(Unused(), name="x", port=0, token="x")
    for token in ("", "short", "with spaces in the middle", "ünïcödé-ünïcödé-ünïcödé"):
        with pytest.raises(ValueError, match="at least 16"):
            serve(Unused(), name="x", port=0, token=token)
    with pytest.raises(ValueError, match="DNS rebinding"):
        create_app(Unused(), name="x", allowed_hosts=None)
    with pytest.raises(ValueError, match="max_texts"):
        create_app(Unused(), name="x", max_texts=0)


def test_a_port_in_use_is_told(server: str) -> None:
    port = urlsplit(server).port or 0
    with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 is in use; choose another by --port$"):
        serve(Unused(), name="x", port=port)


def test_the_command_names_the_model_by_its_folder_and_tells_synthetic_texts(run: Path, tmp_path: Path) -> None:
    folder = open_classifier(run, device="cpu").save(tmp_path / "of-templates", provenance={"source": SYNTHETIC})
    code = "from gpt_spam.cli import main; main(['serve', '.', '--port', '0', '--device', 'cpu'])"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, encoding="utf-8") as process:
        watch = threading.Timer(120, process.kill)  # else a failure would wait for ever
        watch.start()
        try:
            assert process.stderr is not None
            assert process.stderr.readline().strip() == SYNTHETIC_NOTE
            url = process.stderr.readline().split()[4]
            assert httpx.get(f"{url}health", timeout=20).json()["model"] == "of-templates"
        finally:
            watch.cancel()
            process.kill()


def test_a_body_that_says_it_is_too_large_is_413_before_it_is_sent(server: str) -> None:
    for declared in ("1000001", "9" * 20):
        assert exchange(server, post(b"", f"Content-Length: {declared}")).startswith(b"HTTP/1.1 413")


def test_a_gigabyte_in_chunks_is_413_after_the_first_megabyte(server: str) -> None:
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    n_sent = 0
    with connect(server) as connection:
        connection.sendall(post(b"", "Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            while n_sent < 1e9:
                connection.sendall(chunk)
                n_sent += len(chunk)
        assert everything(connection).startswith(b"HTTP/1.1 413")
    assert n_sent < 50e6  # what the buffers of both ends take


def test_bytes_beyond_the_declared_length_are_not_read_as_a_body(server: str) -> None:
    answer = exchange(server, post(b'{"texts": ["a"]}, "spam"\r\n\r\n', "Content-Length: 16"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 400" in answer[10:]  # the rest is no request


BROKEN = {
    "HTTP/0.9": b"GET /\r\n\r\n",
    "noise": bytes(range(256)) * 10,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "no host, old": b"GET / HTTP/1.0\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "a header of 1 MB": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "a million headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 1_000_000 + b"\r\n",
    "an address of 1 MB": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a negative length": post(b"{}", "Content-Length: -1"),
    "two lengths": post(b"{}", "Content-Length: 2", "Content-Length: 3"),
    "a length of letters": post(b"{}", "Content-Length: two"),
    "chunks that are none": post(b"zz\r\n{}\r\n", "Transfer-Encoding: chunked"),
    "a chunk of all memory": post(b"f" * 30 + b"\r\n{}\r\n", "Transfer-Encoding: chunked"),
    "folded header": b"GET / HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n",
    "another service's address": b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", BROKEN.values(), ids=BROKEN)
def test_a_broken_request_is_refused_and_the_next_is_answered(server: str, request_bytes: bytes) -> None:
    answer = exchange(server, request_bytes)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")) or answer == b""
    assert classified(server).status_code == 200


def test_pipelined_requests_are_answered_in_order(server: str) -> None:
    bodies = [json.dumps({"texts": [text]}).encode() for text in ("ham", "spam", "ham")]
    end = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    received = exchange(server, b"".join(post(body, length(body)) for body in bodies) + end)
    assert received.count(b"HTTP/1.1 200") == 4
    labels = [part.split(b'"')[0] for part in received.split(b'"label":"')[1:]]
    assert labels == [b"ham", b"spam", b"ham"]


def test_an_upgrade_to_websocket_is_ignored(client: httpx.Client) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x" * 22 + "=="}
    assert client.get("/health", headers=headers).status_code == 200


def test_slow_clients_are_cut_off_and_do_not_delay_others(hasty_server: str) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(hasty_server)) for _ in range(60)]
        trickling = [stack.enter_context(connect(hasty_server)) for _ in range(60)]
        for connection in trickling:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A")
        slow_body = stack.enter_context(connect(hasty_server))
        slow_body.sendall(post(b'{"texts": ', "Content-Length: 16"))
        started = time.monotonic()
        assert classified(hasty_server).status_code == 200
        assert time.monotonic() - started < 1
        for connection in trickling:
            time.sleep(0.005)
            connection.sendall(b"a")  # a byte now and then does not win time
        answer = everything(slow_body)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 0.7 seconds" in answer
        assert [everything(connection) for connection in silent + trickling] == [b""] * 120
        assert time.monotonic() - started < 6


def test_too_many_connections_are_503_until_the_silent_ones_are_cut_off(hasty_server: str) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(hasty_server)) for _ in range(200)]
        assert classified(hasty_server).status_code == 503
        assert [everything(connection) for connection in silent] == [b""] * 200
        assert classified(hasty_server).status_code == 200


def test_who_does_not_read_the_answers_is_cut_off(hasty_server: str) -> None:
    requests = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
    with connect(hasty_server) as connection:
        outcome = "served"
        for _ in range(100_000):
            try:
                connection.sendall(requests)
            except ConnectionError:
                outcome = "cut off"
                break
        assert outcome == "cut off"
    assert classified(hasty_server).status_code == 200


def test_an_answer_does_not_wait_for_an_acknowledgement(client: httpx.Client) -> None:
    seconds = []
    for _ in range(20):
        started = time.monotonic()
        client.get("/health")
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 0.02  # the delay by Nagle's algorithm is 0.04 and more


def test_a_full_queue_is_429_at_once_and_every_answer_is_its_own(server: str) -> None:
    with ThreadPoolExecutor(31) as pool, httpx.Client(base_url=server, timeout=30) as client:

        def ask(k: int) -> tuple[httpx.Response, float]:
            started = time.monotonic()
            answer = client.post("/classify", json={"texts": [("spam " if k % 2 else "ham ") * (k + 1)]})
            return answer, time.monotonic() - started

        working = pool.submit(classified, server, "sleep 1.5")
        time.sleep(0.3)
        answers = list(pool.map(ask, range(30)))
        assert working.result().status_code == 200
        refused = [(answer, seconds) for answer, seconds in answers if answer.status_code == 429]
        assert len(refused) == 30 - 16
        assert {answer.headers["retry-after"] for answer, _ in refused} == {"1"}
        assert min(seconds for _, seconds in refused) < 0.5  # they did not wait for the others
        for k, (answer, _) in enumerate(answers):
            if answer.status_code != 429:
                result = answer.json()["results"][0]
                assert (result["label"], result["n_tokens"]) == ("spam" if k % 2 else "ham", k + 1)


def test_who_leaves_the_queue_gives_the_place_back(server: str) -> None:
    body = b'{"texts": ["sleep 9"]}'
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(classified, server, "sleep 1.5")
        time.sleep(0.3)
        for _ in range(16):
            with connect(server) as connection:
                connection.sendall(post(body, length(body)))
                time.sleep(0.02)
        time.sleep(0.2)
        assert classified(server).status_code == 200
        assert working.result().status_code == 200


def test_a_failing_classifier_is_500_and_logged_without_control_characters(main_server: Running) -> None:
    answer = classified(main_server.url, "explode \x1b]0;owned\x07\nline \x9b2J")
    assert answer.status_code == 500
    assert "owned" not in answer.text
    assert classified(main_server.url).status_code == 200
    log = main_server.log.read_text(encoding="utf-8")
    assert "owned" in log
    assert not [character for character in log if character != "\n" and not " " <= character <= "~"]
    assert log.count("\n") == 1  # nothing else is worth a line


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process can catch")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_lets_the_running_request_end(number: int) -> None:
    with running() as server, ThreadPoolExecutor(1) as pool, httpx.Client() as idle:
        idle.get(f"{server.url}health")  # a connection that is kept alive does not hold it up
        working = pool.submit(classified, server.url, "sleep 0.8")
        time.sleep(0.3)
        started = time.monotonic()
        server.process.send_signal(number)
        assert working.result().status_code == 200
        assert server.process.wait(timeout=5) == 0
        assert time.monotonic() - started < 3
        assert server.process.stdout is not None
        assert server.process.stdout.read() == "stopped\n"
        assert server.log.read_text(encoding="utf-8") == ""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["texts", "a"]) | st.text(), inner),
    max_leaves=12,
)


@given(json_values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_any_body_is_taken_or_refused_with_a_sentence(body: bytes) -> None:
    try:
        texts = messages_in(body, max_texts=64)
    except RequestError as error:
        outcome = error.answer()  # what it quotes can be written as UTF-8
    else:
        outcome = None
        assert json.loads(body) == {"texts": texts}
        assert all(isinstance(text, str) and text.strip() for text in texts)
    assert outcome is None or outcome.status_code in (400, 422)


@pytest.mark.parametrize("unit", [b'\\"', b'"', b'"",', b"[],", b"\\", b"{}", b"\\u0061"])
def test_the_time_for_a_megabyte_is_short_whatever_it_holds(unit: bytes) -> None:
    body = (b'{"texts": ["' + unit * 1_000_000)[:1_000_000]
    started = time.monotonic()
    with contextlib.suppress(RequestError):
        messages_in(body, max_texts=64)
    assert time.monotonic() - started < 3


def test_serving_beside_others_in_a_thread_needs_no_signals() -> None:
    addresses: list[str] = []
    ready = threading.Event()

    def on_ready(url: str) -> None:
        addresses.append(url)
        ready.set()

    thread = threading.Thread(
        target=serve, args=(Unused(),), kwargs={"name": "x", "port": 0, "on_ready": on_ready}, daemon=True
    )
    thread.start()
    assert ready.wait(10)
    assert httpx.get(f"{addresses[0]}health").status_code == 200
