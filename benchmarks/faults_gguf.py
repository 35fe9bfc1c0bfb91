"""Damaged and hostile GGUF files: is each refused with a sentence, at once, within little memory?

    uv run python benchmarks/faults_gguf.py [--files 12000] [--seed 1]

Good files of a small GPT-2 (float32, float16, 8 bits) are changed in ways drawn at random, and opened, and every value
read, in child processes that are replaced when they die or take longer than ten seconds. A file that still opens is
compared with the good one it was made of. Results go to ``benchmarks/results/faults_gguf.md``.
"""

import argparse
import json
import platform
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

KINDS = ("f32", "f16", "q8_0")
EXTREMES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
LONGEST = 10.0
BATCH = 500


def make_good_files(folder: Path) -> None:
    """Write one file of each kind."""
    import torch

    from gpt_core import GPTConfig, GPTModel, save_checkpoint
    from gpt_tokenizer import BPETokenizer
    from gpt_weights import export_gguf, open_weights

    torch.manual_seed(1)
    config = GPTConfig(vocab_size=280, context_length=16, emb_dim=32, n_heads=4, n_layers=2)
    tokenizer = BPETokenizer.train(["the cat sat on the mat, and the dog sat on the log. " * 20], vocab_size=270)
    save_checkpoint(folder / "model", GPTModel(config), tokenizer=tokenizer)
    for kind in KINDS:
        export_gguf(open_weights(folder / "model"), folder / f"{kind}.gguf", kind=kind)  # type: ignore[arg-type]


def header_size(data: bytes) -> int:
    """Return where the values begin: after the entry of the last tensor."""
    return data.rindex(b"ffn_down.bias") + 200


