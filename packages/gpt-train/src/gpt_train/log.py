"""Metrics of a run as JSON lines: one object a step, readable while the run goes on and after any kill."""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpt_train.errors import DataError
from gpt_train.loop import StepReport


class MetricsLog:
    """Append step reports to ``path``, a line each, handed to the system at once.

    A new log refuses to overwrite one that has lines. With ``resume_step`` (the steps done at the
    checkpoint that is resumed) the lines after that step and a last line that was cut off are dropped
    first, in one atomic replacement. Both are a DataError where a line inside the file is damaged.
    """

    def __init__(self, path: Path | str, resume_step: int | None = None) -> None:
        self.path = Path(path)
        if resume_step is None:
            if self.path.exists() and self.path.stat().st_size:
                raise DataError(f"{self.path} has lines already; resume that run or choose another folder")
        elif self.path.exists():
            self._keep(resume_step)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8", newline="\n")

    def write(self, report: StepReport) -> None:
        """Write one line: step, tokens, train/loss, val/loss if evaluated, lr, grad_norm, tok_per_s."""
        record: dict[str, Any] = {"step": report.step, "tokens": report.tokens_seen}
        record["train/loss"] = report.loss
        if report.val_loss is not None:
            record["val/loss"] = report.val_loss
        record |= {
            "lr": report.lr, "grad_norm": report.grad_norm, "tok_per_s": round(report.tokens_per_second, 1)
        }
        # JSON has no NaN: what is not finite is written as null.
        record = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until the lines are on the disk: call it before a checkpoint, which counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._file.close()

    def _keep(self, step: int) -> None:
        kept = [line for line, record in _lines(self.path) if record["step"] <= step]
        temporary = self.path.with_name(f".{self.path.name}.tmp-{os.getpid()}")
        try:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Return the lines' objects in order, without a last line that is still being written or was cut off.

    Raises DataError, naming file and line, if another line is damaged.
    """
    return [record for _, record in _lines(Path(path))]


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return each complete line with its object."""
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise DataError(f"{path}:{number} is no line of metrics; remove that line or the file")
        found.append((line, record))
    return found
