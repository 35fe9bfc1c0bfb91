"""Where the labelled texts come from: a file, the SMS Spam Collection fetched once, or a built-in set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt_finetune import LabelledTexts, Texts, download_spam_data, read_labelled
from gpt_spam.errors import BAD_DATA, SpamError
from gpt_spam.synthetic import SYNTHETIC_NOTE, synthetic_messages
from gpt_spam.terminal import say
from gpt_weights import cache_folder

SMS_COLUMNS = ("label", "text")
"""Of the SMS Spam Collection (Almeida et al. 2011), which has no header."""
SMS_COUNTS = {"ham": 4827, "spam": 747}
SYNTHETIC = "built-in synthetic messages"
"""The source's name, where there was no network: it stands in the report and in the saved classifier."""


def find_messages(
    data: Path | None, *, template: str, label: str, columns: Sequence[str], max_bad: int
) -> LabelledTexts:
    """Return the labelled texts of ``data``; of None the SMS Spam Collection's, or without network a built-in set.

    Says on stderr what was read and left out, and why. Raises DataError as ``read_labelled`` does.
    """
    if data is None:
        try:
            path = download_spam_data(cache_folder() / "sms-spam-collection")
        except ConnectionError as error:
            say(f"{error}\n{SYNTHETIC_NOTE}")
            return _synthetic()
        texts = read_file(path, template="{text}", label="label", columns=SMS_COLUMNS, max_bad=0)
        assert texts.counts == SMS_COUNTS, "the file's digest was checked, so its rows are known"
    else:
        texts = read_file(data, template=template, label=label, columns=columns, max_bad=max_bad)
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(texts.counts.items()))
    say(f"{texts.source}: {len(texts):,} texts ({counts})")
    say_left_out(texts)
    return texts


def read_file(
    path: Path, *, template: str, label: str, columns: Sequence[str], max_bad: int
) -> LabelledTexts:
    """Return the labelled texts of a file; the SMS Spam Collection is known by its first line: it has no header.

    Raises SpamError (exit code 3) if there is no such file.
    """
    if not path.is_file():
        raise SpamError(f"{path} is no file; give a .csv, .tsv or .jsonl with labelled texts", exit_code=BAD_DATA)
    if not columns and path.suffix == ".tsv" and (label, template) == ("label", "{text}"):
        with path.open("rb") as file:
            if file.read(5).startswith((b"ham\t", b"spam\t")):
                columns = SMS_COLUMNS
    return read_labelled(path, template=template, label=label, columns=columns or None, max_bad=max_bad)


def say_left_out(texts: Texts) -> None:
    """Tell how many rows were left out and where the first of them stand."""
    for reason in sorted({one.reason for one in texts.left_out}):
        lines = [one.line for one in texts.left_out if one.reason == reason]
        where = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
        say(f"left out: {len(lines):,} of {texts.n_rows:,} rows ({reason}; line {where})")


def _synthetic() -> LabelledTexts:
    rows = synthetic_messages()
    return LabelledTexts(
        source=SYNTHETIC,
        texts=tuple(text for _, text in rows),
        labels=tuple(label for label, _ in rows),
        lines=tuple(range(1, len(rows) + 1)),
    )
