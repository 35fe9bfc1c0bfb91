"""`gpt-spam evaluate`: the figures of a classifier on labelled texts, each with its interval, and pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gpt_spam.device import Device
from gpt_spam.judging import commonest_share, judge
from gpt_spam.messages import SYNTHETIC, read_file, say_left_out
from gpt_spam.run_folder import TEST, check_free, open_classifier, read_side, source_of
from gpt_spam.synthetic import SYNTHETIC_NOTE
from gpt_spam.terminal import say


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Judge a classifier on labelled texts: accuracy, precision, recall, F1, confusion, ROC, calibration."""

    run: tyro.conf.Positional[Path]
    """A folder that `gpt-spam train` made, or a classifier's checkpoint directory."""

    data: Path | None = None
    """Labelled texts (.csv, .tsv, .jsonl); without it those that the run held out for testing."""

    label: str = "label"
    """Column of the labels."""

    columns: tuple[str, ...] = ()
    """Names of the columns, for a file without a first row of names."""

    max_bad: int = 0
    """Rows that may be bad: they are left out and reported; one more is an error."""

    out: Path | None = None
    """New folder for report.json and the pictures; without it nothing is written."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the report as one JSON object."""

    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""


def run(settings: Evaluate) -> int:
    """Print the figures and return the exit code."""
    if settings.out is not None:
        check_free(settings.out)
    classifier = open_classifier(settings.run, device=settings.device)
    if source_of(settings.run) == SYNTHETIC:
        say(SYNTHETIC_NOTE)
    if settings.data is None:
        texts = read_side(settings.run, TEST)
    else:
        texts = read_file(
            settings.data, template=classifier.template.text, label=settings.label, columns=settings.columns,
            max_bad=settings.max_bad,
        )
        say_left_out(texts)
    judgement = judge(classifier, texts, folder=settings.out)
    if settings.json:
        print(json.dumps(judgement.to_dict(), ensure_ascii=False))
    else:
        print(f"{texts.source}: {len(texts):,} texts; always the commonest label would be right in "
              f"{commonest_share(texts):.4f}; {judgement.n_truncated:,} texts were longer than {classifier.max_length} "
              f"tokens and read up to there\n")
        print(judgement.report.to_markdown(), end="")
    if settings.out is not None:
        say(f"report.json and pictures are in {settings.out}")
    return 0
