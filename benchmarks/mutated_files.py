"""Files damaged in every way that comes to mind, and what a loader makes of them; the benchmarks beside it import it.

Each batch runs in a process of its own, so that a crash of a library is seen and counted, not suffered.
"""

import json
import multiprocessing
import os
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Load = Callable[[Path], Any]
"""Read the damaged file or folder; return what was read (compared with ``==``) or raise."""

BATCH = 250
SLOW = 10.0


def mutate(data: bytes, rng: random.Random, header: int) -> tuple[str, bytes]:
    """Return what was done to the data, and the result; half of all changes fall into the first ``header`` bytes."""
    at = rng.randrange(min(header, len(data)) if rng.random() < 0.5 else len(data))
    changed = bytearray(data)
    kind = rng.choice(("bit", "bytes", "cut", "zeros", "ones", "insert", "remove", "repeat", "number"))
    n = rng.choice((1, 2, 4, 8, 64, 1024))
    if kind == "bit":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        changed[at : at + n] = rng.randbytes(len(changed[at : at + n]))
    elif kind == "cut":
        del changed[at:]
    elif kind in ("zeros", "ones"):
        changed[at : at + n] = bytes([0 if kind == "zeros" else 255]) * len(changed[at : at + n])
    elif kind == "insert":
        changed[at:at] = rng.randbytes(n)
    elif kind == "remove":
        del changed[at : at + n]
    elif kind == "repeat":
        changed[at:at] = changed[at : at + n]
    else:  # a count or an offset becomes one of those that overflow
        value = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)).to_bytes(8, "little")
        changed[at : at + 8] = value[: len(changed[at : at + 8])]
    return kind, bytes(changed)


def run(name: str, sources: dict[str, bytes], folder: Path, load: Load, refused: type[Exception], *, inputs: int,
        seed: int = 0, header: int = 4096, memory: int = 4 * 2**30) -> dict[str, Any]:
    """Return the figures for ``inputs`` damaged copies of the files ``sources``, of which one is damaged at a time.

    ``load`` gets the folder with the files, or the file if there is one only. A load that succeeds counts as
    unchanged if its result equals that of the intact files, else as changed.
    """
    total: Counter[str] = Counter()
    others: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    worst_ms, worst_rss, done = 0.0, 0, 0
    while done < inputs:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        arguments = (sender, sources, folder, load, refused, done, min(BATCH, inputs - done), seed, header, memory)
        child = multiprocessing.get_context("fork").Process(target=_batch, args=arguments)
        child.start()
        sender.close()
        while True:
            try:
                if not receiver.poll(6 * SLOW):
                    child.kill()
                    total["hang"] += 1
                    break
                result, kind, what, ms, rss = receiver.recv()
            except EOFError:
                break
            done += 1
            total[result] += 1
            others[what] += result == "other"
            changed[f"{what}: {kind}"] += result == "changed"
            worst_ms, worst_rss = max(worst_ms, ms), max(worst_rss, rss)
            total["slow"] += ms > 1000 * SLOW
        child.join()
        if child.exitcode:
            total["crash"] += 1
            done += 1
    return {
        "format": name, "inputs": done, "refused": total["refused"], "unchanged": total["unchanged"],
        "changed": total["changed"], "other": total["other"], "crash": total["crash"],
        "hang": total["hang"] + total["slow"], "max_ms": round(worst_ms, 1), "max_rss_mb": round(worst_rss / 2**20, 1),
        "others": dict(+others), "changes": dict(+changed),
    }


def _batch(sender: Connection, sources: dict[str, bytes], folder: Path, load: Load, refused: type[Exception],
           first: int, count: int, seed: int, header: int, memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - of libraries, for this process' life
    base = _resident()
    for path, data in sources.items():
        (folder / path).write_bytes(data)
    target = folder if len(sources) > 1 else folder / next(iter(sources))
    intact = load(target)
    for number in range(first, first + count):
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(sorted(sources))
        kind, data = mutate(sources[name], rng, header)
        (folder / name).write_bytes(data)
        started = time.perf_counter()
        what = name
        try:
            result = "unchanged" if load(target) == intact else "changed"
        except refused:
            result = "refused"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            result, what = "other", f"{type(error).__name__} in {Path(where.filename).name}: {str(error)[:80]}"
        elapsed = 1000 * (time.perf_counter() - started)
        sender.send((result, kind, what, elapsed, max(0, _resident() - base)))
        (folder / name).write_bytes(sources[name])
    sender.close()
    os._exit(0)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table, and below it what needs a word."""
    rows = list(rows)
    lines = ["| format | inputs | refused | loaded, unchanged | loaded, changed | another exception | crashes | hangs "
             "| longest, ms | memory, MB |", "| --- " + "| ---: " * 9 + "|"]
    for row in rows:
        keys = ("inputs", "refused", "unchanged", "changed", "other", "crash", "hang", "max_ms", "max_rss_mb")
        lines.append(f"| {row['format']} | " + " | ".join(f"{row[key]:,}" for key in keys) + " |")
    for row in rows:
        for title, found in (("other exceptions", row["others"]), ("changed values", row["changes"])):
            if found:
                lines += ["", f"{row['format']}, {title}: {json.dumps(found)}"]
    return "\n".join(lines) + "\n"
