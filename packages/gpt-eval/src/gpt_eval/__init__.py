"""Judge a model honestly: each number with its count and its interval."""

from gpt_eval.classification import evaluate_classifier
from gpt_eval.intervals import Measured, summarize_runs, wilson_interval
from gpt_eval.markdown import markdown_cell
from gpt_eval.plot import plot_calibration, plot_confusion, plot_roc
from gpt_eval.report import ClassificationReport, ClassScores

__all__ = [
    "ClassScores",
    "ClassificationReport",
    "Measured",
    "evaluate_classifier",
    "markdown_cell",
    "plot_calibration",
    "plot_confusion",
    "plot_roc",
    "summarize_runs",
    "wilson_interval",
]
