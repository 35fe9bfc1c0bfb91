"""The book's function for its instructions (chapter 7): a JSON file, fetched if it is not there.

``read_conversations`` reads the same file with every row checked.
"""

from pathlib import Path
from typing import Any

from gpt_finetune.download import fetch, shown, write_whole
from gpt_finetune.objects import MOST_BYTES, load_json, parse_json
from gpt_train import DataError


def download_and_load_file(file_path: Path | str, url: str) -> Any:
    """Return the JSON value in the file at ``file_path``, which is first fetched from ``url`` unless it is there.

    What is fetched is written only if it is JSON, and whole. Raises DataError if the file, or what ``url`` delivers,
    is no JSON (RFC 8259, UTF-8, no name twice in an object) or has more than 256 MiB; what requests raises if
    ``url`` does not deliver; OSError if the file cannot be read or written.
    """
    path = Path(file_path)
    if path.exists():
        try:
            return load_json(path)
        except DataError as error:
            raise DataError(f"{error}; mend the file, or remove it to have it fetched anew") from None
    data = fetch(url, most_bytes=MOST_BYTES)
    try:
        content = parse_json(shown(url), data)
    except DataError as error:
        raise DataError(f"{error}; give the address of a JSON file") from None
    write_whole(path, data)
    return content
