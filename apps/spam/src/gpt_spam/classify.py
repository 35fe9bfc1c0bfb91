"""`gpt-spam classify`: the class of each text, from the command line, a file or standard input."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gpt_finetune import Classifier, read_texts
from gpt_spam.device import Device
from gpt_spam.errors import BAD_DATA, USAGE, SpamError
from gpt_spam.messages import SYNTHETIC, say_left_out
from gpt_spam.run_folder import open_classifier, source_of
from gpt_spam.synthetic import SYNTHETIC_NOTE
from gpt_spam.terminal import counted, printable, say

_AT_ONCE = 256  # texts of a file that are answered together: enough to sort them by length
_READ_BYTES = 16_384  # of standard input, where so many wait: about as many texts
_LONGEST = 16 * 2**20  # bytes of a line, as in a file

_Part = list[tuple[int, str]]  # texts answered together, each with its number


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


def run(settings: Classify) -> int:
    """Print a line for each text, in their order, and return the exit code."""
    if settings.text and settings.file is not None:
        raise SpamError("texts stand on the command line and in --file; give one of both", exit_code=USAGE)
    if settings.file is None and (settings.max_bad or settings.columns):
        name = "--max-bad" if settings.max_bad else "--columns"
        raise SpamError(f"{name} is about the rows of a file; name one by --file or leave {name} out", exit_code=USAGE)
    classifier = open_classifier(settings.run, device=settings.device)
    if source_of(settings.run) == SYNTHETIC:
        say(SYNTHETIC_NOTE)
    n_classified = n_truncated = n_empty = 0
    for part in _parts(settings, classifier):
        there = [(line, text) for line, text in part if text.strip()]
        n_classified += len(there)
        n_empty += len(part) - len(there)
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
        say(f"left out: {counted(n_empty, 'empty text')}")
    if n_truncated:
        limit = counted(classifier.max_length, "token")
        say(f"longer than {limit} and read up to there: {counted(n_truncated, 'text')}")
    if not n_classified:
        raise SpamError(
            "there is no text to classify; give one on the command line, in --file or as a line of standard input",
            exit_code=BAD_DATA,
        )
    return 0


def _parts(settings: Classify, classifier: Classifier) -> Iterator[_Part]:
    """Yield the texts, some at a time, by their line of the file or standard input, or place on the command line."""
    if settings.text:
        yield list(enumerate(settings.text, start=1))
    elif settings.file is not None:
        texts = read_texts(
            settings.file, template=classifier.template.text, columns=settings.columns or None,
            max_bad=settings.max_bad,
        )
        say_left_out(texts)
        rows = list(zip(texts.lines, texts.texts, strict=True))
        for start in range(0, len(rows), _AT_ONCE):
            yield rows[start : start + _AT_ONCE]
    else:
        if sys.stdin.isatty():
            say("type a text a line, end with Ctrl-D (Windows: Ctrl-Z and Enter)")
        yield from _arriving_texts(sys.stdin.buffer)  # type: ignore[arg-type]  # its declared type lacks read1


def _arriving_texts(stream: io.BufferedIOBase) -> Iterator[_Part]:
    """Yield the texts of the lines that have arrived; those before a bad line, then raise SpamError naming it."""
    number = 0
    for lines in _arriving_lines(stream):
        part: _Part = []
        for line in lines:
            number += 1
            try:
                part.append((number, _decoded(line, number)))
            except SpamError:
                yield part
                raise
        yield part


def _arriving_lines(stream: io.BufferedIOBase) -> Iterator[list[bytes]]:
    """Yield lines without their line feed, as many as one read completes: it waits for something, not for more.

    Where a line is too long, what has come of it is the last one.
    """
    begun = bytearray()
    while len(begun) <= _LONGEST and (data := stream.read1(_READ_BYTES)):
        *ends, beginning = data.split(b"\n")
        if ends:
            yield [bytes(begun) + ends[0], *ends[1:]]
            begun.clear()
        begun += beginning
    if begun:
        yield [bytes(begun)]


def _decoded(line: bytes, number: int) -> str:
    """Return the text of a line of standard input; SpamError for what a file may not hold either."""
    reason = text = ""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        reason = (
            f"byte {error.start} (0x{line[error.start]:02x}) is not UTF-8; convert it first, for example with iconv "
            "-f latin1 -t utf-8"
        )
    if len(line) > _LONGEST:
        reason = f"the line has more than {_LONGEST:,} bytes; shorten it, or end the lines with a line feed"
    elif "\0" in text:
        reason = "a NUL stands in the text; remove it"
    elif "\r" in text:
        reason = "a carriage return stands within the line; end each line with a line feed, or with both"
    if reason:
        raise SpamError(f"standard input, line {number}: {reason}", exit_code=BAD_DATA)
    return text
