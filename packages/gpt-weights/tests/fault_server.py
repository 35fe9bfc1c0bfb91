"""A real HTTP server on 127.0.0.1 that answers as its script says: right, or with one of the network's faults."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Lets the next answer of the server's script deal with the request."""

    protocol_version = "HTTP/1.1"
    server: FaultServer
    tally: list[int]

    def do_GET(self) -> None:
        self.close_connection = True
        with self.server.counting:
            self.server.requests.append((self.path, dict(self.headers)))
            self.tally, answer = self.server.tally, next(self.server.script)
        with contextlib.suppress(OSError):  # the client has gone
            answer(self)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_body(self, body: bytes, *, piece: int = 1 << 14, pause: float = 0.0) -> None:
        for start in range(0, len(body), piece):
            data = memoryview(body)[start : start + piece]
            with self.server.counting:  # before the client, which may have waited for this piece, can look
                self.tally[0] += len(data)
            self.connection.sendall(data)
            if pause:
                time.sleep(pause)

    def reset(self) -> None:
        """Break the connection with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class FaultServer(ThreadingHTTPServer):
    """Answers its requests with ``answers`` one after the other, the last one again and again.

    ``requests`` holds (path, headers) of each, ``sent`` is the number of bytes of all bodies.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, *answers: Answer, certificate: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.counting = threading.Lock()
        self.answer(*answers)
        self._scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self._scheme = "https"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, *answers: Answer) -> None:
        """Begin a new script and count anew."""
        with self.counting:
            self.requests: list[tuple[str, dict[str, str]]] = []
            self.tally = [0]  # a list, so that an answer of the old script goes on counting for the old one
            self.script = itertools.chain(answers[:-1], itertools.repeat(answers[-1])) if answers else iter(())

    @property
    def sent(self) -> int:
        return self.tally[0]

    def url(self, path: str = "/file") -> str:
        return f"{self._scheme}://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that resets the connection, or does not trust the certificate

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


def file_of(
    content: bytes,
    *,
    etag: str | None = '"one"',
    has_ranges: bool = True,
    headers: Mapping[str, str] | None = None,
    stops_at: int | None = None,
    resets: bool = True,
    piece: int = 1 << 14,
    pause: float = 0.0,
) -> Answer:
    """Answer with ``content`` or the range asked for; ``headers`` replace the right ones.

    ``stops_at`` ends the connection after so many bytes of the body, by RST if ``resets``. ``pause`` is the
    seconds after each ``piece`` bytes.
    """

    def answer(handler: Handler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        condition = handler.headers.get("If-Range")
        start, status, own = 0, 200, {} if etag is None else {"ETag": etag}
        if has_ranges and asked and condition in (None, etag):
            start, status = int(asked[1]), 206
            own["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if start >= len(content):
                handler.begin(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
                return
        body = content[start:]
        handler.begin(status, {**own, "Content-Length": str(len(body)), **(headers or {})})
        handler.send_body(body[:stops_at], piece=piece, pause=pause)
        if stops_at is not None and resets:
            handler.reset()

    return answer


def status_of(status: int, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer with a status and a short page."""
    return body_of(b"<html>sorry</html>", status=status, headers=headers)


def body_of(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer with ``body`` whatever is asked."""

    def answer(handler: Handler) -> None:
        handler.begin(status, {"Content-Length": str(len(body)), **(headers or {})})
        handler.send_body(body)

    return answer


def chunks_of(pieces: Iterable[bytes], *, headers: Mapping[str, str] | None = None, ends: bool = True) -> Answer:
    """Answer in chunks, without a length; not ``ends``: without the last, empty chunk."""

    def answer(handler: Handler) -> None:
        handler.begin(200, {"Transfer-Encoding": "chunked", **(headers or {})})
        for piece in pieces:
            handler.connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        if ends:
            handler.connection.sendall(b"0\r\n\r\n")

    return answer


def redirect_to(url: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer that the file is at ``url``."""
    return body_of(b"", status=302, headers={"Location": url, **(headers or {})})
