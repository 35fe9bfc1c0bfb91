"""Where the labelled texts come from: a file, the SMS Spam Collection fetched once, or a built-in set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt_finetune import LabelledTexts, download_spam_data, read_labelled
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
            texts = read_sms(download_spam_data(cache_folder() / "sms-spam-collection"))
        except ConnectionError as error:
            say(f"{error}\n{SYNTHETIC_NOTE}")
            return _synthetic()
    elif not columns and data.name.startswith("SMSSpamCollection") and label == "label" and template == "{text}":
        texts = read_sms(data, max_bad=max_bad)
    else:
        texts = read_labelled(data, template=template, label=label, columns=columns or None, max_bad=max_bad)
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(texts.counts.items()))
    say(f"{texts.source}: {len(texts):,} texts ({counts})")
    say_left_out(texts)
    return texts


def read_sms(path: Path, *, max_bad: int = 0) -> LabelledTexts:
    """Return the SMS Spam Collection's messages: all 4,827 ham and 747 spam, or of an edited file what it holds."""
    texts = read_labelled(path, columns=SMS_COLUMNS, max_bad=max_bad)
    if dict(texts.counts) != SMS_COUNTS:
        say(f"{path} is not the collection as published, which has {SMS_COUNTS['ham']:,} ham, {SMS_COUNTS['spam']} spam")
    return texts


def say_left_out(texts: LabelledTexts) -> None:
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
