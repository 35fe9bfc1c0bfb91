"""Answers to judge, from a JSON array (the book's instruction-data-with-response.json) or a .jsonl file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_eval.scores import JudgeItem

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_answers(path: Path, *, key: str = "model_response") -> list[JudgeItem]:
    """Return the file's items: ``instruction``, ``output``, the answer under ``key``, and ``input`` where there is one.

    Every item is returned, or the first that is none raises ValueError with the file and its line (.jsonl) or number,
    counted from 1. Raises OSError if the file cannot be read.
    """
    items = [_item(entry, where, key) for where, entry in _entries(path)]
    if not items:
        raise ValueError(f"{path} holds no items; give a JSON array of objects, or a .jsonl file with one a line")
    return items


def _entries(path: Path) -> Iterator[tuple[str, object]]:
    data = path.read_bytes()
    if data.startswith(_UTF16):
        raise ValueError(f"{path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; convert the file") from None
    if path.suffix.lower() == ".jsonl":
        for number, line_text in enumerate(text.split("\n"), start=1):
            if line_text.strip():
                yield f"{path}:{number}", _parsed(line_text, path, number)
        return
    entries = _parsed(text, path, 1)
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds one {_kind(entries)}, but answers are a JSON array of objects, or .jsonl")
    for number, entry in enumerate(entries, start=1):
        yield f"{path}, item {number}", entry


def _parsed(text: str, path: Path, line: int) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}:{error.colno}"
        raise ValueError(f"{place}: no JSON ({error.msg}); correct it there") from None
    except RecursionError:
        raise ValueError(f"{path}:{line}: the JSON is nested too deep for answers; give flat objects") from None
    except ValueError as error:
        raise ValueError(f"{path}:{line}: {error}; correct it there") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an item has {next(name for name in names if names.count(name) > 1)!r} twice")
    return named


def _item(entry: object, where: str, key: str) -> JudgeItem:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: a {_kind(entry)}, but an item is an object with instruction, output and {key}")
    fields = {"instruction": "instruction", "input": "input", "output": "output", "answer": key}
    texts = {}
    for field, name in fields.items():
        value = entry.get(name, "" if field == "input" else None)
        if not isinstance(value, str):
            has = f"has {name!r} as a {_kind(value)}" if name in entry else f"has no {name!r}"
            way = "; name another with --key" if field == "answer" else ""
            raise ValueError(f"{where}: the item {has}, but it must be a text{way}")
        texts[field] = value
    return JudgeItem(**texts)


def _kind(value: object) -> str:
    names = {dict: "object", list: "array", str: "text", bool: "truth value", type(None): "null"}
    return names.get(type(value), "number")
