"""What is to be fetched, and with how much patience."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

# Names that Windows keeps for devices, with any extension, and what it forbids in a name.
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"/\\|?*]')


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file, where it lies in the network, and what is known of its content.

    Raises ValueError if ``name`` is not the plain name of a file on every system, an address is not http or
    https, or ``size`` or ``sha256`` cannot be one.
    """

    name: str
    """Its name in the folder it is fetched into."""

    urls: tuple[str, ...]
    """Where it is; the first is preferred, the others are mirrors."""

    size: int | None = None
    """Its length in bytes, if known."""

    sha256: str | None = None
    """Its digest as 64 small hexadecimal digits, if known."""

    def __post_init__(self) -> None:
        is_special = self.name in ("", ".", "..") or self.name[-1] in ". " or _FORBIDDEN.search(self.name)
        if is_special or _DEVICE.fullmatch(self.name.partition(".")[0].rstrip()):
            raise ValueError(f"{self.name!r} must be the plain name of a file, without folders, on every system")
        if not self.urls or isinstance(self.urls, str):
            raise ValueError(f"urls of {self.name} must be a tuple of at least one address, got {self.urls!r}")
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} must begin with http:// or https:// and name a host")
        if self.size is not None and self.size < 0:
            raise ValueError(f"size must be a number of bytes, got {self.size}")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 must be 64 small hexadecimal digits, got {self.sha256!r}")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long to wait and how often to try; raises ValueError if a value cannot be one."""

    timeout: float = 20.0
    """Seconds to wait for a connection, and for each next piece of an answer."""

    tries: int = 5
    """Failures in a row at one address before the next one's turn; 1 MiB more of the file starts the count anew."""

    backoff: float = 1.0
    """Seconds before the second try at most; doubled before each further one. The half is random."""

    longest_wait: float = 60.0
    """Seconds between two tries at most, whatever the server's Retry-After says."""

    slowest_rate: float = 1000.0
    """Bytes a second below which a transfer counts as stalled: a sixth of what a telephone modem brought."""

    window: float = 30.0
    """Seconds of waiting for bytes over which that rate is taken."""

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"tries must be at least 1, got {self.tries}")
        for name in ("timeout", "window"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds, got {getattr(self, name)}")
        for name in ("backoff", "longest_wait", "slowest_rate"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
