"""JSON that stands beside weights: read with a bound, refused with the file's name."""

import json
from pathlib import Path
from typing import Any

from gpt_weights.errors import WeightsError

_LARGEST = 256 * 2**20  # a tokenizer.json of 250,000 tokens has 20 MB


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file; WeightsError if it cannot be read or holds anything else."""
    return parse_json(path, read_bounded(path))


def read_bounded(path: Path) -> bytes:
    """Return the file's bytes; WeightsError if it cannot be read or is too large to describe a GPT-2."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _LARGEST else b""
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if size > _LARGEST:
        raise WeightsError(f"{path} has more than {_LARGEST:,} bytes; that is no description of a GPT-2")
    return data


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """Return the JSON object that ``data``, read from ``path``, is; WeightsError naming the file if it is none."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        is_page = data.lstrip()[:9].lower().startswith((b"<!doctype", b"<html"))
        what = "an HTML page" if is_page else f"no JSON ({error})"
        raise WeightsError(f"{path} is {what}; download it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} must hold a JSON object, found a {type(content).__name__}")
    return content
