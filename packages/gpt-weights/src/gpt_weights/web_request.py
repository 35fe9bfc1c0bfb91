"""One GET: proxies and certificates from the environment, redirects followed with care, failures in plain words."""

from __future__ import annotations

import email.utils
import os
import sys
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urljoin, urlsplit

import requests
import urllib3.exceptions

ONCE, FEW, MANY = 1, 2, sys.maxsize
"""How often a failure may happen at an address before the next one's turn; the caller's limit holds too."""

_MAX_REDIRECTS = 10
_PASSING = {408, 425, 429}  # client errors that pass by themselves, as do all of 500 and above


class TransferError(Exception):
    """An address did not deliver; the message says what it did, as a clause."""

    def __init__(
        self,
        message: str,
        *,
        tries: int,
        wait: float | None = None,
        status: int | None = None,
        is_wrong: bool = False,
    ) -> None:
        """Keep how often to try, the seconds the server wants between, its status, and if the content is bad."""
        super().__init__(message)
        self.tries = tries
        self.wait = wait
        self.status = status
        self.is_wrong = is_wrong


class _Session(requests.Session):
    """Leaves redirects to ``follow``: requests reads the body of each, even if told not to go where it points."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return that there is none."""
        return


def open_session() -> requests.Session:
    """Return a session that also knows SSL_CERT_FILE; REQUESTS_CA_BUNDLE goes before it."""
    session = _Session()
    session.verify = os.environ.get("SSL_CERT_FILE") or True
    return session


def follow(
    session: requests.Session, url: str, own: Mapping[str, str], headers: Mapping[str, str], *, timeout: float
) -> list[requests.Response]:
    """GET ``url`` with the headers ``own`` and ``headers`` and return the answers, redirects first.

    The last one's body is not read yet, the others' never: a redirect's body could be endless. ``own``, which may
    hold a secret, is left out from the first redirect to another host on. Raises TransferError if no answer comes,
    or only redirects do.
    """
    answers: list[requests.Response] = []
    while len(answers) <= _MAX_REDIRECTS:
        response = _get(session, url, {**own, **headers}, timeout)
        answers.append(response)
        if not response.is_redirect:
            return answers
        response.close()
        target = _redirect_target(url, response)
        if session.should_strip_auth(url, target):
            own = {}
        url = target
    raise TransferError(f"it redirects more than {_MAX_REDIRECTS} times, last to {shown(url)}", tries=ONCE)


def refusal(response: requests.Response) -> TransferError:
    """Return the error for an answer whose status is not success."""
    status = response.status_code
    message = f"it answers {status} {response.reason or ''}".rstrip()
    if status in (401, 403):
        message += " (is the file private or gated? set HF_TOKEN)"
    if status in _PASSING or status >= 500:
        return TransferError(message, tries=MANY, wait=_retry_after(response), status=status)
    return TransferError(message, tries=ONCE, status=status)


def shown(url: str) -> str:
    """Return the address without what may be secret in it: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def cause_of(error: BaseException) -> str:
    """Return what the innermost error says: libraries wrap the system's word in three or four of their own."""
    innermost = list(_chain(error))[-1]
    return str(innermost) or type(innermost).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those it wraps, by any of the ways that requests, urllib3 and the language have."""
    while error is not None:
        yield error
        inner = (*error.args, getattr(error, "reason", None), error.__cause__)
        error = next((e for e in inner if isinstance(e, BaseException)), None)


def _get(session: requests.Session, url: str, headers: Mapping[str, str], timeout: float) -> requests.Response:
    # Without this, an entry for the host in ~/.netrc would replace the caller's token.
    auth = _unchanged if any(name.lower() == "authorization" for name in headers) else None
    try:
        return session.get(url, headers=dict(headers), stream=True, allow_redirects=False, timeout=timeout, auth=auth)
    except requests.exceptions.SSLError as error:
        raise TransferError(f"TLS fails: {cause_of(error)}", tries=ONCE) from error
    except requests.exceptions.ConnectTimeout as error:
        raise TransferError(f"no connection within {timeout:g} s", tries=FEW) from error
    except requests.exceptions.ReadTimeout as error:
        raise TransferError(f"no answer within {timeout:g} s", tries=MANY) from error
    except requests.exceptions.ConnectionError as error:
        # An unknown name (DNS) and a closed port seldom pass by themselves.
        is_unreached = any(isinstance(e, urllib3.exceptions.NewConnectionError) for e in _chain(error))
        raise TransferError(f"no answer: {cause_of(error)}", tries=FEW if is_unreached else MANY) from error
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:  # a proxy or a bundle that cannot be, ...
        raise TransferError(f"no request: {cause_of(error)}".replace(url, shown(url)), tries=ONCE) from error


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _redirect_target(url: str, response: requests.Response) -> str:
    try:
        # http.client has read the header as latin-1, but addresses are in UTF-8 where they are not in ASCII.
        target = urljoin(url, response.headers["Location"].encode("latin-1").decode("utf-8"))
        parts = urlsplit(target)
    except ValueError as error:
        raise TransferError(f"it redirects to no address: {error}", tries=ONCE) from error
    is_downgrade = urlsplit(url).scheme == "https" and parts.scheme == "http"
    if parts.scheme not in ("http", "https") or not parts.hostname or is_downgrade:
        raise TransferError(f"it redirects to {shown(target)}, which is refused", tries=ONCE)
    return target


def _retry_after(response: requests.Response) -> float | None:
    """Return the seconds that the server asks to wait, given as such or as a date."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
