"""Judge a classifier on labelled texts, with pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_eval import ClassificationReport, evaluate_classifier, plot_calibration, plot_confusion, plot_roc
from gpt_finetune import Classifier, LabelledTexts, Prediction
from gpt_spam.errors import BAD_DATA, SpamError

PICTURES = ("confusion.png", "roc.png", "calibration.png")
_POSITIVE = ("spam", "yes", "true", "1", "positive")  # what is looked for, if one of two labels says so


@dataclass(frozen=True)
class Judgement:
    """What is known of a classifier after some texts."""

    report: ClassificationReport
    n_truncated: int
    """Texts longer than the classifier reads: the rest of them was not looked at."""
    predictions: Sequence[Prediction]
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as what JSON knows."""
        return {"source": self.source, "n_truncated": self.n_truncated, **self.report.to_dict()}


def judge(classifier: Classifier, texts: LabelledTexts, *, folder: Path | None = None) -> Judgement:
    """Return the figures of ``texts``, and write report.json and the pictures into ``folder`` if one is given.

    Raises SpamError (exit code 3) for a label that the classifier does not know, naming file and line.
    """
    for label, line in zip(texts.labels, texts.lines, strict=True):
        if label not in classifier.labels:
            n_such = sum(one not in classifier.labels for one in texts.labels)
            raise SpamError(
                f"{texts.source}:{line}: unknown label {label!r} (of {n_such:,} such rows the first); the classifier "
                f"knows {', '.join(classifier.labels)}", exit_code=BAD_DATA,
            )
    predictions = classifier.classify(texts.texts)
    probabilities = [list(one.probabilities.values()) for one in predictions]
    classes, positive = classifier.labels, positive_of(classifier.labels)
    report = evaluate_classifier(texts.labels, probabilities, classes=classes, positive=positive)
    n_truncated = sum(one.is_truncated for one in predictions)
    judgement = Judgement(report, n_truncated, predictions, texts.source)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "report.json").open("w", encoding="utf-8", newline="\n") as file:
            json.dump(judgement.to_dict(), file, indent=2, ensure_ascii=False)
            file.write("\n")
        plot_confusion(report, folder / PICTURES[0])
        if report.roc_auc.value is not None:
            plot_roc(texts.labels, probabilities, classes=classes, positive=positive, path=folder / PICTURES[1])
        plot_calibration(texts.labels, probabilities, classes=classes, path=folder / PICTURES[2])
    return judgement


def positive_of(labels: Sequence[str]) -> str | None:
    """Return what precision and recall are about: of two labels the one that says so, else the second; of more None."""
    if len(labels) != 2:
        return None
    return next((label for label in labels if label.casefold() in _POSITIVE), labels[1])


def commonest_share(texts: LabelledTexts) -> float:
    """Return the accuracy of always naming the commonest label: what any classifier has to beat."""
    return Counter(texts.labels).most_common(1)[0][1] / len(texts)
