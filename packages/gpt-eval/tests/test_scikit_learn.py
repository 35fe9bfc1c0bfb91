"""scikit-learn is an extra: what needs it says so, and nothing else does."""

import subprocess
import sys

import pytest

from gpt_eval import evaluate_classifier, plot_roc
from gpt_eval.agreement import measure_agreement
from gpt_eval.near_duplicates import find_near_duplicates

LABELS, P, CLASSES = ["ham", "spam"], [[0.9, 0.1], [0.2, 0.8]], ["ham", "spam"]


@pytest.mark.parametrize(
    ("purpose", "call"),
    [
        ("judging a classifier", lambda: evaluate_classifier(LABELS, P, classes=CLASSES)),
        ("a ROC curve", lambda: plot_roc(LABELS, P, classes=CLASSES)),
        ("finding near duplicates", lambda: find_near_duplicates([])),
        ("comparing judges", lambda: measure_agreement([1, 2], [1, 2])),
    ],
)
def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch, purpose, call):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed

    with pytest.raises(ImportError, match=rf"^{purpose} needs scikit-learn: install 'gpt-eval\[classification\]'$"):
        call()


def test_runs_shares_and_calibration_need_neither_scikit_learn_nor_scipy():
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['scipy'] = None\n"
        "from gpt_eval import plot_calibration, summarize_runs, wilson_interval\n"
        f"plot_calibration({LABELS}, {P}, classes={CLASSES})\n"
        "print(summarize_runs([0.25, 0.75]), wilson_interval(1, 2))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    # Student's t for one degree of freedom is tan(0.95 pi / 2) = 12.7062: half the width is a quarter of that.
    assert found.stdout.startswith("0.5000 (-2.6766 to 3.6766, n=2)")
