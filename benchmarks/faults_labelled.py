"""Damaged files of labelled texts: every row is kept or reported, or the file is refused by name and line.

    uv run python benchmarks/faults_labelled.py

Fault F23: 60 rows as .csv, .tsv and .jsonl, damaged at random (bits, bytes, lengths, cuts, insertions; each batch in a
process of its own) and in the ways that texts are damaged (quotes, line ends, encodings, JSON). For each file: every
line of it lies in exactly one row that is kept or reported; what is kept and what is left out add up; and without
``max_bad`` the error names the file and the line of the first bad row. What breaks this counts as another exception.

Results go to ``benchmarks/results/faults_labelled.md``. Linux only.
"""

import argparse
import csv
import io
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mutated_files import as_table, run

from gpt_finetune.labelled import read_labelled
from gpt_finetune.tables import read_rows
from gpt_train import DataError

NAMES = ["label", "text"]
LINES = list[bytes]


def sources() -> dict[str, bytes]:
    """Return the same rows in each format; only those of the .tsv have no line ends in them."""
    rng = random.Random(0)
    words = ["free", "call", 'the "prize"', "a, b", "caf\u00e9", "\U0001f600", "{x}", "now!", "07123", "don't"]
    rows = [(rng.choice(["ham", "spam"]), " ".join(rng.choices(words, k=rng.randint(1, 12)))) for _ in range(60)]
    lined = [(label, text.replace(" now! ", "\n")) for label, text in rows]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([NAMES, *lined])
    return {
        "rows.csv": table.getvalue().encode(),
        "rows.tsv": "".join(f"{label}\t{text}\n" for label, text in rows).encode(),
        "rows.jsonl": "".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in lined).encode(),
    }


def accounted(path: Path) -> tuple[int, int]:
    """Return the numbers of rows kept and left out; DataError if the whole file is refused, else check the account."""
    columns = NAMES if path.suffix == ".tsv" else None
    try:
        rows = list(read_rows(path, NAMES, columns=columns))
        data = read_labelled(path, columns=columns, max_bad=10**9)
    except DataError as error:
        check(str(error).startswith(str(path)), "the error names no file")
        raise
    check_lines(path, [row.line for row in rows])
    check(data.n_rows == len(data) + len(data.left_out) == len(rows), "rows kept and left out do not add up")
    faults = [fault.line for fault in data.left_out if fault.is_fault]
    try:
        check(read_labelled(path, columns=columns) == data and not faults, "a fault is passed over")
    except DataError as error:
        said = re.match(re.escape(str(path)) + r":(\d+)(:\d+)?: ", str(error))
        check(said is not None and [int(said[1])] == faults[:1], "the error does not name the first bad line")
    return len(data), len(data.left_out)


def check_lines(path: Path, starts: list[int]) -> None:
    """Check that the rows, by their first lines, have every line, and that each is one for Python's csv module, too."""
    lines = re.findall("[^\n]*\n|[^\n]+", path.read_bytes().decode(errors="replace").removeprefix("\ufeff"))
    is_csv = path.suffix == ".csv"
    if is_csv:  # the row of names is the first that is not empty
        starts = sorted([*starts, next(n for n, line in enumerate(lines, 1) if line.strip().strip(","))])
    check(starts[:1] == [1] and len(set(starts)) == len(starts), "a line is in no row, or in two")
    for start, following in zip(starts, [*starts[1:], len(lines) + 1], strict=True):
        if following > start + 1:
            check(is_csv, "lines are lost")
            own = csv.reader(lines[start - 1 : following - 1], strict=True)
            check(len(list(own)) == 1, "rows are taken for one")  # or csv.Error


def check(holds: bool, problem: str) -> None:
    """Raise AssertionError: unlike a statement of that name it is never left out."""
    if not holds:
        raise AssertionError(problem)


def insert(*pieces: bytes) -> Callable[[LINES, random.Random], bytes]:
    """Return the damage that puts a piece somewhere into up to three lines."""

    def damage(lines: LINES, rng: random.Random) -> bytes:
        for _ in range(rng.randint(1, 3)):
            i = rng.randrange(len(lines))
            at = rng.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + rng.choice(pieces) + lines[i][at:]
        return b"".join(lines)

    return damage


def whole(change: Callable[[bytes], bytes]) -> Callable[[LINES, random.Random], bytes]:
    """Return the damage that changes all of the file."""
    return lambda lines, rng: change(b"".join(lines))


def a_line(make: Callable[[random.Random], bytes]) -> Callable[[LINES, random.Random], bytes]:
    """Return the damage that puts a line between two others."""

    def damage(lines: LINES, rng: random.Random) -> bytes:
        lines.insert(rng.randrange(len(lines) + 1), make(rng) + b"\n")
        return b"".join(lines)

    return damage


