"""`gpt-spam classify`: the class of each text, from the command line, a file or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import tyro

from gpt_finetune import Classifier, read_texts
from gpt_spam.device import Device
from gpt_spam.errors import BAD_DATA, SpamError
from gpt_spam.messages import say_left_out
from gpt_spam.run_folder import open_classifier
from gpt_spam.terminal import printable, say

_AT_ONCE = 256  # texts read before the first is answered: enough to sort them by length


@dataclass(frozen=True, kw_only=True)
class Classify:
    """Say of texts which class they belong to, and how probable each class is."""

    run: tyro.conf.Positional[Path]
    """A folder that `gpt-spam train` made, or a classifier's checkpoint directory."""

    text: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts; without them, and without --file, each line of standard input is one."""

    file: Path | None = None
    """Texts to read: .csv, .tsv, .jsonl, or .txt with a text on each line."""

    columns: tuple[str, ...] = ()
    """Names of the columns, for a .csv or .tsv without a first row of names."""

    max_bad: int = 0
    """Rows of the file that may be bad: they are left out and reported; one more is an error."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object a text."""

    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""

    def __post_init__(self) -> None:
        if self.text and self.file is not None:
            raise ValueError("give texts on the command line or --file, not both")


def run(settings: Classify) -> int:
    """Print a line for each text, in their order, and return the exit code."""
    classifier = open_classifier(settings.run, device=settings.device)
    n_truncated = n_empty = 0
    for numbered in _in_parts(_texts(settings, classifier)):
        there = [(line, text) for line, text in numbered if text.strip()]
        n_empty += len(numbered) - len(there)
        found = classifier.classify([text for _, text in there])
        for (line, text), prediction in zip(there, found, strict=True):
            n_truncated += prediction.is_truncated
            share = prediction.probabilities[prediction.label]
            if settings.json:
                print(json.dumps({
                    "line": line, "label": prediction.label, "probability": share,
                    "probabilities": prediction.probabilities, "n_tokens": prediction.n_tokens,
                    "truncated": prediction.is_truncated, "text": text,
                }, ensure_ascii=False))
            else:
                print(f"{printable(prediction.label)}\t{share:.4f}\t{printable(' '.join(text.split()))}")
        sys.stdout.flush()
    if n_empty:
        say(f"left out: {n_empty:,} empty texts")
    if n_truncated:
        say(f"{n_truncated:,} texts were longer than {classifier.max_length} tokens and read up to there")
    return 0


def _texts(settings: Classify, classifier: Classifier) -> Iterator[tuple[int, str]]:
    """Yield each text with its number: the line of a file or of standard input, the place on the command line."""
    if settings.text:
        yield from enumerate(settings.text, start=1)
        return
    if settings.file is not None:
        texts = read_texts(
            settings.file, template=classifier.template.text, columns=settings.columns or None,
            max_bad=settings.max_bad,
        )
        say_left_out(texts)
        yield from zip(texts.lines, texts.texts, strict=True)
        return
    if sys.stdin.isatty():
        say("type a text a line, end with Ctrl-D (Windows: Ctrl-Z and Enter)")
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise SpamError(
                f"standard input, line {number}: byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8; convert "
                f"it first, for example with iconv -f latin1 -t utf-8", exit_code=BAD_DATA,
            ) from None


def _in_parts(texts: Iterator[tuple[int, str]]) -> Iterator[Sequence[tuple[int, str]]]:
    """Yield the texts some at a time; at a terminal each by itself, so that it is answered at once."""
    at_once = 1 if sys.stdin.isatty() else _AT_ONCE
    while part := list(islice(texts, at_once)):
        yield part
