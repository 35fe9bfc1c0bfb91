"""What ``gpt_core.estimate`` tells of memory against what processes take, on Linux.

    uv run python benchmarks/estimate.py

Each row is a process of its own, one after the other: the largest resident memory from the moment at which torch and
gpt_core are imported, less that moment's. Weights are random. Loading reads a checkpoint that another process wrote;
generation fills the cache of a model that is in memory (what building and quantizing it took is handed back before);
training takes five steps, with freed memory kept as ``gpt-pretrain`` does, and handed back as glibc does by itself.

The largest row holds about 10 GiB. Results go to ``benchmarks/results``: estimate.json, .md and .png.
"""

import argparse
import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peak_memory import peak_memory

SMALL = {"qkv_bias": True, "tie_weights": True}
SIZES: dict[str, dict[str, Any]] = {
    "12M": {"n_layers": 6, "emb_dim": 384, "n_heads": 6, "vocab_size": 4096, "context_length": 256, **SMALL},
    "42M": {"n_layers": 8, "emb_dim": 512, "n_heads": 8, "vocab_size": 32000, "context_length": 1024, **SMALL},
}
Row = dict[str, Any]


def rows() -> list[Row]:
    """Return what is measured: four sizes for each mode."""
    found: list[Row] = []
    for size, dtype in (("124M", "float32"), ("355M", "float32"), ("774M", "float32"), ("1558M", "bfloat16")):
        found.append({"mode": "load", "size": size, "dtype": dtype, "batch": 1, "context": 1024})
    for size, batch in (("124M", 8), ("355M", 4), ("774M", 2), ("1558M", 1)):
        for dtype in ("float32", "bfloat16", "int8"):
            found.append({"mode": "generate", "size": size, "dtype": dtype, "batch": batch, "context": 1024})
    for size, batch, context in (("12M", 8, 256), ("42M", 4, 1024), ("124M", 2, 512), ("355M", 1, 512)):
        for dtype in ("float32", "bfloat16"):
            for keeps in (True, False):
                found.append({
                    "mode": "train", "size": size, "dtype": dtype, "batch": batch, "context": context, "keeps": keeps})
    return found


def measure(row: Row) -> Row:
    """Do what the row says in this process, and return it with the estimate and the measured peak, in bytes."""
    import torch

    import gpt_core

    before = peak_memory()
    config = gpt_core.GPTConfig(**SIZES[row["size"]]) if row["size"] in SIZES else gpt_core.gpt2_config(row["size"])
    {"save": save, "load": load, "generate": generate, "train": train}[row["mode"]](torch, gpt_core, config, row)
    peak = peak_memory() - before
    if row["mode"] == "save":
        return row
    from gpt_core.estimate import estimate

    told = estimate(
        config, batch=row["batch"], context=row["context"], dtype=row["dtype"], mode=row["mode"])
    return {**row, "measured": peak, "estimate": told.peak_bytes, "parts": told.parts, "parameters": told.parameters}


def save(torch: Any, gpt_core: Any, config: Any, row: Row) -> None:
    """Write a checkpoint for a row of mode load."""
    model = gpt_core.GPTModel(config).to(getattr(torch, row["dtype"]))
    if config.tie_weights:
        model.out_head.weight = model.tok_emb.weight
    gpt_core.save_checkpoint(row["folder"], model)


def load(torch: Any, gpt_core: Any, config: Any, row: Row) -> None:
    """Load the checkpoint."""
    gpt_core.load_checkpoint(row["folder"])


def generate(torch: Any, gpt_core: Any, config: Any, row: Row) -> None:
    """Fill the cache with ``batch`` sequences of ``context`` tokens, the last four of them generated together."""
    model = gpt_core.GPTModel(config).eval()
    if row["dtype"] != "float32":
        model = gpt_core.quantize(model, row["dtype"])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(config.vocab_size, (row["batch"], row["context"] - 4), generator=generator).tolist()
    gpt_core.generate_batch(model, prompts, max_new_tokens=4)


