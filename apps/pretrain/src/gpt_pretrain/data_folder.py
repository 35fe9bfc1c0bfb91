"""A folder of prepared text: what stands in it, and what of it may be removed.

    FOLDER/tokenizer.json   train/*   val/*   prepare.json     (written last: without it nothing is whole)

While it is being written, ``prepare.json.unfinished`` stands there, which in the end becomes ``prepare.json``.
Nothing is removed where there is no such mark, nor anything of another name: a person's own files stay.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from gpt_pretrain.errors import PretrainError
from gpt_pretrain.lock import is_lock_file

TOKENIZER, SUMMARY = "tokenizer.json", "prepare.json"
UNFINISHED = ".unfinished"
"""What the name of a file ends in until all of it is written."""

_WRITTEN = (
    TOKENIZER,
    f".{TOKENIZER}.*.tmp",
    *(f"{side}/{name}" for side in ("train", "val") for name in ("shard-*.bin", ".shard.tmp-*")),
    "train",
    "val",
    SUMMARY,
    SUMMARY + UNFINISHED,
)
"""Patterns of all that is written, the mark last."""


def write_json(path: Path, values: object) -> None:
    """Write ``values`` as JSON: whole or not at all, on the disk when this returns."""
    temporary = path.with_name(path.name + UNFINISHED)
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def begin(folder: Path) -> None:
    """Make ``folder`` empty for writing and mark it as unfinished; the caller holds the lock.

    Raises PretrainError, with nothing changed, unless it is free (see ``check_free``).
    """
    check_free(folder)
    clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (SUMMARY + UNFINISHED)).touch()


def check_free(folder: Path) -> None:
    """Raise PretrainError unless ``folder`` is missing, empty, or only holds what a killed writer left."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise PretrainError(f"{folder} is a file, but shards need a folder; choose another by --out")
    if (folder / SUMMARY).exists():
        raise PretrainError(f"{folder} holds prepared text already; choose another folder by --out, or delete it")
    if found := foreign(folder):
        raise PretrainError(f"{folder} holds files of something else ({', '.join(found[:3])}); choose another by --out")


def foreign(folder: Path) -> list[str]:
    """Return the names of what is in ``folder``, unless a killed writer left it: without the mark, of everything."""
    if not (folder / (SUMMARY + UNFINISHED)).exists():
        return sorted(path.name for path in folder.iterdir() if not is_lock_file(path))
    ours = {path for pattern in _WRITTEN for path in folder.glob(pattern)}
    others = (path for path in folder.rglob("*") if path not in ours and not is_lock_file(path))
    return sorted(path.relative_to(folder).as_posix() for path in others)


def clear(folder: Path) -> None:
    """Remove what an unfinished writer left, and the folder if nothing else is in it; without the mark nothing."""
    if not (folder / (SUMMARY + UNFINISHED)).exists():
        return
    for pattern in _WRITTEN:
        for path in folder.glob(pattern):
            if path.is_dir():
                with suppress(OSError):  # not empty: something else is in it
                    path.rmdir()
            else:
                path.unlink()
    with suppress(OSError):
        folder.rmdir()
