"""A folder that is there whole or not at all, whatever happens while it is written.

Write order: every file into ``NAME.tmp-PID`` beside the target, fsync of each, ``manifest.json`` with their
sizes and sha256, fsync of it and of the folders, rename to ``NAME``, fsync of the parent. A folder that is
replaced is first renamed to ``NAME.old-PID``, which readers take while there is no ``NAME``, and removed
last. What a dead writer left behind is ignored by readers and removed by the next writer of the same name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath

from safetensors import SafetensorError

MANIFEST = "manifest.json"
_MANIFEST_FORMAT = "manifest/1"
_LEFTOVER = re.compile(r"(.+)\.(tmp|old)-([0-9]{1,19})", re.DOTALL)


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, of another format or of another model; the message names the file."""


def publish_folder(target: Path, write: Callable[[Path], None], *, needed: int) -> None:
    """Let ``write`` fill a temporary folder, then make it ``target``, replacing an older checkpoint there.

    ``needed`` is the least number of bytes it will take, for the message when the disk is full. Whatever
    fails, the temporary folder is removed and what was at ``target`` is unchanged. Raises OSError with the
    operating system's ``errno`` if writing fails, CheckpointError if ``target`` holds anything else than a
    checkpoint.
    """
    target = target.resolve()
    if _LEFTOVER.fullmatch(target.name):
        raise CheckpointError(
            f"{target} cannot be a checkpoint: names like *.tmp-1 and *.old-1 mark leftovers"
        )
    tmp = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _clear_leftovers(target)
            _check_replaceable(target)
            tmp.mkdir()
            write(tmp)
            _write_manifest(tmp)
            _move_into_place(tmp, target)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
    except SafetensorError as error:  # its own class, which names the system's error in the text only
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise _explained(target, _errno_of(int(found[1])), str(error), needed) from error
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename is not None:
            reason += f": {error.filename}"
        raise _explained(target, error.errno or errno.EIO, reason, needed) from error


def existing_folder(folder: Path) -> Path | None:
    """Return the folder, or the older one that a writer killed between its renames left aside, or None."""
    if folder.is_dir():
        return folder
    asides = [path for path, kind, _ in _leftovers(folder.resolve()) if kind == "old"]
    return max(asides, key=lambda path: path.stat().st_mtime, default=None)


def verify_folder(folder: Path, *, digests: bool = True) -> frozenset[str]:
    """Return the names of the folder's files after comparing each with the manifest: its size and its sha256.

    ``digests=False`` compares the sizes only. Raises CheckpointError naming the first file that is missing,
    unreadable or different. Files that the manifest does not name are not looked at.
    """
    files = _read_manifest(folder)
    for name, (size, sha256) in files.items():
        path = folder / name
        try:
            if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
                raise CheckpointError(f"{path} is missing: the checkpoint is incomplete")
            found_size = path.stat().st_size
            if found_size != size:
                raise CheckpointError(
                    f"{path} is damaged: it has {found_size} bytes, its manifest says {size}"
                )
            found = _sha256(path) if digests else sha256
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        if found != sha256:
            raise CheckpointError(f"{path} is damaged: its sha256 is {found}, its manifest says {sha256}")
    return frozenset(files)


