"""One process a folder: an operating-system lock, which a process that dies gives back by dying."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from gpt_pretrain.errors import PretrainError

LOCK, OWNER = ".lock", ".lock-owner.json"
"""The locked file, and beside it who holds it: on Windows nobody else can read a locked file."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if missing) for this process; one that stays empty is removed again.

    Raises PretrainError naming the process that has it already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise PretrainError(
            f"{folder} is in use by {_owner(folder)}; wait for it, or choose another folder by --out"
        ) from None
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        (folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        is_bare = [path.name for path in folder.iterdir()] == [LOCK]
        with suppress(OSError):  # Windows cannot remove a file that is open: an empty folder stays there
            if is_bare:
                (folder / LOCK).unlink()
        lock.release()
        with suppress(OSError):
            if is_bare:
                folder.rmdir()


def is_lock_file(path: Path) -> bool:
    """Return whether ``path`` is what a lock leaves; a ``.lock`` with something in it is another program's."""
    return path.name == OWNER or (path.name == LOCK and path.stat().st_size == 0)


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just being written
        return "another process"
