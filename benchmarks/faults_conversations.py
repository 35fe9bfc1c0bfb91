"""Damaged files of conversations: every row is kept or reported, or the file is refused by name.

    uv run python benchmarks/faults_conversations.py

Fault F23: 60 conversations in each of the four formats, as .json and as .jsonl, damaged at random (bits, bytes,
lengths, cuts, insertions; each batch in a process of its own) and in the ways that texts are damaged. For each file:
every line of a .jsonl is a row that is kept or reported; a .json has as many rows as Python's json module finds
elements, and is refused only where that module finds no array either, or no row can be used; what is kept and
what is left out add up; and without ``max_bad`` the error names the file and the place of the first bad row. What
breaks this counts as another exception.

Results go to ``benchmarks/results/faults_conversations.md``. Linux only.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from faults_labelled import check, check_lines, report

from gpt_finetune.conversation_files import read_conversations
from gpt_finetune.objects import read_objects
from gpt_train import DataError


def sources() -> dict[str, bytes]:
    """Return conversations in each format: a .json with a field, or an element, a line, and .jsonl."""
    rng = random.Random(0)
    words = ["Name", "a", "colour", '"blue"', "caf\u00e9", "\U0001f600", "{x}", "why?\n", "07123", "don't", "\\"]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 12)))

    turns = [[text() for _ in range(rng.choice((2, 2, 4)))] for _ in range(60)]
    alpaca = [{"instruction": turn[0], "input": rng.choice(("", text())), "output": turn[1]} for turn in turns]
    openai = [{"messages": [{"role": ("user", "assistant")[n % 2], "content": said} for n, said in enumerate(turn)]}
              for turn in turns]  # fmt: skip
    sharegpt = [{"id": str(i), "conversations": [{"from": ("human", "gpt")[n % 2], "value": said}
                                                 for n, said in enumerate(turn)]} for i, turn in enumerate(turns)]
    trl = [{"prompt": turn[0], "completion": turn[1]} for turn in turns]
    return {
        "alpaca.json": json.dumps(alpaca, indent=4, ensure_ascii=False).encode(),
        "openai.json": b"[\n" + b",\n".join(json.dumps(row).encode() for row in openai) + b"\n]\n",
        "sharegpt.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in sharegpt).encode(),
        "trl.jsonl": "".join(json.dumps(row) + "\n" for row in trl).encode(),
    }


def accounted(path: Path) -> tuple[int, int]:
    """Return the numbers of rows kept and left out; DataError if the whole file is refused, else check the account."""
    try:
        rows = list(read_objects(path))
    except DataError as error:
        check(str(error).startswith(str(path)), "the error names no file")
        check("UTF-16" in str(error) or not isinstance(elements(path), list), "an array is refused")
        raise
    if path.suffix == ".json":
        found = elements(path)
        check(isinstance(found, list) and len(found) == len(rows), "there are not as many rows as elements")
    else:
        check_lines(path, [row.line for row in rows])
    try:
        data = read_conversations(path, max_bad=10**9)
    except DataError as error:
        check("only rows left out" in str(error) or not rows, "rows that can be used are refused")
        raise
    check(data.n_rows == len(data) + len(data.left_out) == len(rows), "rows kept and left out do not add up")
    check(sorted([*data.lines, *(row.line for row in data.left_out)]) == [row.line for row in rows], "a row has moved")
    first = next((fault for fault in data.left_out if fault.is_fault), None)
    try:
        check(read_conversations(path) == data and first is None, "a fault is passed over")
    except DataError as error:
        said = first is not None and str(error).startswith(first.located(path))
        check(said, "the error does not name the first bad row")
    return len(data), len(data.left_out)


def elements(path: Path) -> Any:
    """Return what Python's json module makes of the file, or None."""
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    try:
        return json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None


if __name__ == "__main__":
    sys.exit(report("Damaged files of conversations", __doc__ or "", sources(), accounted))