def remove_folder(folder: Path) -> None:
    """Remove a checkpoint so that it is there whole or, for every reader, not at all."""
    doomed = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_abandoned(parent: Path, names: re.Pattern[str]) -> None:
    """Remove what dead writers left in ``parent``: NAME.tmp-PID, a folder or a file, for each NAME that matches.

    Nothing happens if there is no such folder.
    """
    for path in list(parent.iterdir()) if parent.is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or match[2] != "tmp" or not names.fullmatch(match[1]):
            continue  # not of ours: a folder called backup.tmp-20240101, say
        if not _is_abandoned(path, int(match[3])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _check_replaceable(target: Path) -> None:
    """Raise CheckpointError unless replacing ``target`` loses nothing but an older checkpoint."""
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(
            f"{target} is a file; give the name of a folder that is new or holds a checkpoint"
        )
    files = (path for path in target.rglob("*") if not path.is_dir())
    # macOS's file manager leaves .DS_Store and ._NAME wherever it has looked.
    held = {
        path.relative_to(target).as_posix()
        for path in files
        if path.name != ".DS_Store" and not path.name.startswith("._")
    }
    own = {MANIFEST, "config.json", "model.safetensors", "tokenizer.json"}
    with contextlib.suppress(CheckpointError):
        own |= _read_manifest(target).keys()
    strangers = sorted(held - own)
    if strangers or (held and MANIFEST not in held):
        what = f"it holds {strangers[0]}" if strangers else f"it holds no {MANIFEST}"
        raise CheckpointError(f"{target} is not replaced, because {what}; choose another folder or empty it")


def _move_into_place(tmp: Path, target: Path) -> None:
    aside = target.with_name(f"{target.name}.old-{os.getpid()}") if target.exists() else None
    try:
        if aside is not None:
            target.rename(aside)
            _fsync_folder(target.parent)
        tmp.rename(target)
    except BaseException:
        if aside is not None and not target.exists():
            aside.rename(target)
        raise
    _fsync_folder(target.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _clear_leftovers(target: Path) -> None:
    """Remove what dead writers of ``target`` left, after putting back a checkpoint that one had set aside."""
    abandoned = [(path, kind) for path, kind, pid in _leftovers(target) if _is_abandoned(path, pid)]
    asides = sorted(
        (path for path, kind in abandoned if kind == "old"), key=lambda path: path.stat().st_mtime
    )
    if asides and not target.exists():
        asides[-1].rename(target)
        _fsync_folder(target.parent)
    for path, _ in abandoned:
        shutil.rmtree(path, ignore_errors=True)


def _leftovers(target: Path) -> Iterator[tuple[Path, str, int]]:
    """Yield (folder, "tmp" or "old", process id) of each writer's leftover of ``target``."""
    if not target.parent.is_dir():
        return
    for path in list(target.parent.iterdir()):
        match = _LEFTOVER.fullmatch(path.name)
        if match and match[1] == target.name and path.is_dir():
            yield path, match[2], int(match[3])


def _is_abandoned(path: Path, pid: int) -> bool:
    """Whether the process that writes ``path`` is gone; our own id means it was long ago."""
    if pid == os.getpid():
        return True
    if os.name == "nt":  # os.kill(pid, 0) would send Ctrl-C there; no write takes an hour
        return time.time() - path.stat().st_mtime > 3600
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _write_manifest(folder: Path) -> None:
    """Force every file to the disk, then the manifest of them, then the folders."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _fsync_file(path)
        files[path.relative_to(folder).as_posix()] = (path.stat().st_size, _sha256(path))
    (folder / MANIFEST).write_bytes(_manifest_bytes(files))
    _fsync_file(folder / MANIFEST)
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        _fsync_folder(path)


def _manifest_bytes(files: dict[str, tuple[int, str]]) -> bytes:
    entries = {name: {"size": size, "sha256": sha256} for name, (size, sha256) in sorted(files.items())}
    return (json.dumps({"format": _MANIFEST_FORMAT, "files": entries}, indent=2) + "\n").encode("ascii")


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Return {name: (size, sha256)}; CheckpointError unless the file is, byte for byte, as we write it."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        entries = json.loads(data)["files"]
        files = {name: (entry["size"], entry["sha256"]) for name, entry in entries.items()}
        is_ours = _manifest_bytes(files) == data
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise CheckpointError(f"{path} is damaged: it is not a manifest as gpt-core writes it")
    for name in files:
        if not _is_plain(name):
            raise CheckpointError(f"{path} is refused: {name!r} is not the name of a file inside the folder")
    return files


def _is_plain(name: str) -> bool:
    """Whether the name is a relative path without dots, drives or backslashes, on every system."""
    parts = name.split("/")
    return (
        not set(parts) & {"", ".", ".."} and not set(name) & set("\\:\0") and not PureWindowsPath(name).drive
    )


def _explained(target: Path, number: int, reason: str, needed: int) -> OSError:
    """Return an OSError (of the subclass that belongs to ``number``) whose text says what to do."""
    if number in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        free = "an unknown number"
        with contextlib.suppress(OSError):
            free = f"{shutil.disk_usage(target.parent).free:,}"
        reason = f"it needs at least {needed:,} bytes and {free} are free; free some or choose another disk"
    return OSError(number, f"cannot write the checkpoint {target}: {reason}")


def _errno_of(code: int) -> int:
    """Return the errno for the system's error code as Rust prints it: Windows has codes of its own."""
    if os.name != "nt":
        return code
    return OSError(None, "", None, code).errno or errno.EIO  # the fourth argument is such a code


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def force_to_disk(path: Path) -> None:
    """Return once the file's content, or the folder's names, are on the disk (Windows has no such call for folders)."""
    if path.is_dir():
        _fsync_folder(path)
    else:
        _fsync_file(path)


def _fsync_file(path: Path) -> None:
    with path.open("r+b") as file:  # writable, as Windows demands
        os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":  # it has no such call
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
