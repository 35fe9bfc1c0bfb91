"""Where a judge is: an address from an argument or the environment, never from data, without the secrets in it.

What ``OLLAMA_HOST`` may be is Ollama's rule: host, :port, host:port, URL, IPv6, each with a path or without.
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

OPENAI = "https://api.openai.com/v1"
_PORTS = {"http": 80, "https": 443}
# A server listens there on every interface; a client that wants to reach it on every system takes the loopback's.
_CONNECTABLE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class Address:
    """An http or https address that paths are appended to; its text shows only scheme, host and port.

    User, password and path may be secrets: some services have the key in the path.
    """

    url: str = field(repr=False)
    """Scheme, host, port and path, without a slash at the end."""

    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, which no proxy leads to."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")


def ollama_address(url: str | None = None, *, environment: Mapping[str, str] = os.environ) -> Address:
    """Return the address of ``url``, or else of OLLAMA_HOST, or else 127.0.0.1:11434.

    The path /api/chat at the end, which the book's address has, is left out. Raises ValueError for what is no address.
    """
    name = "OLLAMA_HOST" if url is None else "url"
    value = (environment.get("OLLAMA_HOST", "") if url is None else url).strip()
    if "://" in value:
        address = _parsed(value, name, port=None)
    else:
        hostport, slash, path = value.partition("/")
        if hostport.startswith(":") and hostport.count(":") == 1:
            hostport = "127.0.0.1" + hostport
        elif hostport.count(":") > 1 and not hostport.startswith("["):
            hostport = f"[{hostport}]"  # IPv6 without the brackets that a port would need
        address = _parsed(f"http://{hostport or '127.0.0.1'}{slash}{path}", name, port=11434)
    return Address(address.url.removesuffix("/api/chat"), address.user, address.password)


def openai_address(url: str | None = None, *, environment: Mapping[str, str] = os.environ) -> Address:
    """Return the address of ``url``, or else of OPENAI_BASE_URL, or else OpenAI's own.

    Raises ValueError for what is no address.
    """
    name = "OPENAI_BASE_URL" if url is None else "url"
    value = (environment.get("OPENAI_BASE_URL", "") if url is None else url).strip() or OPENAI
    return _parsed(value, name, port=None)


def _parsed(value: str, name: str, *, port: int | None) -> Address:
    """Return the address; ``port`` is the default one, None that of the scheme.

    No message repeats the value: it may hold a password.
    """
    try:
        parts = urlsplit(value)
        host, given = parts.hostname or "", parts.port
    except ValueError as error:
        reason = "its port must be a number from 0 to 65535" if "ort" in str(error) else "its host cannot be read"
        raise ValueError(f"{name} is no address: {reason}; give one such as http://127.0.0.1:11434") from None
    if parts.scheme not in _PORTS:
        raise ValueError(
            f"{name} does not begin with http:// or https://, but a judge is asked over http or https; give one such "
            "as http://127.0.0.1:11434"
        )
    if not host or any(char.isspace() or not char.isprintable() for char in value) or "\\" in value:
        raise ValueError(f"{name} is no address: it has no host, or a blank in it; give one such as http://host:11434")
    if parts.query or parts.fragment:
        raise ValueError(f"{name} has a query or a fragment, but paths follow it; leave out what stands behind ? or #")
    host = _CONNECTABLE.get(host, host)
    shown = f"[{host}]" if ":" in host else host
    number = given if given is not None else port or _PORTS[parts.scheme]
    user, password = (None if text is None else unquote(text) for text in (parts.username, parts.password))
    return Address(f"{parts.scheme}://{shown}:{number}{parts.path.rstrip('/')}", user, password)
