"""What is known about a classifier: its numbers, as data, as JSON and as a page of Markdown."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from gpt_eval.intervals import Measured


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """How well one class is told from all others."""

    name: str
    n_examples: int
    """How many examples are of this class."""
    n_predicted: int
    """How many examples were called this class."""
    precision: Measured
    recall: Measured
    f1: Measured


@dataclass(frozen=True, kw_only=True)
class ClassificationReport:
    """A classifier's numbers on ``n`` examples; ``evaluate_classifier`` says how each is computed."""

    n: int
    classes: tuple[str, ...]
    positive: str | None
    """The class that precision, recall, F1 and the ROC area are about; None: they are means over all classes."""
    confidence: float
    """Of every interval: 0.95 for 95 %."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts: a row for each true class, a column for each predicted one."""
    accuracy: Measured
    balanced_accuracy: Measured
    precision: Measured
    recall: Measured
    f1: Measured
    roc_auc: Measured
    expected_calibration_error: Measured
    brier: Measured
    log_loss: Measured
    """In nats."""
    per_class: tuple[ClassScores, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as what JSON knows: dicts, lists, texts, numbers and None."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists
        return plain

    def to_markdown(self) -> str:
        """Return three tables: the numbers, the classes, and what was taken for what."""
        level = f"{100 * self.confidence:g} % interval"
        of = "mean over classes" if self.positive is None else f"of {_cell(self.positive)}"
        measured = {
            "accuracy": self.accuracy,
            "balanced accuracy": self.balanced_accuracy,
            f"precision, {of}": self.precision,
            f"recall, {of}": self.recall,
            f"F1, {of}": self.f1,
            f"ROC AUC, {of}": self.roc_auc,
            "expected calibration error": self.expected_calibration_error,
            "Brier score": self.brier,
            "log loss (nats)": self.log_loss,
        }
        rows = [
            ["metric", "value", level, "n", "interval by"],
            ["---", "---:", "---:", "---:", "---"],
            *([name, _value(m), _interval(m), str(m.n), _cell(m.method)] for name, m in measured.items()),
        ]
        per_class = [
            ["class", "examples", "predicted", f"precision ({level})", f"recall ({level})", f"F1 ({level})"],
            ["---", *["---:"] * 5],
            *(
                [
                    _cell(scores.name),
                    str(scores.n_examples),
                    str(scores.n_predicted),
                    *(f"{_value(m)} ({_interval(m)})" for m in (scores.precision, scores.recall, scores.f1)),
                ]
                for scores in self.per_class
            ),
        ]
        names = [_cell(name) for name in self.classes]
        confusion = [
            ["true / predicted", *names],
            ["---", *["---:"] * len(names)],
            *([name, *map(str, counts)] for name, counts in zip(names, self.confusion, strict=True)),
        ]
        return "\n".join(_table(rows) for rows in (rows, per_class, confusion))


def _table(rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(text: str) -> str:
    """Return the text as a table's cell takes it: a bar would end the cell, a line break the table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def _value(measured: Measured) -> str:
    return "undefined" if measured.value is None else f"{measured.value:.4f}"


def _interval(measured: Measured) -> str:
    if measured.low is None or measured.high is None:
        return "none"
    return f"{measured.low:.4f} to {measured.high:.4f}"
