"""Rows of a .csv, .tsv, .jsonl or .txt file, one by one: every line of the file ends in a row or in a fault.

A fault does not end the reading. Where a quote is not closed, its line is the fault and the next line a new row, so
one stray quote cannot swallow the rest of the file. Memory is bounded by ``lines.LONGEST``, whatever the file's size.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from gpt_finetune.lines import Lines
from gpt_finetune.objects import objects_of_lines
from gpt_finetune.rows import LeftOut, Row, listed
from gpt_train import DataError

_MOST_FOLLOWING = 2**20  # characters of a quoted row behind its first line: what is read in vain after a stray quote

SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")

_CR = "a carriage return stands within the line; end each line with a line feed, or with both"


def read_rows(path: Path, wanted: Sequence[str], *, columns: Sequence[str] | None = None) -> Iterator[Row | LeftOut]:
    """Yield the file's rows in order, with the fields that are ``wanted``.

    ``columns`` names the fields of a .csv or .tsv without a row of names. A name is found as it is, or else if one
    column differs from it in case only. Raises DataError for what concerns the whole file: another suffix, UTF-16,
    no row of names, one without a wanted name, or one that is there although ``columns`` are given.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise DataError(f"{path} is none of {', '.join(SUFFIXES)}; convert it, or give it the suffix of what it is")
    if columns is not None and kind not in (".csv", ".tsv"):
        raise ValueError(f"columns name the fields of a .csv or .tsv without a row of names, {path} is neither")
    with path.open("rb") as file:
        lines = Lines(path, file)
        if kind == ".jsonl":
            yield from (row if isinstance(row, LeftOut) else _chosen(row, wanted) for row in objects_of_lines(lines))
        elif kind == ".txt":
            yield from _table(path, _split(lines, None), wanted, ["text"])
        else:
            table = _quoted(lines) if kind == ".csv" else _split(lines, "\t")
            yield from _table(path, table if columns is None else _nameless(path, table, columns), wanted, columns)


def read_csv(path: Path) -> Iterator[tuple[int, list[str]] | LeftOut]:
    """Yield line and fields of each row of a CSV file, whatever its suffix: the row of names and blank lines, too."""
    with path.open("rb") as file:
        yield from _quoted(Lines(path, file))


_Fields = tuple[int, list[str]]  # a row's first line, and what its fields hold


def _quoted(lines: Lines) -> Iterator[_Fields | LeftOut]:
    """Yield the rows of a .csv: RFC 4180's quotes, in which a field may hold commas, doubled quotes and line ends."""
    for first in lines:
        number, end = lines.number, lines.end
        try:
            row = csv.reader(chain([first], _following(lines)), strict=True)
            item: _Fields | LeftOut = (number, next(row))
        except csv.Error as error:
            item = LeftOut(number, _quoting(error, number, lines.number))
        fault = lines.take_fault()
        if isinstance(item, LeftOut):
            if lines.number > number:
                lines.go_back(number, end)  # faults of later lines will be met again
            yield fault if fault is not None and fault.line == number else item
        elif fault is None or fault.line == number:
            yield fault or item
        else:
            yield LeftOut(number, f"{fault.reason} (line {fault.line}, column {fault.column})")


def _following(lines: Lines) -> Iterator[str]:
    """Yield the next lines until they are too long for a row."""
    room = _MOST_FOLLOWING
    for line in lines:
        room -= len(line)
        if room < 0 or lines.is_too_long:
            return
        yield line


def _quoting(error: csv.Error, first: int, last: int) -> str:
    """Return in our words what Python's csv module found in a row that goes from line ``first`` to ``last``."""
    words = str(error)
    if "unexpected end" in words:
        reason = "a quote is opened and not closed; close it, or double it"
    elif "expected after" in words:
        reason = 'a quote within a quoted field is not doubled; write "" for "'
    elif "new-line" in words:
        reason = _CR
    else:  # a field larger than the csv module's limit, which the caller may change
        reason = f"{words}; use a .jsonl, or raise the limit with csv.field_size_limit"
    return reason if first == last else f"{reason} (seen on line {last})"


def _split(lines: Lines, separator: str | None) -> Iterator[_Fields | LeftOut]:
    """Yield the rows of a file in which each line is one, and no character but the separator means anything."""
    for text in lines:
        body = text.removesuffix("\n").removesuffix("\r")
        fault = lines.take_fault()
        if fault is None and "\r" in body:
            fault = LeftOut(lines.number, _CR, body.index("\r") + 1)
        yield fault or (lines.number, [body] if separator is None else body.split(separator))


def _table(
    path: Path, rows: Iterator[_Fields | LeftOut], wanted: Sequence[str], names: Sequence[str] | None
) -> Iterator[Row | LeftOut]:
    """Give the fields their names, which the first row holds if ``names`` is None."""
    places = None if names is None else _places(path, wanted, names)
    for item in rows:
        if isinstance(item, LeftOut):
            if names is None:
                raise DataError(f"{item.located(path)} (in the row of names)")
            yield item
            continue
        line, fields = item
        if not any(fields) or (len(fields) == 1 and not fields[0].strip()):
            yield LeftOut(line, "the row is empty", is_fault=False)
        elif names is None or places is None:
            names, places = fields, _places(path, wanted, fields)
        elif len(fields) != len(names):
            why = "only within the quotes of a .csv may a field hold the separator"
            yield LeftOut(line, f"the row has {len(fields)} fields instead of {len(names)}; {why}")
        else:
            yield Row(line, {name: fields[place] for name, place in places.items()})


def _nameless(path: Path, rows: Iterator[_Fields | LeftOut], names: Sequence[str]) -> Iterator[_Fields | LeftOut]:
    """Yield the rows; DataError if the first one with anything in it is the row of names."""
    known = [name.strip().casefold() for name in names]
    is_first = True
    for item in rows:
        if is_first and not isinstance(item, LeftOut) and any(item[1]):
            is_first = False
            if [field.strip().casefold() for field in item[1]] == known:
                raise DataError(f"{path}:{item[0]}: the first row is the row of names; leave out columns")
        yield item


def _places(path: Path, wanted: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Return the place of each wanted name among the file's ``names``; DataError if one has none, or several."""
    places = {}
    for name in wanted:
        found = _matches(name, names)
        if len(found) != 1:
            raise DataError(
                f"{path} has {_number_of(found)} column {name!r} (it has {listed(names)}); choose others with "
                "template and label, or name the fields of a file that has no row of names with columns")
        places[name] = names.index(found[0])
    return places


def _chosen(row: Row, wanted: Sequence[str]) -> Row | LeftOut:
    """Return the row of an object with the wanted fields only."""
    fields = {}
    for name in wanted:
        found = _matches(name, row.fields)
        if len(found) != 1:
            reason = f"the object has {_number_of(found)} field {name!r} (it has {listed(row.fields)})"
            return LeftOut(row.line, reason)
        fields[name] = row.fields[found[0]]
    return Row(row.line, fields)


def _matches(name: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    return [n for n in names if n == name] or [n for n in names if n.casefold() == name.casefold()]


def _number_of(found: Sequence[str]) -> str:
    return "more than one" if found else "no"
