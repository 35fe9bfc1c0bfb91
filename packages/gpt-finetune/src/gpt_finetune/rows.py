"""Rows of a .csv, .tsv, .jsonl or .txt file, one by one: every line of the file ends in a row or in a fault.

A fault does not end the reading. Where a quote is not closed, its line is the fault and the next line a new row, so
one stray quote cannot swallow the rest of the file. Memory is bounded by ``LONGEST``, whatever the file's size.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from gpt_train import DataError

LONGEST = 16 * 2**20
"""Bytes that a line may have."""

_MOST_FOLLOWING = 2**20  # characters of a quoted row behind its first line: what is read in vain after a stray quote

SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")

_UTF8_BOM, _UTF16_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_CR = "a carriage return stands within the line; end each line with a line feed, or with both"


@dataclass(frozen=True)
class Row:
    """A row that could be read: its first line, counted from 1, and the wanted fields by name."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """A row that is not used: its first line, counted from 1, the reason, and the column where one is known."""

    line: int
    reason: str
    column: int | None = None
    is_fault: bool = True
    """False for a row that merely has no text."""

    def located(self, path: Path) -> str:
        """Return the reason behind the place: "file:line: ..." or "file:line:column: ..."."""
        return ":".join(str(part) for part in (path, self.line, self.column) if part is not None) + f": {self.reason}"


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
        lines = _Lines(path, file)
        if kind == ".jsonl":
            yield from _objects(lines, wanted)
        elif kind == ".txt":
            yield from _table(path, _split(lines, None), wanted, ["text"])
        else:
            table = _quoted(lines) if kind == ".csv" else _split(lines, "\t")
            yield from _table(path, table if columns is None else _nameless(path, table, columns), wanted, columns)


def read_csv(path: Path) -> Iterator[tuple[int, list[str]] | LeftOut]:
    """Yield line and fields of each row of a CSV file, whatever its suffix: the row of names and blank lines, too."""
    with path.open("rb") as file:
        yield from _quoted(_Lines(path, file))


class _Lines:
    """The lines of a file as text, with their ends; what is wrong with the bytes is kept until it is asked for.

    So a row that goes over several lines can be read to its end although one of them is bad.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.number = 0      # of the line given last, from 1
        self.end = 0         # bytes up to its end
        self.is_too_long = False
        self._path, self._file = path, file
        self._fault: LeftOut | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        data = self._file.readline(LONGEST + 1)
        if not data:
            raise StopIteration
        self.number += 1
        self.end += len(data)
        self.is_too_long = len(data) > LONGEST
        if self.is_too_long:
            while data and not data.endswith(b"\n"):
                data = self._file.readline(2**20)
                self.end += len(data)
            self._blame(f"the line has more than {LONGEST:,} bytes; shorten it, or end the lines with a line feed")
            return ""
        if self.number == 1:
            if data.startswith(_UTF16_BOMS):
                raise DataError(f"{self._path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW")
            data = data.removeprefix(_UTF8_BOM)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            text = data.decode(errors="replace")
            way = "if the file is latin-1, convert it: iconv -f latin1 -t UTF-8 OLD > NEW"
            column = len(data[: error.start].decode()) + 1
            self._blame(f"byte 0x{data[error.start]:02x} is not UTF-8; {way}", column)
        if "\0" in text:
            self._blame("a NUL stands in the text; remove it", text.index("\0") + 1)
        return text

    def take_fault(self) -> LeftOut | None:
        """Return the first fault since this was last asked, and forget it."""
        fault, self._fault = self._fault, None
        return fault

    def go_back(self, number: int, end: int) -> None:
        """Go on after the line ``number``, which ends after ``end`` bytes."""
        self._file.seek(end)
        self.number, self.end = number, end

    def _blame(self, reason: str, column: int | None = None) -> None:
        self._fault = self._fault or LeftOut(self.number, reason, column)


_Fields = tuple[int, list[str]]  # a row's first line, and what its fields hold


def _quoted(lines: _Lines) -> Iterator[_Fields | LeftOut]:
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


def _following(lines: _Lines) -> Iterator[str]:
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


def _split(lines: _Lines, separator: str | None) -> Iterator[_Fields | LeftOut]:
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
                f"{path} has {_number_of(found)} column {name!r} (it has {_listed(names)}); choose others with "
                "template and label, or name the fields of a file that has no row of names with columns")
        places[name] = names.index(found[0])
    return places


def _matches(name: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    return [n for n in names if n == name] or [n for n in names if n.casefold() == name.casefold()]


def _number_of(found: Sequence[str]) -> str:
    return "more than one" if found else "no"


def _listed(names: Iterable[str]) -> str:
    shown = [f"{name!r:.40}" for name in islice(names, 13)]
    return ", ".join([*shown[:12], "..."] if len(shown) > 12 else shown) or "none"


def _objects(lines: _Lines, wanted: Sequence[str]) -> Iterator[Row | LeftOut]:
    """Yield the rows of a .jsonl: an object a line (RFC 8259), each name in it once."""
    for text in lines:
        fault = lines.take_fault()
        if fault is not None:
            yield fault
        elif not text.strip():
            yield LeftOut(lines.number, "the row is empty", is_fault=False)
        else:
            yield _object(lines.number, text, wanted)


def _object(line: int, text: str, wanted: Sequence[str]) -> Row | LeftOut:
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refused)
    except json.JSONDecodeError as error:
        return LeftOut(line, f"the line is no JSON: {error.msg}", error.colno)
    except RecursionError:
        return LeftOut(line, "the line is JSON nested too deeply")
    except ValueError as error:
        return LeftOut(line, f"the line is refused: {error}")
    if not isinstance(content, dict):
        return LeftOut(line, f"the line must be a JSON object, found a {type(content).__name__}")
    fields = {}
    for name in wanted:
        found = _matches(name, content)
        if len(found) != 1:
            return LeftOut(line, f"the object has {_number_of(found)} field {name!r} (it has {_listed(content)})")
        fields[name] = content[found[0]]
    return Row(line, fields)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise ValueError(f"the name {twice!r:.40} stands twice in an object")
    return content


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
