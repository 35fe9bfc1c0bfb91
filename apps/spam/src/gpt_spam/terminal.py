"""What reaches a person's terminal: lines on stderr, a bar while something runs, and no control characters."""

import os
import re
import shlex
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

# C0 and C1 control characters and DEL, but for newline and tab: a terminal obeys them (colours, cursor, clipboard).
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SECONDS_BETWEEN_LINES = 10.0


def printable(text: str) -> str:
    """Return ``text`` without the control characters that a terminal obeys; newlines and tabs stay."""
    return _CONTROL.sub("", text)


def say(text: str) -> None:
    """Print a line to stderr, where progress goes."""
    print(printable(text), file=sys.stderr, flush=True)


def counted(n: int, what: str) -> str:
    """Return the number with its noun: "1 text", "2,000 texts"."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def command_line(*arguments: str) -> str:
    """Return a command of this app that can be pasted into a shell, of POSIX or Windows."""
    program = "uv run gpt-spam" if "UV_RUN_RECURSION_DEPTH" in os.environ else "gpt-spam"
    quoted = subprocess.list2cmdline(arguments) if os.name == "nt" else shlex.join(arguments)
    return f"{program} {quoted}"


class Progress:
    """Shows how far ``n_steps`` have come: a bar on a terminal, elsewhere a line now and then. A context manager."""

    def __init__(self, what: str, n_steps: int) -> None:
        self._what, self._n_steps = what, n_steps
        self._started = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar, self._task = self._make_bar()

    def update(self, step: int, loss: float) -> None:
        """Show that ``step`` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=loss)
            return
        now = time.monotonic()
        if step == 1 or step == self._n_steps or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (now - self._started) / step * (self._n_steps - step)
            say(f"{self._what}: step {step:,}/{self._n_steps:,}  loss {loss:.3f}  {left:,.0f} s left")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            say(text)
        else:
            self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _make_bar(self) -> tuple[Any, Any]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            TextColumn(self._what),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
        )
        return bar, bar.add_task("", total=self._n_steps, loss=float("nan"))

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
