"""One POST to a judge, bounded in every way: time to connect, silence, time in all, bytes, and where it may lead.

Redirects are not followed: the address is the user's choice, and no answer may turn it to another host (SSRF).
"""

import email.utils
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from gpt_eval.address import Address
from gpt_eval.judge import JudgeError
from gpt_eval.terminal import printable

_PASSING = {408, 409, 425, 429}  # client errors that pass by themselves, as do all of 500 and above
_OF_QUESTION = {400, 413, 422}       # what was sent is refused, not whoever sent it
_SHORTEST_SECRET = 8             # shorter ones cannot be told from words


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may take."""

    connect: float = 10.0
    """Seconds until the connection stands."""

    silence: float = 120.0
    """Seconds without a byte: a large model is loaded and reads the prompt before its first word."""

    total: float = 300.0
    """Seconds from the start to the last byte, however steadily bytes come."""

    n_bytes: int = 2**20
    """Bytes of the answer."""

    def __post_init__(self) -> None:
        for name in ("connect", "silence", "total", "n_bytes"):
            value = getattr(self, name)
            if not 0 < value < threading.TIMEOUT_MAX:
                raise ValueError(f"{name} must be above 0 and finite, got {value}; {getattr(Limits, name)} is usual")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An HTTP answer, read whole."""

    status: int
    headers: Mapping[str, str]
    text: str


def post_json(
    address: Address, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str], secrets: Sequence[str],
    limits: Limits,
) -> Answer:
    """Send ``body`` as JSON to ``path`` below the address and return the answer, whatever its status.

    ``secrets`` are blotted out should the answer repeat them. Raises JudgeError if no whole answer comes within the
    limits, and for a redirect.
    """
    outcome: list[Answer | Exception] = []
    is_over = threading.Event()

    def work() -> None:
        try:
            outcome.append(_post(f"{address.url}{path}", address, body, headers, limits, is_over))
        except Exception as error:
            outcome.append(error)

    # A thread of its own: time-outs of sockets begin anew with each byte, and looking up a name has none at all.
    thread = threading.Thread(target=work, daemon=True)
    deadline = time.monotonic() + limits.total
    thread.start()
    while thread.is_alive() and (left := deadline - time.monotonic()) > 0:
        thread.join(min(left, 0.5))  # in parts: on Windows a longer one would hold Ctrl-C back
    if not outcome:
        is_over.set()
        raise JudgeError(
            f"{address} gave no whole answer within {limits.total:g} s", kind="time-out", is_retryable=True
        )
    answer = outcome[0]
    if isinstance(answer, requests.RequestException):
        raise _explained(address, answer, limits) from None  # its text may hold what the headers hold
    if isinstance(answer, Exception):
        raise answer
    text = answer.text
    for secret in (*secrets, address.password or ""):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return Answer(status=answer.status, headers=answer.headers, text=text)


def refusal(address: Address, answer: Answer) -> JudgeError:
    """Return the error for an answer whose status is not success, with the server's own words."""
    return JudgeError(
        f"{address} answers {answer.status}: {said_in(answer.text)}",
        kind="question" if answer.status in _OF_QUESTION else "http",
        is_retryable=answer.status in _PASSING or answer.status >= 500,
        wait=_wait(answer.headers),
    )


def said_in(text: str) -> str:
    """Return the error that a server's answer tells, as one short line."""
    try:
        told = json.loads(text)
        told = told["error"] if isinstance(told, dict) else None
        told = told.get("message") if isinstance(told, dict) else told
    except (ValueError, KeyError, RecursionError):
        told = None
    if isinstance(told, str):
        return excerpt(told)
    if text.lstrip().lower().startswith(("<!doctype", "<html")):
        return "a web page"
    return excerpt(text) if text.strip() else "nothing"


def excerpt(text: str, length: int = 200) -> str:
    """Return the beginning of a stranger's text as one line that a terminal only shows."""
    line = " ".join(printable(text[: 4 * length]).split())
    return line if len(line) <= length else line[:length] + "..."


class _Session(requests.Session):
    """Leaves redirects alone: requests would read the body of each, even if told not to go where it points."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return that there is none."""
        return


def _post(
    url: str, address: Address, body: Mapping[str, Any], headers: Mapping[str, str], limits: Limits,
    is_over: threading.Event,
) -> Answer:
    with _Session() as session:
        session.trust_env = not address.is_loopback
        session.verify = os.environ.get("SSL_CERT_FILE") or True
        with session.post(
            url,
            data=json.dumps(body).encode("ascii"),
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **headers},
            auth=(address.user, address.password or "") if address.user else _unchanged,
            stream=True,
            allow_redirects=False,
            timeout=(min(limits.connect, limits.total), min(limits.silence, limits.total)),
        ) as response:
            if 300 <= response.status_code < 400:
                raise _redirected(address, url, response)
            data = bytearray()
            for piece in response.iter_content(2**14):
                data += piece
                if is_over.is_set():
                    break  # nobody waits for it any more
                if len(data) > limits.n_bytes:
                    message = f"{address} sends more than {limits.n_bytes:,} bytes, which no score takes"
                    raise JudgeError(message, kind="malformed", is_retryable=False)
            names = {name.lower(): value for name, value in response.headers.items()}
            return Answer(status=response.status_code, headers=names, text=data.decode("utf-8", errors="replace"))


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Add no credentials: without an ``auth`` requests would take those that ~/.netrc has for the host."""
    return request


def _redirected(address: Address, url: str, response: requests.Response) -> JudgeError:
    try:
        parts = urlsplit(urljoin(url, response.headers.get("Location", "")))
        target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    except ValueError:
        target = "no address"
    message = f"{address} redirects to {excerpt(target)}, which is not followed; give the judge's own address"
    return JudgeError(message, kind="redirect", is_retryable=False)


def _explained(address: Address, error: requests.RequestException, limits: Limits) -> JudgeError:
    causes = list(_chain(error))
    if isinstance(error, requests.ConnectTimeout):
        message = f"{address} cannot be reached within {limits.connect:g} s"
        return JudgeError(message, kind="time-out", is_retryable=True)
    if isinstance(error, requests.Timeout) or any(isinstance(cause, TimeoutError) for cause in causes):
        message = f"{address} was silent for {min(limits.silence, limits.total):g} s"
        return JudgeError(message, kind="time-out", is_retryable=True)
    if isinstance(error, requests.exceptions.SSLError):
        reason = excerpt(str(causes[-1]))
        return JudgeError(f"TLS with {address} fails: {reason}", kind="connection", is_retryable=False)
    if isinstance(error, requests.exceptions.ChunkedEncodingError | requests.exceptions.ContentDecodingError):
        return JudgeError(f"{address} broke its answer off", kind="connection", is_retryable=True)
    if isinstance(error, requests.ConnectionError):
        system = [cause for cause in causes if isinstance(cause, OSError) and cause.strerror]
        reason = str(system[-1].strerror) if system else "no connection, or it was broken off"
        return JudgeError(f"{address} cannot be reached: {excerpt(reason)}", kind="connection", is_retryable=True)
    return JudgeError(f"{address} cannot be asked ({type(error).__name__})", kind="connection", is_retryable=False)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those it wraps, by any of the ways that requests, its parts and the language have."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        inner = (*error.args, getattr(error, "reason", None), error.__cause__, error.__context__)
        error = next((one for one in inner if isinstance(one, BaseException)), None)


def _wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the server asks to wait: retry-after-ms, or Retry-After as seconds or as a date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, OverflowError):
        return None
