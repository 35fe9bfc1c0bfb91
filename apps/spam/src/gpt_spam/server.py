"""A page and a JSON interface in front of one classifier, for a person's own machine.

    GET  /          the page (and /page.css, /page.js, /page.svg)
    GET  /health    {"status": "ok", "model", "labels"}
    POST /classify  {"texts": ["...", ...]}
                    -> {"model", "results": [{"label", "probability", "probabilities", "n_tokens", "truncated"}, ...]}

An answer of 400 and above is {"error": {"message", "field"}}. The classifier runs in one thread, one request at
a time; the others wait in a queue of fixed length, and who finds it full gets 429.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import signal
import socket
import threading
from collections.abc import Callable, Collection
from importlib.resources import files
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from gpt_spam.classifier_queue import ClassifierQueue, SupportsClassify
from gpt_spam.deadlines import DeadlineProtocol
from gpt_spam.guard import LOOPBACK_HOSTS, Guard, RequestError
from gpt_spam.request_body import messages_in, read_body
from gpt_spam.terminal import counted

MAX_CONNECTIONS = 200
"""More are answered 503. Some systems give a process 256 files."""
MAX_HEADER_BYTES = 65_536
GRACE_SECONDS = 10
"""The time that running requests get to end after the signal to stop."""

_PAGE_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.svg": ("page.svg", "image/svg+xml"),
}


def create_app(
    classifier: SupportsClassify,
    *,
    name: str,
    allowed_hosts: Collection[str] | None = LOOPBACK_HOSTS,
    token: str | None = None,
    max_texts: int = 64,
    max_waiting: int = 16,
) -> FastAPI:
    """Return the web application; ``serve`` runs it, any ASGI server that sends lifespan events can.

    ``name`` is the model's name in the answers. ``allowed_hosts`` are the names (no port; IPv6 in brackets) that
    the header ``Host`` may hold, None for any; then a ``token`` must be given, without which every request but
    those for the page is refused. At most ``max_waiting`` requests wait while one is worked on.

    Raises ValueError for a number below its least or for any host without a token.
    """
    if max_texts < 1 or max_waiting < 0:
        raise ValueError(f"max_texts must be at least 1 and max_waiting 0, got {max_texts} and {max_waiting}")
    if allowed_hosts is None and token is None:
        raise ValueError("allowed_hosts=None lets any web page in by DNS rebinding; name the hosts or give a token")
    queue = ClassifierQueue(classifier, max_waiting=max_waiting)
    app = FastAPI(
        title="gpt-spam", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=queue.open
    )  # FastAPI's own pages of documentation load scripts from elsewhere
    app.add_middleware(Guard, allowed_hosts=allowed_hosts, token=token, open_paths=_PAGE_FILES)

    for path, (file, media_type) in _PAGE_FILES.items():
        app.add_api_route(path, _sender((files("gpt_spam") / file).read_bytes(), media_type), methods=["GET", "HEAD"])

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok", "model": name, "labels": list(classifier.labels)})

    @app.post("/classify")
    async def classify(request: Request) -> JSONResponse:
        body = await read_body(request)
        # In a thread: a megabyte of brackets takes tens of milliseconds, in which nobody else would be served.
        texts = await asyncio.to_thread(messages_in, body, max_texts=max_texts)
        return JSONResponse({"model": name, "results": await queue.classify(texts, request)})

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return error.answer()

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        message = f"{error.detail}: there are GET / and /health, and POST /classify"
        return RequestError(error.status_code, message, headers=dict(error.headers or {})).answer()

    return app


def serve(
    classifier: SupportsClassify,
    *,
    name: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    on_ready: Callable[[str], None] = print,
) -> None:
    """Serve the classifier until SIGTERM or Ctrl-C; then finish what runs, at most 10 seconds, and return.

    ``port`` 0 takes a free one. ``on_ready`` is called with the page's address once it can be opened. A ``host``
    that other machines can reach needs a ``token`` of 16 characters or more, which clients send as
    ``Authorization: Bearer TOKEN`` and the page asks for; the connection itself is not encrypted.

    Raises ValueError for such a host without a token, an unknown host, a bad token or a port outside 0 to 65,535,
    OSError if the address cannot be listened on.
    """
    if not 0 <= port <= 65_535:
        raise ValueError(f"port must lie between 0 (any free one) and 65535, got {port}")
    if token is not None and not re.fullmatch(r"[!-~]{16,}", token):
        raise ValueError(
            "the token must be at least 16 letters, digits or signs of ASCII without spaces; it has "
            + counted(len(token), "character")
        )
    _refuse_unknown(host)
    if token is None and not _is_loopback(host):
        raise ValueError(
            f"other machines can reach {host!r}, so it needs a token (gpt-spam serve takes it from GPT_SPAM_TOKEN); "
            "give one or serve on 127.0.0.1"
        )
    listener = _listen(host, port)
    with listener:
        own_name = "localhost" if _is_any_interface(host) else f"[{host}]" if ":" in host else host
        # Of all its interfaces a machine has more names than it knows; there the token alone keeps pages out.
        allowed_hosts = None if _is_any_interface(host) else {*LOOPBACK_HOSTS, own_name}
        app = create_app(classifier, name=name, allowed_hosts=allowed_hosts, token=token)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=DeadlineProtocol,
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                log_level="error",  # a line for every broken request would let strangers fill the log
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=GRACE_SECONDS,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            )
        )
        on_ready(f"http://{own_name}:{listener.getsockname()[1]}/")
        _run_until_signal(server, listener)


def _run_until_signal(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run the server; a signal that stopped it in good order does not stop the caller, too."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
        # Uvicorn takes these over while it runs, and afterwards raises what it caught once more.
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, server.handle_exit)
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_unknown(host: str) -> None:
    try:
        socket.getaddrinfo(host or None, 0)
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"the host {host!r} is unknown; give an address of this machine, such as 127.0.0.1") from error


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} of {host} is in use; choose another by --port"
        else:
            reason = (error.strerror or str(error)).partition(" (while")[0]  # Python names the address once more
            message = f"cannot serve on port {port} of {host}: {reason}; choose another by --port or --host"
        raise OSError(error.errno, message) from error
    # Every connection inherits it. An answer is two writes; without it the second waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_any_interface(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""


def _sender(content: bytes, media_type: str) -> Any:
    async def send_file() -> Response:
        return Response(content, media_type=media_type)

    return send_file
