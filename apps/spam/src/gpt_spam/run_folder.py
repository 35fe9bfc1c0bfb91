"""A run's folder: what `gpt-spam train` writes and the other commands read.

    model/                     the classifier: a checkpoint directory with labels, template and tokenizer
    adapter/                   with --tune lora: the adapter alone, in PEFT's layout
    split/train.jsonl ...      the texts of each side
    metrics.jsonl              a line an epoch
    loss.png  accuracy.png     over the epochs
    test/                      report.json and pictures of the held-out texts
    README.md                  the report
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from gpt_core import CheckpointError, read_checkpoint
from gpt_finetune import Classifier, LabelledTexts, load_classifier, read_labelled
from gpt_spam.device import resolve_device
from gpt_spam.errors import USAGE, SpamError
from gpt_tokenizer import get_tokenizer

MODEL, ADAPTER, SPLIT, TEST, METRICS, README = "model", "adapter", "split", "test", "metrics.jsonl", "README.md"
SIDES = ("train", "validation", "test")


def check_free(folder: Path) -> None:
    """Raise SpamError (exit code 2) unless ``folder`` is missing or empty: nothing is overwritten."""
    if folder.exists() and not folder.is_dir():
        raise SpamError(f"{folder} is a file; choose a folder by --out", exit_code=USAGE)
    if folder.is_dir() and any(folder.iterdir()):
        raise SpamError(
            f"{folder} holds something already; choose another folder by --out, or delete it", exit_code=USAGE
        )


def write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_side(run: Path, side: str, texts: LabelledTexts) -> None:
    """Write the texts of one side with their labels, and the line of the source each comes from."""
    rows = zip(texts.texts, texts.labels, texts.lines, strict=True)
    write_lines(
        run / SPLIT / f"{side}.jsonl", ({"label": label, "text": text, "line": line} for text, label, line in rows)
    )


def read_side(run: Path, side: str) -> LabelledTexts:
    """Return the texts of one side of a run; SpamError if ``run`` has none, such as a checkpoint from elsewhere."""
    path = run / SPLIT / f"{side}.jsonl"
    if not path.is_file():
        raise SpamError(f"{run} holds no held-out texts ({path} is missing); name texts to judge by with --data")
    return read_labelled(path)


def source_of(run: Path) -> str | None:
    """Return where the texts came from that a run's classifier was trained on; None if it does not say."""
    source = read_checkpoint(_model_folder(run)).provenance.get("source")
    return source if isinstance(source, str) else None


def _model_folder(run: Path) -> Path:
    if not run.is_dir():
        raise SpamError(f"{run} is no folder; give one that gpt-spam train made, such as runs/spam", exit_code=USAGE)
    return run / MODEL if (run / MODEL).is_dir() else run


def open_classifier(run: Path, *, device: str) -> Classifier:
    """Return the classifier of a run's folder, or of a checkpoint directory.

    Raises SpamError if there is no such folder; DataError and CheckpointError if it is none of a classifier.
    """
    place = _model_folder(run)
    try:
        return load_classifier(place, read_tokenizer=get_tokenizer, device=resolve_device(device))
    except CheckpointError as error:
        if place == run and not (run / "manifest.json").exists():
            raise SpamError(f"{run} holds no classifier: {error}; make one with gpt-spam train") from error
        raise
