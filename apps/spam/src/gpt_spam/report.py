"""The one page about a run: what was trained on what, how it went, and how good it is, with pictures."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt_eval import markdown_cell
from gpt_finetune import Classifier, ClassifierReport, LabelledTexts, Split, plot_values
from gpt_spam.judging import PICTURES, Judgement, commonest_share
from gpt_spam.messages import SYNTHETIC
from gpt_spam.run_folder import MODEL, README, TEST
from gpt_spam.synthetic import SYNTHETIC_NOTE

_MOST_MISTAKES = 20


def write_report(
    run: Path,
    classifier: Classifier,
    split: Split,
    texts: LabelledTexts,
    epochs: Sequence[ClassifierReport],
    judgement: Judgement,
    about: dict[str, Any],
) -> None:
    """Write README.md, loss.png and accuracy.png into the run's folder."""
    _plot_epochs(run, epochs, n_texts=len(split.train))
    pictures = "\n".join(
        f"![{name.removesuffix('.png')}]({TEST}/{name})" for name in PICTURES if (run / TEST / name).exists()
    )
    rows = {**about["settings"], **{f"training: {name}": value for name, value in about["training"].items()}}
    settings = "\n".join(f"| {name} | {markdown_cell(str(value))} |" for name, value in rows.items())
    page = f"""# A text classifier: {", ".join(map(markdown_cell, classifier.labels))}

{_note(texts)}Made by `gpt-spam train` from {markdown_cell(texts.source)}.
The model: {markdown_cell(about["model"])}; trained: {about["tune"]}.

## On {judgement.report.n:,} texts that were held out

{judgement.report.to_markdown()}
Always naming the commonest label would be right in {commonest_share(split.test):.4f} of them. The intervals hold for
other texts of the same kind and this classifier; another seed gives another classifier.

{pictures}

## How it learned

![loss](loss.png)
![accuracy](accuracy.png)

{_kept(epochs, keep_best=about["training"]["keep_best"])}

## Data

{texts.n_rows:,} rows: {len(texts):,} texts, {len(texts.left_out):,} left out. {split.n_duplicates:,} texts equal or
nearly equal another one; each group of them is on one side, and {split.n_moved:,} were moved for that.
{split.n_conflicting:,} of the texts that are equal carry different labels. Of a text the first
{classifier.max_length:,} tokens are read; how many texts are longer stands in the last column.

| | texts | {" | ".join(map(markdown_cell, classifier.labels))} | longer |
| --- | ---: |{" ---: |" * len(classifier.labels)} ---: |
{_sides(split, classifier)}

## The mistakes on the held-out texts

{_mistakes(split.test, judgement)}

## Settings

| setting | value |
| --- | --- |
{settings}

Made with Python {platform.python_version()}, {", ".join(f"{name} {version(name)}" for name in _PACKAGES)}.
The classifier is in `{MODEL}`, a checkpoint directory with its labels, template and tokenizer.
"""
    temporary = run / f"{README}.tmp"
    temporary.write_text(page, encoding="utf-8", newline="\n")
    temporary.replace(run / README)


_PACKAGES = ("gpt-spam", "gpt-finetune", "gpt-eval", "gpt-train", "gpt-core", "torch")


def _note(texts: LabelledTexts) -> str:
    return f"**{SYNTHETIC_NOTE}**\n\n" if texts.source == SYNTHETIC else ""


def _kept(epochs: Sequence[ClassifierReport], *, keep_best: bool) -> str:
    if not keep_best:
        return f"The weights kept are those at the end, after epoch {epochs[-1].epoch}."
    best = [report for report in epochs if report.is_best][-1]
    return f"The weights kept are those of epoch {best.epoch} of {epochs[-1].epoch}, with the lowest validation loss."


def _plot_epochs(run: Path, epochs: Sequence[ClassifierReport], *, n_texts: int) -> None:
    numbers = [report.epoch for report in epochs]
    seen = [report.epoch * n_texts for report in epochs]
    training = [report.training for report in epochs if report.training is not None]
    validation = [report.validation for report in epochs if report.validation is not None]
    for label in ("loss", "accuracy"):
        first, second = ([getattr(scores, label) for scores in side] for side in (training, validation))
        plot_values(numbers, seen, first, second, label=label, path=run / f"{label}.png")


def _sides(split: Split, classifier: Classifier) -> str:
    sides = {"training": split.train, "validation": split.validation, "held out": split.test}
    lines = []
    for name, side in sides.items():
        counts = (f"{side.counts.get(label, 0):,}" for label in classifier.labels)
        n_longer = sum(classifier.encode(text)[1] for text in side.texts)
        lines.append(f"| {name} | {len(side):,} | {' | '.join(counts)} | {n_longer:,} |")
    return "\n".join(lines)


def _mistakes(texts: LabelledTexts, judgement: Judgement) -> str:
    """Return the surest mistakes as a table."""
    wrong = [
        (prediction.probabilities[prediction.label], line, label, prediction.label, text)
        for text, label, line, prediction in zip(
            texts.texts, texts.labels, texts.lines, judgement.predictions, strict=True
        )
        if prediction.label != label
    ]
    if not wrong:
        return "None."
    wrong.sort(reverse=True)
    rows = "\n".join(
        f"| {line} | {markdown_cell(label)} | {markdown_cell(said)} | {share:.3f} | {markdown_cell(text[:160])} |"
        for share, line, label, said, text in wrong[:_MOST_MISTAKES]
    )
    shown = f"the {_MOST_MISTAKES} surest" if len(wrong) > _MOST_MISTAKES else "all"
    head = "| line | label | said | probability | text |\n| ---: | --- | --- | ---: | --- |"
    return f"{len(wrong):,} in all; {shown} of them:\n\n{head}\n{rows}"
