"""How far a download is, for people: a line that grows on a terminal, one line a file elsewhere."""

from __future__ import annotations

import sys


class ProgressLine:
    """What ``fetch`` takes as ``progress``; it writes to stderr. Used as a context, it ends its last line."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._name, self._shown = "", ""

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal and self._name:
            print(file=sys.stderr)

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Write that ``done`` of ``total`` bytes (None: unknown) of a file are there, if that shows."""
        size = "size unknown" if total is None else f"{total / 1e6:,.1f} MB"
        shown = f"{100 * done // total:3} %" if total else f"{done // 2**20:,} MiB"
        if name == self._name and (shown == self._shown or not self._is_terminal):
            return
        begin = "\r" if name == self._name or not self._name else "\n\r"
        self._name, self._shown = name, shown
        if self._is_terminal:
            print(f"{begin}{name}: {shown} of {size}", end="", file=sys.stderr, flush=True)
        else:
            print(f"fetching {name}, {size}", file=sys.stderr, flush=True)
