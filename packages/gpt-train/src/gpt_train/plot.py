"""Loss curves; needs the extra ``plot`` (matplotlib). No window, no global state: a figure is returned."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_losses(
    epochs_seen: Sequence[float],
    tokens_seen: Sequence[float],
    train_losses: Sequence[float],
    val_losses: Sequence[float],
    path: Path | str | None = None,
    *,
    label: str = "loss",
    seen: str = "tokens",
) -> "Figure":
    """Return a figure of the two losses over epochs, the tokens seen at the top (chapter 5).

    ``label`` and ``seen`` say what else the values and the upper axis are. A single epoch is two markers. A file is
    written only if ``path`` is given; its suffix chooses the format. Raises ImportError without matplotlib.
    """
    figure = _new_figure(width=5, height=3)
    from matplotlib.ticker import MaxNLocator  # after _new_figure, which says what to install

    axes = figure.subplots()
    axes.plot(epochs_seen, train_losses, marker="o", markersize=3, label=f"Training {label}")
    axes.plot(epochs_seen, val_losses, linestyle="-.", marker="o", markersize=3, label=f"Validation {label}")
    axes.set_xlabel("Epochs")
    axes.set_ylabel(label.capitalize())
    axes.legend(loc="best")
    tokens = axes.twiny()
    tokens.plot(tokens_seen, train_losses, alpha=0)  # invisible: it only scales the second axis
    tokens.set_xlabel(f"{seen.capitalize()} seen")
    for axis in (axes.xaxis, tokens.xaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=min(2, len(epochs_seen))))
    return _saved(figure, path)


def plot_metrics(metrics: Sequence[Mapping[str, Any]], path: Path | str | None = None) -> "Figure":
    """Return a figure of a run's losses over tokens, from the lines that ``read_metrics`` returns.

    The training loss is drawn faintly step by step and boldly as a moving mean over about a fiftieth of the
    run, the validation loss where it was evaluated. Writes ``path`` if given. Raises ImportError without
    matplotlib.
    """
    figure = _new_figure(width=7, height=4)
    axes = figure.subplots()
    train = [(line["tokens"], line["train/loss"]) for line in metrics if line.get("train/loss") is not None]
    val = [(line["tokens"], line["val/loss"]) for line in metrics if line.get("val/loss") is not None]
    if train:
        tokens, losses = zip(*train, strict=True)
        axes.plot(tokens, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
        axes.plot(tokens, _smooth(losses), color="tab:blue", label="training")
    if val:
        axes.plot(*zip(*val, strict=True), color="tab:orange", marker="o", markersize=3, label="validation")
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    if train or val:
        axes.legend()
    return _saved(figure, path)


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential moving mean, freed of its bias towards the start."""
    keep = 1 - 1 / max(1, len(values) // 50)
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed


def _new_figure(*, width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure  # half a second to import; training needs no plot
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: install 'gpt-train[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _saved(figure: "Figure", path: Path | str | None) -> "Figure":
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
