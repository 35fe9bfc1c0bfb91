"""What a person sees on stderr while a model trains: a bar on a terminal, now and then a line elsewhere."""

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gpt_pretrain.text_out import printable

if TYPE_CHECKING:
    from gpt_train import StepReport

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows the steps of a run; use as a context manager."""

    def __init__(self, *, max_steps: int, first_step: int) -> None:
        self._max_steps, self._first_step = max_steps, first_step
        self._started = time.monotonic()
        self._last_line = self._started
        self._rate = 0.0
        self._bar: Any = None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar, self._task = self._make_bar()

    def update(self, report: "StepReport") -> None:
        """Show one more step."""
        # A mean over about the last 20 steps: single steps jump about.
        rate = report.tokens_per_second
        self._rate = rate if self._rate == 0 else 0.95 * self._rate + 0.05 * rate
        if self._bar is not None:
            self._bar.update(self._task, completed=report.step, loss=report.loss, rate=self._rate)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES or report.step in (
            self._first_step + 1,
            self._max_steps,
        ):
            self._last_line = now
            left = (now - self._started) / (report.step - self._first_step) * (self._max_steps - report.step)
            say(
                f"step {report.step:,}/{self._max_steps:,}  loss {report.loss:.3f}  "
                f"{self._rate:,.0f} tokens/s  {left / 60:.1f} min left"
            )

    def say(self, text: str) -> None:
        """Print a line (or several) above the bar."""
        if self._bar is None:
            say(text)
        else:
            self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _make_bar(self) -> tuple[Any, Any]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("{task.fields[rate]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
        )
        task = bar.add_task("", total=self._max_steps, completed=self._first_step, loss=float("nan"), rate=0.0)
        return bar, task

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def say(text: str) -> None:
    """Print a line to stderr, where progress goes."""
    print(printable(text), file=sys.stderr, flush=True)
