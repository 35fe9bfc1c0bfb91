"""JSON (RFC 8259, each name once in an object): rows of a .jsonl, an object a line, or of a .json, an array of objects.

What can be decoded and is refused nevertheless (a name twice, NaN, 1e400) is one bad row. So is whatever stands on a
line of a .jsonl; but in a .json nobody knows where the next object begins behind one that cannot be decoded.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from gpt_finetune.lines import Lines, not_utf8, without_mark
from gpt_finetune.rows import LeftOut, Row
from gpt_train import DataError

MOST_BYTES = 256 * 2**20
"""Bytes that a .json file may have: it is held in memory, as text."""

_DEEP = "nested too deeply"
_SPACE = re.compile(r"[ \t\n\r]*")
_ESCAPED = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of bytes that are not UTF-8


def read_objects(path: Path) -> Iterator[Row | LeftOut]:
    """Yield the objects of a .json or .jsonl file in order, each as a row with all of its fields.

    Raises DataError for another suffix and for UTF-16. For a .json as well if it is no array, where it cannot be
    decoded further, and if it has more than ``MOST_BYTES``; memory is bounded by that, and by the longest line of a
    .jsonl otherwise.
    """
    kind = path.suffix.lower()
    if kind == ".jsonl":
        with path.open("rb") as file:
            yield from objects_of_lines(Lines(path, file))
    elif kind == ".json":
        yield from _objects_of_array(path, _whole(path))
    else:
        raise DataError(f"{path} is neither .json nor .jsonl; convert it, or give it the suffix of what it is")


def objects_of_lines(lines: Lines) -> Iterator[Row | LeftOut]:
    """Yield the rows of a .jsonl, an object a line; empty lines are left out without fault."""
    decoder = _Decoder()
    for text in lines:
        fault = lines.take_fault()
        if fault is not None:
            yield fault
        elif not text.strip(" \t\r\n"):  # JSON's white space; another character is no JSON
            yield LeftOut(lines.number, "the row is empty", is_fault=False)
        else:
            yield _object_of_line(decoder, lines.number, text.rstrip("\r\n"))


def load_json(path: Path) -> Any:
    """Return the value that the .json file holds, whatever it is.

    Raises DataError, naming file, line and column, if it is none, is not UTF-8 or has more than ``MOST_BYTES``.
    """
    return parse_json(path, _whole(path))


def parse_json(source: Path | str, data: bytes) -> Any:
    """Return the value in ``data``; DataError that begins with ``source`` as ``load_json`` says."""
    text = without_mark(source, data).decode(errors="surrogateescape")
    bad = _ESCAPED.search(text)
    if bad is not None:
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        raise DataError(f"{source}:{line}:{column}: {not_utf8(ord(bad[0]) - 0xDC00)}")
    try:
        value, refusal = _Decoder().decode(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{source}:{error.lineno}:{error.colno}: it is no JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{source} is JSON {_DEEP}") from None
    if refusal is not None:
        raise DataError(f"{source} is refused: {refusal}")
    return value


class _Decoder:
    """Decodes JSON and notes what is refused instead of raising there, so that the value's end is found."""

    def __init__(self) -> None:
        self._refusal: str | None = None
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float, parse_int=self._int)

    def decode_at(self, text: str, at: int) -> tuple[Any, int, str | None]:
        """Return the value that begins at ``at``, where it ends, and why it is refused.

        Raises json.JSONDecodeError, and RecursionError if it is nested too deeply.
        """
        self._refusal = None
        value, end = self._decoder.raw_decode(text, at)
        return value, end, self._refusal

    def decode(self, text: str) -> tuple[Any, str | None]:
        """Return the only value of the text, and why it is refused."""
        value, end, refusal = self.decode_at(text, _past_space(text, 0))
        end = _past_space(text, end)
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return value, refusal

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
            self._refuse(f"the name {twice!r:.40} stands twice in an object")
        return content

    def _constant(self, word: str) -> float:
        return self._refuse(f"{word} is no JSON")

    def _float(self, digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else self._refuse(f"the number {digits:.40} is too large")

    def _int(self, digits: str) -> float:
        try:
            return int(digits)
        except ValueError:  # more digits than Python reads, 4,300
            return self._refuse(f"a number has {len(digits):,} digits")

    def _refuse(self, reason: str) -> float:
        self._refusal = self._refusal or reason
        return math.nan


def _object_of_line(decoder: _Decoder, line: int, text: str) -> Row | LeftOut:
    try:
        content, refusal = decoder.decode(text)
    except json.JSONDecodeError as error:
        return LeftOut(line, f"the line is no JSON: {error.msg}", error.colno)
    except RecursionError:
        return LeftOut(line, f"the line is JSON {_DEEP}")
    if refusal is not None:
        return LeftOut(line, f"the line is refused: {refusal}")
    if not isinstance(content, dict):
        return LeftOut(line, f"the line must be a JSON object, found a {type(content).__name__}")
    return Row(line, content)


def _objects_of_array(path: Path, data: bytes) -> Iterator[Row | LeftOut]:
    """Yield the rows of a .json, each with line and column of its first character."""
    text = without_mark(path, data).decode(errors="surrogateescape")
    del data
    at = _past_space(text, 0)
    if text[at : at + 1] != "[":
        found = f"found {text[at]!r} first" if text[at:] else "it is empty"
        raise DataError(f"{path} must be an array of objects, {found}; one with an object a line is to end in .jsonl")
    decoder = _Decoder()
    line, line_start, counted = 1, 0, 0
    at = _past_space(text, at + 1)
    is_over = text[at : at + 1] == "]"
    while not is_over:
        line += text.count("\n", counted, at)
        line_start = max(line_start, text.rfind("\n", counted, at) + 1)
        counted, column = at, at - line_start + 1
        try:
            value, end, refusal = decoder.decode_at(text, at)
        except json.JSONDecodeError as error:
            _give_up(path, error)
        except RecursionError:
            raise DataError(f"{path}:{line}:{column}: an object is {_DEEP}; make it shallow") from None
        yield _element(text, at, end, value, refusal, line, column)
        at = _past_space(text, end)
        is_over = text[at : at + 1] == "]"
        if not is_over:
            if text[at : at + 1] != ",":
                _give_up(path, json.JSONDecodeError("Expecting ',' or ']'", text, at))
            at = _past_space(text, at + 1)
    rest = _past_space(text, at + 1)
    if rest < len(text):
        _give_up(path, json.JSONDecodeError("Extra data", text, rest))


def _element(text: str, at: int, end: int, value: Any, refusal: str | None, line: int, column: int) -> Row | LeftOut:
    """Return the row of the value that ``text`` holds from ``at`` to ``end``."""
    bad = _ESCAPED.search(text, at, end)
    if bad is not None:
        reason, place = not_utf8(ord(bad[0]) - 0xDC00), bad.start()
        further = text.count("\n", at, place)
        if not further:
            return LeftOut(line, reason, column + place - at)
        within = f"line {line + further}, column {place - text.rindex(chr(10), at, place)}"
        return LeftOut(line, f"{reason} ({within})", column)
    if refusal is not None:
        return LeftOut(line, f"the object is refused: {refusal}", column)
    if not isinstance(value, dict):
        return LeftOut(line, f"each element must be a JSON object, found a {type(value).__name__}", column)
    return Row(line, value, column)


def _past_space(text: str, at: int) -> int:
    """Return the place of the next character that is no white space."""
    found = _SPACE.match(text, at)
    assert found is not None  # an empty match is one, too
    return found.end()


def _give_up(path: Path, error: json.JSONDecodeError) -> NoReturn:
    raise DataError(
        f"{path}:{error.lineno}:{error.colno}: it is no JSON: {error.msg}; mend the file, or write an object a line "
        "(.jsonl), of which a bad one can be left out") from None


def _whole(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise DataError(f"{path} has more than {MOST_BYTES:,} bytes; split it, or write an object a line (.jsonl)")
    return data
