"""Texts and their labels from a file: every row is there, or reported with its line.

A template makes the text of a row from its columns: "{text}", or "Subject: {subject}\n\n{body}".
"""

import json
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gpt_finetune.lines import unfit_text
from gpt_finetune.rows import FromFile, LeftOut, Row, keep_rows
from gpt_finetune.tables import read_rows
from gpt_train import DataError


class Template:
    """How a text is made from named fields: the names in braces, all else as it is; {{ and }} are braces.

    A field's text is put in once and never read as a template itself. Raises ValueError for anything but plain
    names in the braces (attributes, indices, conversions, formats), and for a template without a name.
    """

    def __init__(self, text: str) -> None:
        try:
            self._parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"template {text!r} cannot be read ({error}); write {{{{ and }}}} for braces") from None
        for _, name, form, conversion in self._parts:
            if name is not None and (not name.strip() or set(name) & set(".[]{}") or form or conversion):
                raise ValueError(f"template {text!r} may hold plain names of columns in its braces, such as {{text}}")
        self.text = text
        self.fields = tuple(dict.fromkeys(name for _, name, _, _ in self._parts if name is not None))
        """The names, each once, in their order."""
        if not self.fields:
            raise ValueError(f"template {text!r} names no column; name one in braces, such as {{text}}")

    def render(self, fields: Mapping[str, str]) -> str:
        """Return the text made from ``fields``; KeyError if a name is not among them."""
        return "".join(literal + ("" if name is None else fields[name]) for literal, name, _, _ in self._parts)


@dataclass(frozen=True, kw_only=True)
class Texts(FromFile):
    """The texts of a file, in its order."""

    columns: ClassVar[tuple[str, ...]] = ("texts",)

    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LabelledTexts(Texts):
    """The texts of a file with a label each."""

    columns = ("texts", "labels")

    labels: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of texts of each label, labels sorted."""
        return dict(sorted(Counter(self.labels).items()))

    def classes(self) -> list[str]:
        """Return the labels there are, sorted: the place of each is its class."""
        return sorted(set(self.labels))


def read_labelled(
    path: Path | str,
    *,
    template: str = "{text}",
    label: str = "label",
    columns: Sequence[str] | None = None,
    max_bad: int = 0,
) -> LabelledTexts:
    """Return the texts and labels of a .csv (quotes as in RFC 4180), .tsv (no quotes at all) or .jsonl file.

    ``template`` names the columns of the text, ``label`` that of the label, which loses the white space around it; a
    JSON label may be a whole number, true or false. ``columns`` names the fields of a file whose first row is
    already one of texts; None: the first row names them, in capitals or not. UTF-8, with or without a byte order mark.

    Rows without text are left out and listed. Raises DataError for a bad row, naming file, line and, where one is
    known, column, unless no more than ``max_bad`` are: they are left out and listed, too. DataError as well if
    the file has another suffix, lacks a column, has no text, or its first row is the one of names although
    ``columns`` are given; ValueError for a bad template; OSError if unreadable.
    """
    made = Template(template)
    if label.casefold() in (name.casefold() for name in made.fields):
        raise ValueError(f"template {template!r} shows the label {label!r} in the text; name columns of the text only")
    if Path(path).suffix.lower() == ".txt":
        raise DataError(f"{path} has texts without labels; give them in a .csv, .tsv or .jsonl")
    found = _read(Path(path), made, label, columns, max_bad)
    return LabelledTexts(**found)


def read_texts(
    path: Path | str, *, template: str = "{text}", columns: Sequence[str] | None = None, max_bad: int = 0
) -> Texts:
    """Return the texts of a .csv, .tsv or .jsonl as ``read_labelled`` does, without labels, or the lines of a .txt."""
    found = _read(Path(path), Template(template), None, columns, max_bad)
    del found["labels"]
    return Texts(**found)


def require_classes(data: LabelledTexts, *, at_least: int = 2) -> list[str]:
    """Return the sorted labels of ``data``; DataError if there are fewer than ``at_least``."""
    classes = data.classes()
    if len(classes) < at_least:
        names = ", ".join(f"{name!r:.60}" for name in classes)
        raise DataError(
            f"{data.source} has {len(classes)} of the {at_least} labels that a classifier needs ({names or 'none'}); "
            "add texts of another, or name the right column with label")
    return classes


def _read(
    path: Path, template: Template, label: str | None, columns: Sequence[str] | None, max_bad: int
) -> dict[str, Any]:
    """Return the arguments of ``LabelledTexts``."""
    if isinstance(columns, str):
        raise ValueError(f"columns must be a list of names, got {columns!r}; split it at the commas")
    wanted = [*template.fields, *([] if label is None else [label])]
    rows = read_rows(path, wanted, columns=columns)
    kept = keep_rows(path, rows, lambda row: _pair(row, template, label), max_bad=max_bad, content="texts")
    texts, labels = zip(*kept.values, strict=True)
    return {"source": str(path), "texts": texts, "labels": labels, "lines": kept.lines, "left_out": kept.left_out}


def _pair(row: Row, template: Template, label: str | None) -> tuple[str, str] | LeftOut:
    """Return the row's text and label ("" where none is wanted), or why it is left out."""
    for name in template.fields:
        value = row.fields[name]
        if not isinstance(value, str):
            return LeftOut(row.line, f"{name!r} must be text, found a {type(value).__name__}")
        if fault := unfit_text(value):
            return LeftOut(row.line, f"{name!r} has {fault}")
    if not any(row.fields[name].strip() for name in template.fields):
        return LeftOut(row.line, "the row has no text", is_fault=False)
    text = template.render(row.fields)
    if label is None:
        return text, ""
    value = row.fields[label]
    if isinstance(value, int):  # true and false, too
        return text, json.dumps(value)
    if not isinstance(value, str):
        kind = type(value).__name__
        return LeftOut(row.line, f"{label!r} must be text, a whole number, true or false, found a {kind}")
    value = value.strip()
    if not value.isprintable() or not value:
        why = f"has a character that cannot be printed: {value!r:.60}" if value else "is empty"
        return LeftOut(row.line, f"the label {why}")
    return text, value
