"""The part of a file that has come so far: NAME.part, and NAME.part.json with what it is a part of.

Each piece is written unbuffered, so a killed process leaves all it had received. The note says whose bytes
they are: another process goes on with them only if the expected sha256 is the same, or if the same address
confirms that its content still has the same entity tag (RFC 9110, section 8.8.3).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

CHUNK = 1 << 20
"""Bytes held in memory at once."""

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_MIXED = "several addresses, or an earlier process"


@dataclass(frozen=True, kw_only=True)
class Note:
    """What the part is a part of, as far as it is known."""

    address: str
    """Digest of the address it came from: the address itself may hold a secret."""

    etag: str | None
    """The strong entity tag that the address gave."""

    md5: str | None
    """The md5 that the address announced for the whole file, hexadecimal."""

    sha256: str | None
    """The sha256 that the caller expected of the whole file."""


class PartFile:
    """The part of ``target``, open for writing at its end; one process at a time (the caller holds a lock).

    As a context manager it leaves the part for a later call, unless it is empty.
    """

    def __init__(self, target: Path, *, with_md5: bool) -> None:
        """Open or create the part; what there is already is read once, for the digests."""
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.note: Note | None = None
        self.origin: str | None = None  # the one address of all bytes; None if there are none
        self._note_path = target.with_name(f"{target.name}.part.json")
        self._with_md5 = with_md5
        self._needed: int | None = None
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        self._file: IO[bytes] = os.fdopen(descriptor, "r+b", buffering=0)
        self._forget()
        found = os.fstat(descriptor).st_size
        if found:
            self.note, self.origin = self._read_note(), _MIXED
            while self.size < found and (piece := self._file.read(CHUNK)):
                self._count(piece)

    @property
    def sha256(self) -> str:
        """The digest of what has come so far, hexadecimal."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """The digest of what has come so far, hexadecimal; the empty one without ``with_md5``."""
        return self._md5.hexdigest()

    def reserve(self, total: int) -> None:
        """Raise OSError (ENOSPC) unless the disk has room for a file of ``total`` bytes, with what is there of it."""
        self._needed = total
        if total - self.size > shutil.disk_usage(self.path.parent).free:
            raise self._full(errno.ENOSPC)

    def restart(self, url: str, note: Note) -> None:
        """Forget what there is and let the file begin anew, with bytes from ``url``."""
        with self._explaining_full_disk():
            if self.size:
                self._file.seek(0)
                self._file.truncate()
                os.fsync(self._file.fileno())  # or a power cut could leave the old bytes under the new note
            self._forget()
            self._note_path.write_text(json.dumps(asdict(note)) + "\n", encoding="ascii")
        self.note, self.origin = note, url

    def resume(self, url: str) -> None:
        """Let the bytes that follow come from ``url``."""
        if self.origin != url:
            self.origin = _MIXED

    def append(self, piece: bytes) -> None:
        """Write ``piece`` at the end; if the disk is full, remove the part and raise OSError saying how full."""
        with self._explaining_full_disk():
            rest = memoryview(piece)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._count(piece)

    def discard(self) -> None:
        """Remove what has come so far; the next bytes begin a new file."""
        self._note_path.unlink(missing_ok=True)
        if self.size:
            self._file.seek(0)
            self._file.truncate()
        self._forget()

    def publish(self) -> None:
        """Force the part to the disk and give it its good name, replacing what had it."""
        with self._explaining_full_disk():
            os.fsync(self._file.fileno())
        self._file.close()
        self.path.replace(self.target)
        self._note_path.unlink(missing_ok=True)
        if os.name != "nt":  # Windows cannot sync a folder
            descriptor = os.open(self.target.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            self._file.close()
            if self.size == 0:
                self._remove()

    def _forget(self) -> None:
        self.size = 0
        self.note = self.origin = None
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def _count(self, piece: bytes) -> None:
        self.size += len(piece)
        self._sha256.update(piece)
        if self._with_md5:
            self._md5.update(piece)

    def _remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)

    def _read_note(self) -> Note | None:
        try:
            content = json.loads(self._note_path.read_text(encoding="ascii"))
            is_note = all(value is None or isinstance(value, str) for value in content.values())
            return Note(**content) if is_note else None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # killed before it was written
            return None

    @contextlib.contextmanager
    def _explaining_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno is None or error.errno not in _FULL:
                raise
            self._file.close()
            self._remove()
            raise self._full(error.errno) from error

    def _full(self, number: int) -> OSError:
        room = shutil.disk_usage(self.path.parent).free + (self.size if self.path.exists() else 0)
        needed = "an unknown number of" if self._needed is None else f"{self._needed:,}"
        text = f"it needs {needed} bytes and {room:,} are free for it; free some or choose another folder"
        return OSError(number, f"cannot store {self.target}: {text}")
