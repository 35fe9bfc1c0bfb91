"""What is known about a classifier: its numbers, as data, as JSON and as a page of Markdown."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from gpt_eval.intervals import Measured
from gpt_eval.markdown import markdown_cell
from gpt_eval.tables import interval_cell, markdown_table, value_cell

_LEGEND = """\
Expected calibration error: how far the share that was right lies from how probable it was said to be. Brier score: the
mean squared error of the probabilities. Log loss: the mean of -log of the true class's probability. Of these three less
is better and 0 is best, of the others more is better and 1 is best.

How each interval was made stands in `to_dict()` as `method`; gpt-eval's README says why.
"""


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
        """Return three tables, the numbers, the classes, and what was taken for what, and how to read them.

        Where a number or its interval is missing, the reason stands in the interval's place.
        """
        level = f"{100 * self.confidence:g} % interval"
        of = "mean over classes" if self.positive is None else f"of {markdown_cell(self.positive)}"
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
            ["metric", "value", level, "n"],
            ["---", "---:", "---:", "---:"],
            *([name, value_cell(m), interval_cell(m), str(m.n)] for name, m in measured.items()),
        ]
        per_class = [
            ["class", "examples", "predicted", f"precision ({level})", f"recall ({level})", f"F1 ({level})"],
            ["---", *["---:"] * 5],
            *(
                [
                    markdown_cell(scores.name),
                    str(scores.n_examples),
                    str(scores.n_predicted),
                    *(f"{value_cell(m)} ({interval_cell(m)})" for m in (scores.precision, scores.recall, scores.f1)),
                ]
                for scores in self.per_class
            ),
        ]
        names = [markdown_cell(name) for name in self.classes]
        confusion = [
            ["true / predicted", *names],
            ["---", *["---:"] * len(names)],
            *([name, *map(str, counts)] for name, counts in zip(names, self.confusion, strict=True)),
        ]
        return "\n".join([*map(markdown_table, (rows, per_class, confusion)), _LEGEND])
