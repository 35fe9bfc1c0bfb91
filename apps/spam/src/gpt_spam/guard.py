"""Who may ask the server: the checks before a request is looked at, and the headers of every answer.

A web page elsewhere can make a browser talk to 127.0.0.1: under a name of its own that it lets point there
(DNS rebinding; Ollama's CVE-2024-28224) or by sending a form (CSRF). The first shows in ``Host``, the
second in ``Origin``; neither carries the token.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""The names under which a machine reaches itself, as they stand in the header ``Host``."""

_ANSWER_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class RequestError(ValueError):
    """A request that is answered with ``status`` and a sentence; ``field`` names the part at fault, if any."""

    def __init__(
        self, status: int, message: str, *, field: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.field = field
        self.headers = headers or {}

    def answer(self) -> JSONResponse:
        """Return {"error": {"message", "field"}}; the connection ends, for its request may be half read."""
        error = {"message": str(self), "field": self.field}
        return JSONResponse({"error": error}, self.status, {**self.headers, "Connection": "close"})


class Guard:
    """ASGI middleware: refuses a foreign ``Host`` (403), a foreign ``Origin`` (403) and a wrong token (401).

    ``allowed_hosts`` are names without a port, None for any. ``open_paths`` need no token: the page, which
    asks the person for it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_hosts: Collection[str] | None,
        token: str | None,
        open_paths: Collection[str],
    ) -> None:
        self._app = app
        self._allowed_hosts = None if allowed_hosts is None else {host.lower() for host in allowed_hosts}
        self._token = token
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_ANSWER_HEADERS)
            await send(message)

        try:
            self._check(Headers(scope=scope), scope["path"])
        except RequestError as error:
            await error.answer()(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _check(self, headers: Headers, path: str) -> None:
        host = headers.get("host", "").lower()
        if self._allowed_hosts is not None and _without_port(host) not in self._allowed_hosts:
            raise RequestError(
                403, f"this server does not answer as {host[:80]!a}; use one of {sorted(self._allowed_hosts)}"
            )
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{host}", f"https://{host}"):
                raise RequestError(403, f"a page of {origin[:80]!a} may not use this server; open its own page instead")
        if self._token is not None and path not in self._open_paths and not self._has_token(headers):
            raise RequestError(
                401,
                "this server needs its token in the header 'Authorization: Bearer TOKEN'",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _has_token(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Constant time: the time of the answer must not tell how much of a guess was right.
        is_equal = secrets.compare_digest(given.strip().encode(), (self._token or "").encode())
        return is_equal and scheme.lower() == "bearer"


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and (port.isdecimal() or not port) and (":" not in name or name.endswith("]")) else host
