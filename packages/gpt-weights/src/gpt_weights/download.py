"""A file from the first of its addresses that delivers it: whole and verified, or not there at all.

It grows as NAME.part beside its place, goes on where it stopped after a broken connection or a killed process,
and gets its name by one rename when its size and its digest are right. NAME.lock lets one process at a time
fetch it. Another address is tried when one refuses, fails too often or sends something else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import requests
from filelock import FileLock

from gpt_weights.errors import WeightsError
from gpt_weights.part_file import CHUNK, PartFile
from gpt_weights.remote_file import RemoteFile, Timing
from gpt_weights.transfer import Progress, transfer
from gpt_weights.web_request import TransferError, open_session, shown

__all__ = ["Progress", "RemoteFile", "Timing", "fetch"]

_DEFAULT = Timing()
_jitter = random.Random()  # its own, so that a download leaves the caller's random numbers alone


def fetch(
    file: RemoteFile,
    folder: Path | str,
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
    headers: Mapping[str, str] | None = None,
    timing: Timing = _DEFAULT,
) -> Path:
    """Return ``folder / file.name``, fetched if it is not there or not as ``file`` says it must be.

    A good file costs no request. ``offline`` forbids any; None leaves it to HF_HUB_OFFLINE. ``progress`` is called
    with the name, the bytes there are and the bytes there will be (None: unknown) after each piece. ``headers``, a
    token for instance, are sent to the host of the first address only. Proxies come from HTTPS_PROXY and its
    like, certificates from REQUESTS_CA_BUNDLE or SSL_CERT_FILE.

    Raises FileNotFoundError if every address says 404, WeightsError if every one has another content than
    expected, else ConnectionError with what each said; OSError (ENOSPC) if the disk is too full. A file that was
    at the place, good or bad, is replaced by a good one only.
    """
    target = Path(folder) / file.name
    fault = _fault(target, file)
    if fault is None:
        return target
    if offline is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline:
        raise ConnectionError(
            f"{file.name} in {target.parent} {fault}, and no network is allowed: unset HF_HUB_OFFLINE or pass "
            f"offline=False to fetch it, or place it there by hand"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(f"{file.name}.lock")):
        if _fault(target, file) is not None:  # or else another process has fetched it meanwhile
            _fetch_from_any(file, target, headers or {}, timing, progress)
    return target


def _fault(path: Path, file: RemoteFile) -> str | None:
    """Return what is wrong with the file at ``path``; None if it is there as it must be."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, where the file {file.name} belongs; move it away")
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"has {size:,} bytes instead of {file.size:,}"
    if file.sha256 is not None:
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != file.sha256:
            return f"has the sha256 {found} instead of {file.sha256}"
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock, and remove its file at the end: inside on POSIX, outside on Windows.

    POSIX removes a file that is open. A process that had opened it just before then locks a file without a name,
    which filelock notices (3.24 and later), and opens the new one. Windows removes no file that another process
    has open, so nobody can be waiting for what is removed.
    """
    try:
        with FileLock(path):
            try:
                yield
            finally:
                if os.name != "nt":
                    path.unlink(missing_ok=True)
    finally:
        if os.name == "nt":
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _fetch_from_any(
    file: RemoteFile, target: Path, headers: Mapping[str, str], timing: Timing, progress: Progress | None
) -> None:
    said: dict[str, TransferError] = {}
    with PartFile(target, with_md5=file.sha256 is None) as part, open_session() as session:
        for url in file.urls:
            own = {} if session.should_strip_auth(file.urls[0], url) else headers
            try:
                _fetch_from(session, url, file, part, own, timing, progress)
            except TransferError as error:
                said[url] = error
            else:
                part.publish()
                return
    raise _failure(file, target, said)


def _fetch_from(
    session: requests.Session,
    url: str,
    file: RemoteFile,
    part: PartFile,
    headers: Mapping[str, str],
    timing: Timing,
    progress: Progress | None,
) -> None:
    """Try one address until the part is whole; TransferError when there is no hope left."""
    n_failed, furthest = 0, part.size
    while True:
        is_mixed = part.origin not in (None, url)
        try:
            transfer(session, url, file, part, headers=headers, timing=timing, progress=progress)
            return
        except TransferError as error:
            if error.is_wrong and is_mixed and part.size == 0:
                continue  # the older bytes may be the bad ones; now all come from here, so only once
            if part.size >= furthest + CHUNK:
                n_failed, furthest = 0, part.size
            n_failed += 1
            if n_failed >= min(error.tries, timing.tries):
                raise
            wait = error.wait
        if wait is None:
            wait = timing.backoff * 2 ** (n_failed - 1) * _jitter.uniform(0.5, 1.0)
        time.sleep(min(wait, timing.longest_wait))


def _failure(file: RemoteFile, target: Path, said: Mapping[str, TransferError]) -> Exception:
    words = "; ".join(f"{shown(url)}: {error}" for url, error in said.items())
    if all(error.status == 404 for error in said.values()):
        return FileNotFoundError(f"{file.name} does not exist at its source ({words})")
    if all(error.is_wrong for error in said.values()):
        return WeightsError(
            f"{file.name} is not stored, because its source has another content than expected ({words}); "
            f"try again later, or place the right file at {target} by hand"
        )
    return ConnectionError(
        f"cannot fetch {file.name} ({words}); check the network and HF_ENDPOINT, name a proxy in HTTPS_PROXY or "
        f"certificates in SSL_CERT_FILE or REQUESTS_CA_BUNDLE, or place the file by hand at {target}"
    )
