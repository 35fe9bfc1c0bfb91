"""Read text files and JSON lines piece by piece, however large they are, and say exactly where one is broken.

Text is taken as it stands in the file: UTF-8, line ends kept (CRLF stays CRLF), only a byte order mark at the
start is dropped.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from gpt_pretrain.errors import BAD_DATA, PretrainError

BLOCK = 1 << 20
"""Bytes read at a time."""
LONGEST_PIECE = 16 << 20
"""Characters after which a text without any white space is cut all the same, so that memory stays bounded."""


def text_pieces(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file in pieces of about a million characters, cut where no token is cut.

    Raises PretrainError (exit code 3) naming file and byte where the file is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    held = ""
    n_read = 0
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK)
            n_pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = n_read - n_pending + error.start
                raise PretrainError(
                    f"{path} is not UTF-8: byte {at} (0x{error.object[error.start]:02x}) {error.reason}; "
                    f"convert the file first, for example with iconv -f latin1 -t utf-8",
                    exit_code=BAD_DATA,
                ) from None
            if n_read == 0:
                text = text.removeprefix("\ufeff")
            n_read += len(block)
            n_held = len(held)  # no safe cut in here, or it would have been made
            held += text
            if not block:
                break
            if cut := _safe_cut(held, start=max(n_held, 1)):
                yield held[:cut]
                held = held[cut:]
    if held:
        yield held


def json_texts(path: Path, *, field: str) -> Iterator[str]:
    """Yield the string under ``field`` of each row of a JSON lines file; a blank line is no row.

    Raises PretrainError (exit code 3) naming file and line for invalid UTF-8 or JSON, a row that is no
    object, or one whose ``field`` is missing or no text.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw.strip():
                yield _json_text(raw, where=f"{path}:{number}", field=field)


def _json_text(raw: bytes, *, where: str, field: str) -> str:
    def bad(problem: str) -> PretrainError:
        return PretrainError(f"{where}: {problem}", exit_code=BAD_DATA)

    try:
        row = json.loads(raw.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        raise bad(f"byte {error.start} of the line is not UTF-8 ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise bad(f"not valid JSON at column {error.colno} ({error.msg}); each line must be one object") from None
    except (RecursionError, ValueError) as error:  # nested too deep; a number with too many digits
        raise bad(f"JSON that cannot be read ({error})") from None
    if not isinstance(row, dict):
        raise bad(f'a line must be an object like {{"{field}": "..."}}, got {type(row).__name__}')
    if field not in row:
        names = ", ".join(map(repr, list(row)[:8])) or "none"
        raise bad(f"no field {field!r} (fields here: {names}); name the one with the text by --text-field")
    text = row[field]
    if not isinstance(text, str):
        raise bad(f"field {field!r} must hold text, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad(f"field {field!r} holds half a surrogate pair at character {error.start}") from None
    return text


def _safe_cut(text: str, *, start: int) -> int:
    """Return the last place from ``start`` on to cut ``text`` without cutting a token, 0 if none.

    Between a character and white space after it every token of GPT-2's splitting pattern ends, so pieces cut
    there and encoded one by one give the ids of the whole text.
    """
    for at in range(len(text) - 1, start - 1, -1):
        if text[at] in " \t\r\n" and not text[at - 1].isspace():
            return at
    return len(text) if len(text) > LONGEST_PIECE else 0
