import builtins
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text
from sklearn.calibration import calibration_curve

from gpt_eval import evaluate_classifier, plot_calibration, plot_confusion, plot_roc

PNG = b"\x89PNG"


def examples(classes=("ham", "spam"), n=200):
    random = np.random.default_rng(0)
    truth = np.arange(n) % len(classes)
    logits = random.normal(0, 1, (n, len(classes)))
    logits[np.arange(n), truth] += 1.5
    P = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return [classes[k] for k in truth], P, list(classes)


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_the_confusion_has_every_count_its_share_both_axes_names_and_n(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels, P, classes = examples()
    report = evaluate_classifier(labels, P, classes=classes, n_resamples=100)
    figure = plot_confusion(report)
    axes = figure.axes[0]

    (a, b), (c, d) = report.confusion
    assert [text.get_text() for text in axes.texts] == [f"{k}\n{k:.1f}%" for k in (a, b, c, d)]  # 100 of each class
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert [label.get_text() for label in axes.get_yticklabels()] == classes
    assert "n = 200" in axes.get_title()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(
    ("classes", "rotation"),
    [
        (["ham", "spam"], 0),
        (["not spam at all!", "spam, certainly!"], 0),
        ([f"sixteen letters{k}" for k in range(4)], 90),
        ([f"迷惑メール広告{k}" for k in range(4)], 90),
        ([f"class {k}" * 9 for k in range(2)], 90),
        ([str(k) for k in range(10)], 0),
        ([f"class {k}" for k in range(20)], 90),
    ],
)
def test_names_below_the_confusion_never_touch_and_stand_upright_only_where_they_would(classes, rotation):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    labels, P, classes = examples(classes)
    report = evaluate_classifier(labels, P, classes=classes, n_resamples=100)
    figure = plot_confusion(report)
    FigureCanvasAgg(figure).draw()

    below = figure.axes[0].get_xticklabels()
    boxes = [label.get_window_extent() for label in below]
    assert {label.get_rotation() for label in below} == {rotation}
    assert all(left.x1 + 3 < right.x0 for left, right in pairwise(boxes))
    assert min(label.get_window_extent().x0 for label in figure.axes[0].get_yticklabels()) > 0


def test_the_roc_curve_has_a_point_a_score_and_its_title_the_area_of_the_report():
    labels, P, classes = examples()
    axes = plot_roc(labels, P, classes=classes, positive="ham").axes[0]
    report = evaluate_classifier(labels, P, classes=classes, positive="ham", n_resamples=100)

    is_ham, steps = np.array(labels) == "ham", [2, *sorted(P[:, 0], reverse=True)]
    shares = [[(P[of, 0] >= step).mean() for step in steps] for of in (~is_ham, is_ham)]
    assert np.array(axes.get_lines()[0].get_data()) == pytest.approx(np.array(shares))
    area = report.roc_auc
    assert axes.get_title().splitlines() == [
        "ROC, n = 200", f"AUC of ham {area.value:.4f} (95 %: {area.low:.4f} to {area.high:.4f})",
    ]  # fmt: skip
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("false positive rate", "true positive rate (recall)")


@pytest.mark.parametrize(("C", "in_legend"), [(2, 2), (4, 5), (10, 11), (11, 1), (30, 1)])
def test_each_of_more_classes_has_its_curve_and_a_legend_as_long_as_it_can_be_read(C, in_legend):
    labels, P, classes = examples([f"class {k}" for k in range(C)])
    axes = plot_roc(labels, P, classes=classes).axes[0]

    assert len(axes.get_lines()) == (1 if C == 2 else C) + 1
    assert len(axes.get_legend().get_texts()) == in_legend


def test_a_class_without_an_example_has_no_roc_curve():
    with pytest.raises(ValueError, match="class 'spam' has no example, so there is no ROC curve"):
        plot_roc(["ham"] * 2, [[0.9, 0.1]] * 2, classes=["ham", "spam"])


def test_the_calibration_points_are_scikit_learns_and_the_bars_count_the_examples():
    labels, P, classes = examples(n=400)
    figure = plot_calibration(labels, P, classes=classes)
    axes, below = figure.axes

    right = np.array([classes[k] for k in P.argmax(1)]) == labels
    share, said = calibration_curve(right, P.max(1), n_bins=10)
    points = axes.containers[0].lines[0]
    assert np.array(points.get_data()) == pytest.approx(np.array([said, share]))
    assert sum(bar.get_height() for bar in below.patches) == 400
    error = evaluate_classifier(labels, P, classes=classes, n_resamples=100).expected_calibration_error.value
    assert axes.get_title() == f"Calibration, n = 400\nexpected calibration error {error:.4f}"
    assert (axes.get_ylabel(), below.get_xlabel()) == ("share that was right", "probability of the predicted class")


@pytest.mark.parametrize(
    "classes",
    [("$", "a$b$"), [f"$c_{k}$" for k in range(21)], ("a", r"\frac{"), ("日本語", "한국어"), ("a" * 160, "a" * 161)],
)
def test_every_picture_is_written_where_asked_whatever_the_names(tmp_path, classes):
    labels, P, classes = examples(classes)
    report = evaluate_classifier(labels, P, classes=classes, n_resamples=100)
    plot_confusion(report, tmp_path / "confusion.png")
    plot_roc(labels, P, classes=classes, path=tmp_path / "roc.png")
    plot_calibration(labels, P, classes=classes, path=str(tmp_path / "calibration.png"))

    assert [file.read_bytes()[:4] for file in tmp_path.iterdir()] == [PNG] * 3


def test_a_perfect_classifier_and_a_single_example_have_their_pictures(tmp_path):
    for labels in (["ham", "spam"], ["spam"]):
        P = [[float(label == "ham"), float(label == "spam")] for label in labels]
        report = evaluate_classifier(labels, P, classes=["ham", "spam"], n_resamples=100)
        plot_confusion(report, tmp_path / "confusion.png")
        plot_calibration(labels, P, classes=["ham", "spam"], path=tmp_path / "calibration.png")
    plot_roc(["ham", "spam"], [[1, 0], [0, 1]], classes=["ham", "spam"], path=tmp_path / "roc.png")


def test_a_confidence_that_cannot_be_is_refused_by_each_picture():
    labels, P, classes = examples()
    for plot in (plot_roc, plot_calibration):
        with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
            plot(labels, P, classes=classes, confidence=95)


def test_plotting_leaves_pyplot_alone():
    labels, P, classes = examples()
    plot_calibration(labels, P, classes=classes)

    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_matplotlib(name, *arguments, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    labels, P, classes = examples()
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r"plotting needs matplotlib: install 'gpt-eval\[plot\]'"):
        plot_roc(labels, P, classes=classes)
