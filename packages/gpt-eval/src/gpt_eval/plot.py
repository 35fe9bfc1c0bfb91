"""Pictures of a classifier; they need the extra ``plot`` (matplotlib), the ROC curve needs ``classification``, too.

No window, no state: a figure is returned.

Which letters of the classes' names can be drawn, the font decides: matplotlib's own has no Chinese, Japanese or Korean
ones and draws boxes; ``matplotlib.rcParams["font.family"]`` names another. Of a name longer than 30
letters the middle is left out.
"""

import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from gpt_eval.calibration import N_BINS, calibration_bins, calibration_gaps
from gpt_eval.classification import measure_roc_auc
from gpt_eval.intervals import Measured, check_confidence, wilson_interval
from gpt_eval.predictions import check_positive, check_predictions
from gpt_eval.report import ClassificationReport
from gpt_eval.roc import roc_area, roc_points
from gpt_eval.scikit_learn import require_scikit_learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NAMED = 10     # curves that a legend can tell apart
_MOST_COUNTED = 20   # classes whose counts still fit their squares
_MOST_LETTERS = 30   # of a name


def plot_confusion(report: ClassificationReport, path: Path | str | None = None) -> "Figure":
    """Return a figure of the confusion matrix: counts, coloured by their share of the true class.

    A file is written only if ``path`` is given; its suffix chooses the format. Raises ImportError without matplotlib.
    """
    counts = np.array(report.confusion)                                        # (C, C)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    C = len(counts)
    names = [_plain(name) for name in report.classes]
    fontsize = min(10, 500 / C)                                                # the names together fill an edge
    longest = max(map(_columns, names)) * 0.0072 * fontsize                    # inches
    side = min(12.0, 3.2 + 0.7 * C)
    is_upright = longest > 0.9 * (side - 1.6) / C                              # names side by side would touch
    room = max(0.0, longest - 0.5)
    figure = _new_figure(width=side + 0.8 + room, height=side + room * is_upright)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set_xticks(range(C), names, rotation=90 if is_upright else 0)
    axes.set_yticks(range(C), names)
    axes.tick_params(labelsize=fontsize)
    for row, column in np.ndindex(C, C) if C <= _MOST_COUNTED else ():
        colour = "white" if shares[row, column] > 0.5 else "black"
        text = f"{counts[row, column]:,}\n{shares[row, column]:.1%}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=11 if C < 5 else 7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    accuracy = _with_interval(report.accuracy, report.confidence)
    axes.set_title(f"Confusion, n = {report.n:,}\naccuracy {accuracy}", fontsize="medium")
    return _saved(figure, path)


def plot_roc(
    labels: Sequence[str],
    probabilities: ArrayLike,
    *,
    classes: Sequence[str],
    positive: str | None = None,
    confidence: float = 0.95,
    path: Path | str | None = None,
) -> "Figure":
    """Return a figure of the ROC curve of ``positive`` or, with more than two classes, of each against the rest.

    The arguments are those of ``evaluate_classifier``, and so are the errors. Raises ValueError too where a class
    has no example: there is no curve then. Writes ``path`` if given. Raises ImportError without matplotlib or
    scikit-learn.
    """
    require_scikit_learn("a ROC curve")
    check_confidence(confidence)
    seen = check_predictions(labels, probabilities, classes=classes)
    positive = check_positive(positive, seen.classes)
    mean = measure_roc_auc(seen, positive, confidence=confidence)
    if mean.value is None:
        raise ValueError(f"{mean.method}, so there is no ROC curve; leave that class out of classes, or add examples")
    figure = _new_figure(width=5.2, height=5.2)
    axes = figure.subplots()
    columns = range(len(seen.classes)) if positive is None else [seen.classes.index(positive)]
    for column in columns:
        scores, is_positive = seen.probabilities[:, column], seen.truth == column
        value = roc_area(scores, is_positive).value
        label = f"{_plain(seen.classes[column])}: AUC {value:.4f}, n = {is_positive.sum():,}"
        style = {"label": label} if len(columns) <= _MOST_NAMED else {"color": "tab:blue", "alpha": 0.3}
        axes.plot(*roc_points(scores, is_positive), **style, clip_on=False)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="by chance")
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate (recall)")
    axes.set_aspect("equal")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    area = "mean AUC of the classes" if positive is None else f"AUC of {_plain(positive)}"
    axes.set_title(f"ROC, n = {mean.n:,}\n{area} {_with_interval(mean, confidence)}", fontsize="medium")
    return _saved(figure, path)


def plot_calibration(
    labels: Sequence[str],
    probabilities: ArrayLike,
    *,
    classes: Sequence[str],
    confidence: float = 0.95,
    path: Path | str | None = None,
) -> "Figure":
    """Return a reliability diagram: how often the predicted class was right, over how probable it was said to be.

    A point stands at the mean of its bin with Wilson's interval; below it, how many examples the bin has. The
    arguments are those of ``evaluate_classifier``, and so are the errors. Writes ``path`` if given. Raises
    ImportError without matplotlib.
    """
    check_confidence(confidence)
    seen = check_predictions(labels, probabilities, classes=classes)
    bins = calibration_bins(seen.confidence)
    counts = np.bincount(bins, minlength=N_BINS)
    used = np.flatnonzero(counts)
    n_right = np.bincount(bins, weights=seen.is_right, minlength=N_BINS)[used]
    said = np.bincount(bins, weights=seen.confidence, minlength=N_BINS)[used] / counts[used]
    right = n_right / counts[used]
    ends = np.array([wilson_interval(k, n, confidence) for k, n in zip(n_right, counts[used].tolist(), strict=True)])
    error = np.abs(calibration_gaps(seen.confidence, seen.is_right).mean(axis=0)).sum()

    figure = _new_figure(width=5.2, height=6.2)
    axes, below = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfectly calibrated")
    bars = np.abs(ends.T - right)                                              # (2, used)
    axes.errorbar(said, right, yerr=bars, marker="o", capsize=3, label=f"right, {100 * confidence:g} % interval")
    axes.set_ylabel("share that was right")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize="small")
    axes.set_title(f"Calibration, n = {len(bins):,}\nexpected calibration error {error:.4f}", fontsize="medium")
    below.bar((np.arange(N_BINS) + 0.5) / N_BINS, counts, width=0.9 / N_BINS, color="tab:grey")
    below.set_yscale("symlog", linthresh=1)                                    # a good classifier is mostly sure
    below.set_ylabel("examples")
    below.set_xlabel("probability of the predicted class")
    return _saved(figure, path)


def _plain(text: str) -> str:
    """Return a name so that matplotlib draws it as it is: between dollars it would read mathematics."""
    if len(text) > _MOST_LETTERS:
        text = f"{text[:_MOST_LETTERS - 10]}…{text[-9:]}"
    return text.replace("$", r"\$")


def _columns(text: str) -> int:
    """Return how many letters of usual width take as much room: Chinese, Japanese and Korean ones count twice."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def _with_interval(measured: Measured, confidence: float) -> str:
    return f"{measured.value:.4f} ({100 * confidence:g} %: {measured.low:.4f} to {measured.high:.4f})"


def _new_figure(*, width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure  # half a second to import; judging needs no picture
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: install 'gpt-eval[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _saved(figure: "Figure", path: Path | str | None) -> "Figure":
    if path is not None:
        with warnings.catch_warnings():  # a line on stderr for each letter that the font lacks
            warnings.filterwarnings("ignore", "Glyph |Matplotlib currently does not support", UserWarning)
            figure.savefig(path, dpi=150)
    return figure
