import builtins
import sys

import pytest

from gpt_train import plot_losses, plot_metrics


def curves(axes):
    return [(line.get_xdata(), line.get_ydata()) for line in axes.get_lines()]


def test_plot_losses_returns_a_figure_with_both_curves_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure = plot_losses([0, 1, 2], [10, 20, 30], [3.0, 2.0, 1.0], [3.5, 3.0, 2.9])

    axes, tokens = figure.axes
    assert [list(y) for _, y in curves(axes)] == [[3.0, 2.0, 1.0], [3.5, 3.0, 2.9]]
    assert all(list(x) == [0, 1, 2] for x, _ in curves(axes))
    assert [list(x) for x, _ in curves(tokens)] == [[10, 20, 30]]
    assert (axes.get_xlabel(), axes.get_ylabel(), tokens.get_xlabel()) == ("Epochs", "Loss", "Tokens seen")
    assert list(tmp_path.iterdir()) == []


def test_plot_losses_writes_the_file_that_is_asked_for(tmp_path):
    plot_losses([0, 1], [10, 20], [3.0, 2.0], [3.5, 3.0], tmp_path / "loss.pdf")

    assert (tmp_path / "loss.pdf").read_bytes().startswith(b"%PDF")


def test_a_single_epoch_is_seen_and_its_axis_has_whole_numbers():
    figure = plot_losses([1], [5], [0.3], [0.4])

    axes, seen = figure.axes
    for line in axes.get_lines():
        assert (line.get_marker(), line.get_markersize()) == ("o", 3)
    for axis, place in ((axes.xaxis, 1), (seen.xaxis, 5)):
        low, high = axis.get_view_interval()
        assert [tick for tick in axis.get_majorticklocs() if low <= tick <= high] == [place]


def test_less_than_an_epoch_keeps_more_than_one_tick():
    axes = plot_losses([0, 0.1, 0.2], [10, 20, 30], [3, 2, 1], [3, 2, 1]).axes[0]

    low, high = axes.get_xlim()
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 2


def test_plotting_leaves_pyplot_alone():
    plot_losses([0, 1], [10, 20], [3.0, 2.0], [3.5, 3.0])

    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def metrics(n):
    lines = [{"step": s, "tokens": 100 * s, "train/loss": 5.0 + (-1) ** s * 0.5} for s in range(1, n + 1)]
    for line in lines[9::10]:
        line["val/loss"] = 4.0
    return lines


def test_plot_metrics_draws_steps_moving_mean_and_validation_over_tokens(tmp_path):
    figure = plot_metrics(metrics(200), tmp_path / "loss.png")

    raw, smooth, val = curves(figure.axes[0])
    assert list(raw[0]) == list(smooth[0]) == [100 * s for s in range(1, 201)]
    assert list(val[0]) == [1000 * s for s in range(1, 21)]
    assert list(val[1]) == [4.0] * 20
    assert min(raw[1]) == 4.5
    assert all(abs(y - 5.0) < 0.2 for y in smooth[1][20:])
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_moving_mean_of_a_constant_is_that_constant():
    lines = [{"tokens": s, "train/loss": 2.5} for s in range(300)]

    assert list(curves(plot_metrics(lines).axes[0])[1][1]) == pytest.approx([2.5] * 300)


@pytest.mark.parametrize("lines", [[], metrics(1), [{"tokens": 1, "train/loss": None, "val/loss": None}]])
def test_plot_metrics_takes_a_run_that_has_hardly_begun(tmp_path, lines):
    plot_metrics(lines, tmp_path / "loss.png")

    assert (tmp_path / "loss.png").is_file()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"install 'gpt-train\[plot\]'"):
        plot_losses([0], [1], [2.0], [3.0])
