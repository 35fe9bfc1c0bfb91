"""Replies that were paid for are kept: a JSONL file that grows by one forced line a reply and survives kill -9.

A line: ``{"format": "judged/1", "key", "outcome": "answered" | "failed", "value", "reason", "reply", "model",
"n_prompt_tokens", "is_prompt_cut", "is_reply_cut"}``. The last line of a key counts. No line holds user, password or
path of an address.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from gpt_eval.file_lock import lock
from gpt_eval.judge import Reply

_FORMAT = "judged/1"
_START = f'{{"format": "{_FORMAT}", '.encode()


def reply_key(settings: Mapping[str, Any], question: Mapping[str, Any]) -> str:
    """Return the sha256 of what a reply depends on: the judge's settings and the question's key."""
    content = json.dumps([dict(settings), dict(question)], sort_keys=True)
    return hashlib.sha256(content.encode("ascii")).hexdigest()


class ReplyCache:
    """The replies of a file, and the file open for more and locked; without a path, kept in memory only."""

    def __init__(self, path: Path | None) -> None:
        """Read the file, which need not be there yet, and cut off a last line that a killed process left unfinished.

        Raises ValueError, naming file and line, for anything that is no such file; it is then left as it is. Raises
        OSError if it cannot be written, BlockingIOError (an OSError) while another process, or another cache of this
        one, has it open: two that write would ask twice, and one would cut the other's line off.
        """
        self._replies: dict[str, Reply] = {}
        self._file: BinaryIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            try:
                self._lock(path)
                torn_at = self._read(path)
                if torn_at is not None:
                    self._file.truncate(torn_at)
            except BaseException:
                self._file.close()
                raise

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __getitem__(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def keep(self, key: str, reply: Reply, *, value: int | str | None, reason: str | None) -> None:
        """Add a reply, with the value that was read from it or the reason why there is none."""
        self._replies[key] = reply
        told = asdict(reply)
        found = {"value": value, "reason": reason, "reply": told.pop("text"), **told}
        self._append({"key": key, "outcome": "answered", **found})

    def keep_failure(self, key: str, reason: str) -> None:
        """Add that there was no reply; it is for people to read, and the question will be asked again."""
        self._replies.pop(key, None)
        self._append({"key": key, "outcome": "failed", "reason": reason})

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"format": _FORMAT, **record}).encode("ascii") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def _lock(self, path: Path) -> None:
        assert self._file is not None
        try:
            lock(self._file)
        except BlockingIOError:
            raise BlockingIOError(
                f"{path} is in use as the cache of a judging that is still running; wait for its end, or name another "
                "file as cache"
            ) from None

    def _read(self, path: Path) -> int | None:
        """Take the file's replies and return where its last line begins if that is not finished, else None."""
        size = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                is_whole = line.endswith(b"\n")
                # Another file, given by mistake, must not lose its last line.
                if not line.startswith(_START) and (is_whole or not _START.startswith(line)):
                    raise _damaged(path, number)
                if not is_whole:
                    return size
                self._take(line, path, number)
                size += len(line)
        return None

    def _take(self, line: bytes, path: Path, number: int) -> None:
        try:
            told = json.loads(line)
            if told["outcome"] == "failed":
                self._replies.pop(told["key"], None)
                return
            names = ("model", "n_prompt_tokens", "is_prompt_cut", "is_reply_cut")
            self._replies[told["key"]] = Reply(text=str(told["reply"]), **{name: told[name] for name in names})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _damaged(path, number) from None


def _damaged(path: Path, number: int) -> ValueError:
    return ValueError(
        f"{path}:{number}: no reply as this program keeps them; remove that line, or name another file as cache"
    )