def train(torch: Any, gpt_core: Any, config: Any, row: Row) -> None:
    """Take five steps."""
    from gpt_pretrain.memory import keep_freed_memory

    from gpt_train import TrainConfig
    from gpt_train import train as train_steps

    if row["keeps"]:
        keep_freed_memory()
    torch.manual_seed(0)
    shape = (row["batch"], row["context"])
    batches = [tuple(torch.randint(config.vocab_size, shape) for _ in range(2)) for _ in range(5)]
    settings = TrainConfig(max_steps=len(batches), lr=1e-4, precision=row["dtype"])
    for _ in train_steps(gpt_core.GPTModel(config), batches, config=settings):
        pass


def in_process(row: Row) -> Row:
    """Measure a row in a process of its own."""
    command = [sys.executable, __file__, "--row", json.dumps(row)]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if result.returncode:
        raise RuntimeError(f"{row} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def run(row: Row) -> Row:
    """Measure a row; for loading, write its checkpoint first and remove it afterwards."""
    if row["mode"] != "load":
        return in_process(row)
    with tempfile.TemporaryDirectory() as folder:
        there = {**row, "folder": str(Path(folder) / "model")}
        in_process({**there, "mode": "save"})
        return {**in_process(there), "folder": None}


def as_table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        "# Estimated and measured peaks of memory", "",
        f"Python {report['python']}, torch {report['torch']}, {platform.libc_ver()[0]}, {report['threads']} thread(s). "
        "Beyond a process that has imported torch and gpt_core, in MiB. A positive error: estimated too high.", ""]
    for mode in ("load", "generate", "train"):
        found = [row for row in report["rows"] if row["mode"] == mode]
        if not found:
            continue
        lines += [f"## {mode}", "", "| size | dtype | batch x context | estimate | measured | error | largest parts |",
                  "| --- | --- | --- | ---: | ---: | ---: | --- |"]
        for row in found:
            largest = sorted(row["parts"].items(), key=lambda part: -part[1])[:3]
            parts = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in largest if size)
            dtype = row["dtype"] + {True: ", memory kept", False: ", glibc's default", None: ""}[row.get("keeps")]
            lines.append(
                f"| {row['size']} | {dtype} | {row['batch']} x {row['context']} | {row['estimate'] / 2**20:,.0f} | "
                f"{row['measured'] / 2**20:,.0f} | {error(row):+.1%} | {parts} |")
        lines.append("")
    worst = max(report["rows"], key=lambda row: abs(error(row)))
    lines.append(f"Largest error: {error(worst):+.1%} ({worst['mode']}, {worst['size']}, {worst['dtype']}).")
    return "\n".join(lines) + "\n"


def error(row: Row) -> float:
    """Return by which share of the measured peak the estimate is above it."""
    return row["estimate"] / row["measured"] - 1


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw each estimate over its measured peak."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4.5), dpi=90, layout="constrained")
    for mode, marker in (("load", "s"), ("generate", "o"), ("train", "^")):
        found = [row for row in report["rows"] if row["mode"] == mode]
        axis.loglog([row["measured"] / 2**30 for row in found], [row["estimate"] / 2**30 for row in found], marker,
                    label=mode, markersize=5, alpha=0.8)
    ends = [0.9 * min(row["measured"] for row in report["rows"]) / 2**30,
            1.1 * max(row["measured"] for row in report["rows"]) / 2**30]
    axis.plot(ends, ends, "k-", linewidth=0.7)
    axis.fill_between(ends, [0.9 * end for end in ends], [1.1 * end for end in ends], alpha=0.15, label="within 10 %")
    axis.set_xlabel("measured peak, GiB")
    axis.set_ylabel("estimate, GiB")
    axis.legend()
    figure.savefig(path)


def main() -> int:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=("load", "generate", "train"),
                        default=["load", "generate", "train"],
                        help="measure these and keep the other modes' rows of the last run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row)))
        return 0
    file = options.out / "estimate.json"
    measured = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    measured = [row for row in measured if row["mode"] not in options.modes]
    for row in rows():
        if row["mode"] in options.modes:
            measured.append(run(row))
            last = measured[-1]
            print(f"{error(last):+.3f} {last}", file=sys.stderr, flush=True)
    report = {
        "python": platform.python_version(), "torch": importlib.metadata.version("torch"),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)), "rows": measured}
    options.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "estimate.md").write_text(as_table(report), encoding="utf-8")
    print(as_table(report))
    plot(report, options.out / "estimate.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