DAMAGES: dict[str, Callable[[LINES, random.Random], bytes]] = {
    "cut anywhere": lambda lines, rng: b"".join(lines)[: rng.randrange(1, sum(map(len, lines)))],
    "quotes": insert(b'"', b'""', b'"""', b',"', b'",'),
    "separators": insert(b",", b"\t", b";"),
    "line ends": insert(b"\n", b"\r\n", b"\r", b"\n\n"),
    "all lines end in CR LF": whole(lambda data: data.replace(b"\n", b"\r\n")),
    "all lines end in CR": whole(lambda data: data.replace(b"\n", b"\r")),
    "byte order mark first": whole(lambda data: b"\xef\xbb\xbf" + data),
    "byte order mark within": insert(b"\xef\xbb\xbf"),
    "NUL": insert(b"\0", bytes(100)),
    "latin-1 bytes": insert(b"\xe9", b"\xa3", b"\xff"),
    "all latin-1": whole(lambda data: data.decode().encode("latin-1", errors="replace")),
    "all UTF-16": whole(lambda data: data.decode().encode("utf-16")),
    "UTF-8 cut within a character": insert("\u20ac".encode()[:2], "\U0001f600".encode()[:3]),
    "half of a surrogate pair": insert(b"\xed\xa0\x80", b"\\ud800", b"\\udc00"),
    "control characters": insert(b"\x1b[31m", b"\x07", b"\x7f", "\u2028".encode(), b"\x0b"),
    "lines swapped or gone": lambda lines, rng: b"".join(rng.sample(lines, rng.randint(1, len(lines)))),
    "a line of another kind": a_line(lambda rng: rng.choice((
        b"[]", b"12", b"null", b"{}", b'{"label": "a", "label": "b", "text": "c"}', b'{"label": 1e400, "text": "x"}',
        b'{"label": NaN, "text": "x"}', b'{"label": "a", "text": 12}', b'{"label": true, "text": "x"}', b"a,b,c", b",",
        b"ham\t", b"\tx", b"", b"  ", b'"', b"<html>", b'{"label": ' + b"9" * 5000 + b', "text": "x"}'))),
    "a line 100,000 deep": a_line(lambda rng: rng.choice((b"[", b'{"text":', b'{"label": "a", "text": ['))
                                  + b"[" * 100_000 + b"]" * rng.choice((0, 100_000))),
    "a line of 200,000 bytes": a_line(lambda rng: b'ham,"' * rng.randint(0, 1) + b"x" * 200_000),
    "a line of 17 MB": a_line(lambda rng: b"x" * 17_000_000),
}  # fmt: skip
FEW = {"a line of 17 MB": 3, "byte order mark first": 1} | {name: 1 for name in DAMAGES if name.startswith("all")}


Accounted = Callable[[Path], tuple[int, int]]


def damaged_at_random(sources: dict[str, bytes], accounted: Accounted, inputs: int) -> str:
    """Return the table of what became of ``inputs`` copies of each source."""
    rows = []
    for name, data in sources.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run(name, {name: data}, Path(folder), accounted, DataError, inputs=inputs))
            print(rows[-1], file=sys.stderr, flush=True)
    return as_table({**row, "changes": {}} for row in rows)


def damaged_as_texts_are(sources: dict[str, bytes], accounted: Accounted, each: int) -> str:
    """Return the table of what became of ``each`` copies of each source a damage, and the longest time below it."""
    lines, worst = [], 0.0
    for damage, change in DAMAGES.items():
        total: Counter[str] = Counter()
        others: Counter[str] = Counter()
        for name, data in sources.items():
            for number in range(FEW.get(damage, each)):
                rng = random.Random(f"{damage} {number}")
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / name
                    path.write_bytes(change(data.splitlines(keepends=True), rng))
                    started = time.perf_counter()
                    total["files"] += 1
                    try:
                        kept, left_out = accounted(path)
                        total["kept"] += kept
                        total["left_out"] += left_out
                        total["some" if left_out else "all"] += 1
                    except DataError:
                        total["refused"] += 1
                    except Exception as error:
                        total["other"] += 1
                        others[f"{name}: {type(error).__name__}: {str(error)[:80]}"] += 1
                    worst = max(worst, time.perf_counter() - started)
        keys = ("files", "refused", "all", "some", "kept", "left_out", "other")
        lines.append(f"| {damage} | " + " | ".join(f"{total[key]:,}" for key in keys) + " |")
        lines += [f"| {what} | {n} |" for what, n in others.items()]
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join([
        "| damage | files | refused as a whole | every row kept | some rows reported | rows kept | rows reported "
        "| another exception |", "| --- " + "| ---: " * 7 + "|", *lines, "",
        f"Longest of these: {worst:.1f} s, for four readings of the file."])


def report(title: str, about: str, sources: dict[str, bytes], accounted: Accounted) -> int:
    """Damage, read, print the tables and write them to the file that has the script's name."""
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=3_000, help="files of each format damaged at random")
    parser.add_argument("--each", type=int, default=300, help="files of each format damaged in each other way")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    text = "\n".join([
        f"# {title}", "", f"    uv run python benchmarks/{name}.py", "",
        about[about.index("Fault F23") : about.index("Results go")].strip(), "",
        'Damaged at random. "Refused" are files without a row that can be used, or that nobody can read to the end; '
        '"changed" is another number of rows kept or left out.', "",
        damaged_at_random(sources, accounted, options.inputs),
        f"Damaged as texts are, the same ways for the {len(sources)} files:", "",
        damaged_as_texts_are(sources, accounted, options.each), ""])
    (options.out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(report("Damaged files of labelled texts", __doc__ or "", sources(), accounted))
