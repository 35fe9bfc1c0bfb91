"""The bytes of a file as text: line by line or whole, UTF-8 with or without a byte order mark, every fault named."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpt_finetune.rows import LeftOut
from gpt_train import DataError

LONGEST = 16 * 2**20
"""Bytes that a line may have."""

_UTF8_BOM, _UTF16_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


class Lines:
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
            data = without_mark(self._path, data)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            text = data.decode(errors="replace")
            self._blame(not_utf8(data[error.start]), len(data[: error.start].decode()) + 1)
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


def without_mark(source: Path | str, data: bytes) -> bytes:
    """Return the file's first bytes without UTF-8's byte order mark; DataError if they have UTF-16's."""
    if data.startswith(_UTF16_BOMS):
        raise DataError(f"{source} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW")
    return data.removeprefix(_UTF8_BOM)


def not_utf8(byte: int) -> str:
    """Return the reason why a text with this byte cannot be read."""
    return f"byte 0x{byte:02x} is not UTF-8; if the file is latin-1, convert it: iconv -f latin1 -t UTF-8 OLD > NEW"


def unfit_text(text: str) -> str | None:
    """Return what no text may hold and JSON can spell, or None."""
    return "a NUL; remove it" if "\0" in text else half_pair(text)


def half_pair(text: str) -> str | None:
    """Return what no text may hold that is to be encoded, or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair (\\u{ord(text[error.start]):04x}); write both halves or the character itself"
    return None
