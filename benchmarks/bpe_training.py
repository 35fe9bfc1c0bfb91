"""Time to learn a byte-level BPE vocabulary, ours against others, on real text at several sizes.

    uv run --with rustbpe --with sentencepiece python benchmarks/bpe_training.py --data FILE|FOLDER...

Without ``--data`` the text is the source of Python's standard library. Each measurement is a process of its
own; the contenders take turns, so that a disturbance of the machine hits all of them; the median counts. What
is timed is the training on texts that lie in memory already, one text a file; memory is the peak of the whole
process, text and imports included. A contender that is not installed is left out, by name; the trainer that the book's
repository has as a bonus is in no package on PyPI, so it is not among them. Results go to ``benchmarks/results``:
bpe_training.json, .md and, if matplotlib is installed, .png.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from peak_memory import peak_memory

SUFFIXES = {".txt", ".md", ".rst", ".py"}
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

Merges = list[list[str]] | None     # hexadecimal pairs in the order learned; None where not comparable


def train_ours(texts: list[str], vocab_size: int) -> Callable[[], Merges]:
    """gpt-tokenizer: one thread of Python."""
    from gpt_tokenizer import BPETokenizer

    tokenizer = BPETokenizer.train(texts, vocab_size=vocab_size, special_tokens=())
    return lambda: [[left.hex(), right.hex()] for left, right in tokenizer.merges]


def train_tokenizers(texts: list[str], vocab_size: int) -> Callable[[], Merges]:
    """Hugging Face's BpeTrainer with the same settings: Rust, all cores."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=byte_level.alphabet()))

    def merges() -> Merges:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in printable]
        byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
        return [[bytes(byte_of[c] for c in part).hex() for part in pair]
                for pair in json.loads(tokenizer.to_str())["model"]["merges"]]

    return merges


def train_rustbpe(texts: list[str], vocab_size: int) -> Callable[[], Merges]:
    """The trainer of nanochat: Rust, all cores; breaks ties in another way."""
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=GPT2_SPLIT)
    return lambda: None


def train_sentencepiece(texts: list[str], vocab_size: int) -> Callable[[], Merges]:
    """sentencepiece's BPE: C++; its own splitting at spaces, characters and not bytes."""
    import io

    import sentencepiece

    lines = [line for text in texts for line in text.splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=io.BytesIO(), vocab_size=vocab_size, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, hard_vocab_limit=False, max_sentence_length=1 << 20,
        num_threads=os.cpu_count(), minloglevel=2)
    return lambda: None


CONTENDERS: dict[str, Callable[[list[str], int], Callable[[], Merges]]] = {
    "gpt-tokenizer": train_ours,
    "tokenizers": train_tokenizers,
    "rustbpe": train_rustbpe,
    "sentencepiece": train_sentencepiece,
}


def read_texts(paths: Iterable[Path], n_characters: int) -> list[str]:
    """Return the texts of files, and of folders' files in sorted order, until there are ``n_characters``."""
    texts: list[str] = []
    for path in paths:
        files = [path] if path.is_file() else sorted(
            f for f in path.rglob("*") if f.suffix in SUFFIXES and "site-packages" not in f.parts)
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")[:n_characters]
            except UnicodeDecodeError:
                continue    # a few of the standard library's test files are not UTF-8 on purpose
            texts.append(text)
            n_characters -= len(text)
            if n_characters <= 0:
                return texts
    raise SystemExit(f"the data lack {n_characters:,} characters for the largest size: pass more --data")