def change(good: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Return what was done and the changed file."""
    data, head = bytearray(good), header_size(good)
    way = draw.choice(("bytes in the header", "bytes in the values", "numbers in the header", "counts", "cut off",
                       "bytes left out", "bytes put in", "bytes repeated", "noise"))
    if way == "bytes in the header":
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(head)] = draw.randrange(256)
    elif way == "bytes in the values":
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(head, len(data))] = draw.randrange(256)
    elif way == "numbers in the header":
        for _ in range(draw.randint(1, 3)):
            form = draw.choice(("<Q", "<I"))
            number = struct.pack(form, draw.choice(EXTREMES) % 2 ** (8 * struct.calcsize(form)))
            at = draw.randrange(head - 8)
            data[at : at + len(number)] = number
    elif way == "counts":
        at = draw.choice((8, 16))
        data[at : at + 8] = struct.pack("<Q", draw.choice((*EXTREMES, *range(40))))
    elif way == "cut off":
        del data[draw.choice((draw.randrange(head), draw.randrange(len(data)))):]
    elif way == "bytes left out":
        at = draw.randrange(head)
        del data[at : at + draw.choice((1, 4, 8, 32, 100))]
    elif way == "bytes put in":
        at = draw.randrange(head)
        data[at:at] = draw.randbytes(draw.choice((1, 4, 8, 32, 100)))
    elif way == "bytes repeated":
        at, n = draw.randrange(head), draw.choice((8, 32, 100, 1000))
        data[at:at] = data[at : at + n]
    else:
        data = bytearray(good[: draw.choice((4, 8, 24, 100))] + draw.randbytes(draw.choice((0, 10, 1000, 20_000))))
    return way, bytes(data)


def child(folder: Path, seed: int, first: int, last: int) -> None:
    """Open the files ``first`` to ``last``; print a line before and after each."""
    import resource

    import torch

    from gpt_weights import WeightsError, open_weights

    def read(path: Path) -> tuple[Any, ...]:
        weights = open_weights(path)
        values = dict(weights.tensors())
        tokenizer = weights.tokenizer and (weights.tokenizer.vocabulary, weights.tokenizer.merges)
        return weights.config, tokenizer, values

    goods = {kind: (folder / f"{kind}.gguf").read_bytes() for kind in KINDS}
    expected = {kind: read(folder / f"{kind}.gguf") for kind in KINDS}
    path = folder / f"changed-{first}.gguf"
    for n in range(first, last):
        draw = random.Random(f"{seed} {n}")
        kind = draw.choice(KINDS)
        way, data = change(goods[kind], draw)
        path.write_bytes(data)
        print(json.dumps({"n": n, "way": way}), flush=True)
        start, outcome = time.perf_counter(), ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                config, tokenizer, values = read(path)
        except WeightsError:
            outcome = "refused"
        except BaseException as error:
            outcome = f"uncaught {type(error).__name__}: {error}"
        else:
            config_before, tokenizer_before, values_before = expected[kind]
            if config != config_before:
                outcome = "another config"
            elif any(not torch.equal(values[name].float(), values_before[name].float()) for name in values_before):
                outcome = "other values"
            else:
                outcome = "the same" if tokenizer == tokenizer_before else "another tokenizer"
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"n": n, "way": way, "outcome": outcome, "ms": seconds * 1e3, "rss": peak}), flush=True)
    path.unlink()


def run_children(folder: Path, seed: int, n_files: int) -> list[dict[str, Any]]:
    """Return a result for each file; a child that died or hung is replaced from the next file on."""
    results: list[dict[str, Any]] = []
    while len(results) < n_files:
        last = min(len(results) + BATCH, n_files)
        command = [sys.executable, __file__, "--child", str(folder), str(seed), str(len(results)), str(last)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        begun: dict[str, Any] | None = None
        hung = threading.Event()
        timer = threading.Timer(LONGEST, hung.set)

        def stop(of: subprocess.Popen[str] = process, mark: threading.Event = hung) -> None:
            mark.set()
            of.kill()

        for line in process.stdout:
            result = json.loads(line)
            if "outcome" in result:
                results.append(result)
                begun = None
                timer.cancel()
            else:
                begun = result
                timer = threading.Timer(LONGEST, stop)
                timer.start()
        code = process.wait()
        timer.cancel()
        if begun is not None:
            outcome = "hung" if hung.is_set() else f"crashed ({code})"
            results.append({**begun, "outcome": outcome, "ms": 0.0, "rss": 0})
        elif code != 0:
            raise SystemExit(f"a child could not start: exit code {code}")
    return results


def report(results: list[dict[str, Any]], base_rss: int) -> str:
    """Return the table and what it means, as Markdown."""
    ways = sorted({result["way"] for result in results})
    outcomes = ["refused", "the same", "another tokenizer", "other values", "another config"]
    bad = Counter(r["outcome"] for r in results if r["outcome"] not in outcomes)
    lines = [
        "# Damaged and hostile GGUF files", "",
        f"`python benchmarks/faults_gguf.py --files {len(results)}`, Python {platform.python_version()}, "
        f"{platform.system()}", "",
        f"| change | files | {' | '.join(outcomes)} | crashed, hung or uncaught |",
        "| --- | " + "---: | " * (len(outcomes) + 2),
    ]
    for way in [*ways, "all"]:
        count = Counter(r["outcome"] for r in results if way in (r["way"], "all"))
        rest = sum(n for outcome, n in count.items() if outcome not in outcomes)
        numbers = [sum(count.values()), *(count[outcome] for outcome in outcomes), rest]
        lines.append(f"| {way} | {' | '.join(f'{n:,}' for n in numbers)} |")
    slowest = max(result["ms"] for result in results)
    peak = max(result["rss"] for result in results)
    lines += [
        "", f"Crashes {sum(n for o, n in bad.items() if o.startswith('crashed'))}, hangs {bad['hung']}, uncaught "
        f"exceptions {sum(n for o, n in bad.items() if o.startswith('uncaught'))}. The slowest file took "
        f"{slowest:.0f} ms; the largest child had {peak} MiB, one that reads good files alone {base_rss} MiB.", "",
        "What opened though it was changed, and why nothing tells it:", "",
        "* *the same*: the change hit padding, a key that a model is not made of (its name, the file's type), or wrote "
        "what stood there;",
        "* *another tokenizer*: letters of a token or a merge, or its type; any text is a token;",
        "* *other values*: GGUF keeps no checksum. What is noticed is a value that became NaN or infinite, and a "
        "tensor that does not begin where the one before it ends;",
        "* *another config*: the number of heads, which no shape tells, became another divisor of the width.",
    ]
    lines += [f"* **{outcome}**: {n}" for outcome, n in bad.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the files and their changes, and write the report; or be one of the children."""
    if sys.argv[1:2] == ["--child"]:
        folder, seed, first, last = sys.argv[2:]
        child(Path(folder), int(seed), int(first), int(last))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_good_files(Path(folder))
        results = run_children(Path(folder), options.seed, options.files)
    base = min(result["rss"] for result in results if result["rss"])
    text = report(results, base)
    (Path(__file__).parent / "results" / "faults_gguf.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
