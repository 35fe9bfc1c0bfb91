"""A real server on 127.0.0.1 with the protocols of Ollama and OpenAI, which answers right or with one of the faults."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Keeps the request and lets the server's ``answer`` deal with it."""

    server: JudgeServer
    body: dict[str, Any]
    place: int

    def do_POST(self) -> None:
        """Answer one question."""
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.counting:
            self.server.bodies.append(self.body)
            self.server.headers.append(dict(self.headers))
            self.server.paths.append(self.path)
            self.place = len(self.server.bodies) - 1
            self.server.sent.append(b"")
        with contextlib.suppress(OSError):  # the client has gone
            self.server.answer(self)

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send an answer whole."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.server.sent[self.place] = body

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


class JudgeServer(ThreadingHTTPServer):
    """Answers every question with ``answer`` and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.counting = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.sent: list[bytes] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are what is tested."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def exchanges(self) -> list[tuple[str, bytes]]:
        """Each request's question and what was sent to it, nothing where that was not sent whole."""
        return list(zip(self.questions, self.sent, strict=True))

    @property
    def questions(self) -> list[str]:
        """The text of the user's message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextlib.contextmanager
def running(answer: Answer) -> Iterator[JudgeServer]:
    """Run a server within the block."""
    server = JudgeServer(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def lines(handler: Handler, text: str, **last: Any) -> list[bytes]:
    """Return a reply as Ollama streams it: a line a word, and the last one with the counts."""
    head = {"model": handler.body["model"], "created_at": "2026-01-01T00:00:00Z"}
    words = [text[i : i + 5] for i in range(0, len(text), 5)]
    told = [{**head, "message": {"role": "assistant", "content": word}, "done": False} for word in words]
    end = {"message": {"role": "assistant", "content": ""}, "done": True}
    counts = {"done_reason": "stop", "prompt_eval_count": 300}
    return [json.dumps(one).encode() + b"\n" for one in [*told, {**head, **end, **counts, **last}]]


def saying(text: str | Callable[[str], str], **last: Any) -> Answer:
    """Reply as Ollama with the text, or with what the function makes of the question."""

    def answer(handler: Handler) -> None:
        said = text(handler.body["messages"][-1]["content"]) if callable(text) else text
        handler.send(200, b"".join(lines(handler, said, **last)))

    return answer


def scoring(score: int = 80) -> Answer:
    """Reply as Ollama with a score, as the schema demands."""
    return saying(json.dumps({"score": score}))


def refusing(status: int, body: bytes | str = b"", **headers: str) -> Answer:
    """Answer with a status; a text becomes Ollama's error."""
    data = json.dumps({"error": body}).encode() if isinstance(body, str) else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.send(status, data, named)


def truncated(handler: Handler) -> None:
    """End the stream before its last line."""
    handler.send(200, b"".join(lines(handler, '{"score": 80}')[:-1]))


def cut_line(handler: Handler) -> None:
    """End the stream within a line."""
    handler.send(200, b"".join(lines(handler, '{"score": 80}'))[:-40])


def broken_off(handler: Handler) -> None:
    """Promise more bytes than come."""
    handler.send(200, b'{"model":', {"Content-Length": "1000"})
    handler.close_connection = True


def error_line(handler: Handler) -> None:
    """Tell an error in the middle of the stream."""
    handler.send(200, lines(handler, "8")[0] + b'{"error": "model runner has unexpectedly stopped"}\n')


def silent(handler: Handler) -> None:
    """Accept the question and never answer."""
    time.sleep(30)


def dripping(seconds: float) -> Answer:
    """Send one token at a time, for ever, with so many seconds between."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(lines(handler, "8")[0])
            handler.wfile.flush()
            time.sleep(seconds)

    return answer


def dripping_header(handler: Handler) -> None:
    """Send the status line a byte at a time: a time-out of the socket never ends that."""
    for _ in range(1000):
        handler.wfile.write(b"H")
        handler.wfile.flush()
        time.sleep(0.05)


def first(n: int, answer: Answer, then: Answer) -> Answer:
    """Give ``answer`` to the first n requests and ``then`` to the others."""
    counted = iter(range(10**9))

    def chosen(handler: Handler) -> None:
        (answer if next(counted) < n else then)(handler)

    return chosen


def openai_saying(text: str | None, *, finish_reason: str = "stop") -> Answer:
    """Reply as OpenAI's API."""

    def answer(handler: Handler) -> None:
        message = {"role": "assistant", "content": text}
        told = {
            "id": "1", "object": "chat.completion", "created": 1, "model": "served",
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}],
            "usage": {"prompt_tokens": 200, "completion_tokens": 5, "total_tokens": 205},
        }  # fmt: skip
        handler.send(200, json.dumps(told).encode())

    return answer