def measure(contender: str, data: list[Path], n_characters: int, vocab_size: int) -> dict[str, Any]:
    """Train once, in this process."""
    texts = read_texts(data, n_characters)
    train = CONTENDERS[contender]
    train(["warm up"], 300 if contender == "sentencepiece" else 258)    # imports are not timed
    start = time.perf_counter()
    merges_of = train(texts, vocab_size)
    seconds = time.perf_counter() - start
    peak, merges = peak_memory(), merges_of()
    digest = None if merges is None else hashlib.sha256(json.dumps(merges).encode()).hexdigest()
    return {"seconds": seconds, "peak_mib": peak / 2**20, "merges_sha256": digest}


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every installed contender ``options.repeats`` times at each size, in turns."""
    installed: dict[str, str] = {}
    for name in CONTENDERS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed and left out", file=sys.stderr)
    rows = []
    for size in options.sizes:
        n_characters = int(size * 1_000_000)
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in installed}
        for _ in range(options.repeats):
            for name in installed:
                command = [
                    sys.executable, __file__, "--contender", name, "--sizes", str(size),
                    "--vocab-size", str(options.vocab_size), "--data", *map(str, options.data)]
                output = subprocess.run(
                    command, capture_output=True, text=True, encoding="utf-8", check=False)
                if output.returncode != 0:
                    raise SystemExit(f"{name} failed:\n{output.stderr}")
                results[name].append(json.loads(output.stdout.splitlines()[-1]))
        ours = results["gpt-tokenizer"][0]["merges_sha256"]
        for name, runs in results.items():
            digests = {run["merges_sha256"] for run in runs}
            rows.append({
                "size_mb": n_characters / 1_000_000, "contender": name,
                "seconds": statistics.median(run["seconds"] for run in runs),
                "all_seconds": [round(run["seconds"], 4) for run in runs],
                "peak_mib": round(statistics.median(run["peak_mib"] for run in runs)),
                "same_merges": None if digests == {None} else digests == {ours},
            })
            print(rows[-1], file=sys.stderr)
    return {"vocab_size": options.vocab_size, "repeats": options.repeats, "versions": installed,
            "python": platform.python_version(), "cores": os.cpu_count(),
            "data": [path.name for path in options.data], "rows": rows}


def as_table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    told = {True: "the same", False: "others", None: ""}
    lines = [
        f"# Learning {report['vocab_size']:,} BPE tokens",
        "",
        f"Python {report['python']}, {report['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        + f". Text: {', '.join(report['data'])}. Median of {report['repeats']}, in turns.",
        "",
        "| million characters | contender | seconds | of gpt-tokenizer's time | peak memory, MiB | merges |",
        "| ---: | --- | ---: | ---: | ---: | --- |",
    ]
    ours = {row["size_mb"]: row["seconds"] for row in report["rows"] if row["contender"] == "gpt-tokenizer"}
    for row in report["rows"]:
        lines.append(
            f"| {row['size_mb']:g} | {row['contender']} | {row['seconds']:.3f} | "
            f"{row['seconds'] / ours[row['size_mb']]:.2f} | {row['peak_mib']} | {told[row['same_merges']]} |")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw seconds over size, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.4), dpi=90, layout="constrained")
    for name in report["versions"]:
        rows = [row for row in report["rows"] if row["contender"] == name]
        axes.loglog([r["size_mb"] for r in rows], [r["seconds"] for r in rows], marker="o", label=name)
    axes.set_xlabel("million characters")
    axes.set_ylabel("seconds")
    axes.set_title(f"Learning {report['vocab_size']:,} BPE tokens")
    axes.legend()
    figure.savefig(path)


def main() -> int:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, default=[Path(sysconfig.get_paths()["stdlib"])],
                        help="text files and folders (*.txt *.md *.rst *.py); default: the standard library")
    parser.add_argument("--sizes", nargs="+", type=float, default=[0.1, 1, 10], help="in million characters")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        n_characters = int(options.sizes[0] * 1_000_000)
        print(json.dumps(measure(options.contender, options.data, n_characters, options.vocab_size)))
        return 0
    report = run_all(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bpe_training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "bpe_training.md").write_text(as_table(report), encoding="utf-8")
    print(as_table(report))
    try:
        plot(report, options.out / "bpe_training.png")
    except ImportError:
        print("matplotlib is not installed: no plot", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
