"""A file from an address: bounded, and there whole or not at all."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from gpt_train import DataError

_TIMEOUT = 60.0  # seconds without a byte


def import_requests() -> Any:
    """Return the module requests; ImportError that says how to install it."""
    try:
        import requests
    except ImportError as error:
        raise ImportError("downloading needs requests: install 'gpt-finetune[data]'") from error
    return requests


def fetch(url: str, *, most_bytes: int) -> bytes:
    """Return what ``url`` delivers.

    Raises what requests raises if it does not deliver all of it, DataError if that is more than ``most_bytes``.
    """
    pieces, size = [], 0
    # identity: a body compressed for its way could be a bomb
    with import_requests().get(
        url, stream=True, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}
    ) as response:
        response.raise_for_status()
        for piece in response.iter_content(2**16):
            size += len(piece)
            if size > most_bytes:
                raise DataError(f"{shown(url)} sends more than {most_bytes:,} bytes; give another address")
            pieces.append(piece)
    return b"".join(pieces)


def shown(url: str) -> str:
    """Return an address without what may be secret: user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def write_whole(path: Path, data: bytes) -> None:
    """Write the file, and the folders it lies in, under another name first, so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
