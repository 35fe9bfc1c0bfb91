"""Training throughput, peak memory and loss curves: ours against transformers and llms-from-scratch.

    uv pip install --no-deps --target PEERS llms-from-scratch      # its own requirements weigh gigabytes
    PYTHONPATH=PEERS uv run python benchmarks/training.py

Each measurement is a process of its own and the contenders take turns (A B C A B C ...), so that a disturbance of
the machine hits all of them; medians count, and only ratios within one run. All train GPT-2's architecture on the same
random ids (drop rate 0, AdamW, gradients clipped at 1), the peers as their documentation trains them, ours as
``gpt-pretrain`` does: the process keeps its freed memory, the optimizer is fused, the loss never holds all logits.
llms-from-scratch does not tie the output head; the others do. A contender that is not installed is left out, by name.

``--curves FILE`` trains ours on real text in float32 and in the default arithmetic, and compares the losses.
Results go to ``benchmarks/results``: training.json, .md and .png.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peak_memory import peak_memory

SIZES: dict[str, dict[str, int]] = {
    "laptop": {"layers": 6, "width": 384, "heads": 6, "vocabulary": 4096, "context": 256, "batch": 8, "tokens": 256},
    "124M": {"layers": 12, "width": 768, "heads": 12, "vocabulary": 50257, "context": 1024, "batch": 2, "tokens": 256},
}

Step = Callable[[Any, Any], float]


def ours(size: dict[str, int], precision: str) -> Step:
    """One step of gpt_train's loop."""
    from gpt_pretrain.memory import keep_freed_memory

    from gpt_core import GPTModel, initialize_gpt2
    from gpt_train import TrainConfig, train

    keep_freed_memory()
    model = GPTModel({
        "vocab_size": size["vocabulary"], "context_length": size["context"], "emb_dim": size["width"],
        "n_heads": size["heads"], "n_layers": size["layers"], "qkv_bias": True, "tie_weights": True})
    initialize_gpt2(model, seed=0)  # as transformers draws its weights
    queue: list[Any] = []
    reports = train(model, iter(queue.pop, None), config=TrainConfig(max_steps=10**6, lr=1e-4, precision=precision))

    def step(inputs: Any, targets: Any) -> float:
        queue.append((inputs, targets))
        return next(reports).loss

    return step


def plain(model: Any, logits: Callable[[Any], Any], autocast: bool) -> Step:
    """A step as the peers' own documentation writes it."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    model.train()

    def step(inputs: Any, targets: Any) -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = torch.nn.functional.cross_entropy(logits(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def transformers_gpt2(size: dict[str, int], autocast: bool) -> Step:
    """Hugging Face's GPT2LMHeadModel."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=size["vocabulary"], n_positions=size["context"], n_embd=size["width"], n_layer=size["layers"],
        n_head=size["heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False))
    return plain(model, lambda ids: model(input_ids=ids).logits, autocast)


def llms_from_scratch(size: dict[str, int], name: str) -> Step:
    """The book's GPTModel or GPTModelFast."""
    from llms_from_scratch import ch04

    model = getattr(ch04, name)({
        "vocab_size": size["vocabulary"], "context_length": size["context"], "emb_dim": size["width"],
        "n_heads": size["heads"], "n_layers": size["layers"], "drop_rate": 0.0, "qkv_bias": True})
    return plain(model, model, autocast=False)


CONTENDERS: dict[str, tuple[str, Callable[[dict[str, int]], Step]]] = {
    "ours, float32": ("gpt-train", lambda size: ours(size, "float32")),
    "ours, default": ("gpt-train", lambda size: ours(size, "auto")),
    "transformers, float32": ("transformers", lambda size: transformers_gpt2(size, autocast=False)),
    "transformers, bfloat16 autocast": ("transformers", lambda size: transformers_gpt2(size, autocast=True)),
    "llms-from-scratch GPTModel, float32": ("llms-from-scratch", lambda size: llms_from_scratch(size, "GPTModel")),
    "llms-from-scratch GPTModelFast, float32": (
        "llms-from-scratch", lambda size: llms_from_scratch(size, "GPTModelFast")),
}


def measure(contender: str, size_name: str, steps: int) -> dict[str, float]:
    """Train ``steps`` steps in this process after two that are not counted."""
    import torch

    size = SIZES[size_name]
    torch.manual_seed(0)
    step = CONTENDERS[contender][1](size)
    shape, seconds = (size["batch"], size["tokens"]), []
    for number in range(steps + 2):
        inputs, targets = (torch.randint(size["vocabulary"], shape) for _ in range(2))
        start = time.perf_counter()
        step(inputs, targets)
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    return {"tokens_per_second": shape[0] * shape[1] / statistics.median(seconds), "peak_gib": peak_memory() / 2**30}


def curves(file: Path, steps: int) -> dict[str, list[float]]:
    """Train the laptop size on the text of ``file`` in both arithmetics from the same start; return the losses."""
    from gpt_core import GPTModel, initialize_gpt2
    from gpt_tokenizer import BPETokenizer
    from gpt_train import ShardDataset, TrainConfig, train, write_shards

    size, text = SIZES["laptop"], file.read_text(encoding="utf-8")
    tokenizer = BPETokenizer.train([text], vocab_size=size["vocabulary"])
    import tempfile

    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), [tokenizer.encode(text)], n_vocab=tokenizer.n_vocab,
                     tokenizer_sha256=tokenizer.sha256)
        data = ShardDataset(Path(folder), n_vocab=tokenizer.n_vocab)
        for precision in ("float32", "auto"):
            model = GPTModel({
                "vocab_size": size["vocabulary"], "context_length": size["context"], "emb_dim": size["width"],
                "n_heads": size["heads"], "n_layers": size["layers"], "tie_weights": True})
            initialize_gpt2(model, seed=1)
            batches = data.batches(batch_size=size["batch"], context_length=size["tokens"], seed=1)
            config = TrainConfig(max_steps=steps, lr=1e-3, warmup_steps=steps // 10, precision=precision)
            losses[precision] = [report.loss for report in train(model, batches, config=config)]
    return losses


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every installed contender at each size, in turns."""
    versions, names = {}, []
    for name, (package, _) in CONTENDERS.items():
        try:
            versions[package] = importlib.metadata.version(package)
            names.append(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: {package} is not installed and left out", file=sys.stderr)
    versions["torch"] = importlib.metadata.version("torch")
    rows = []
    for size in options.sizes:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(options.repeats):
            for name in names:
                command = [sys.executable, __file__, "--contender", name, "--sizes", size]
                command += ["--steps", str(options.steps)]
                result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
                if result.returncode != 0:
                    raise SystemExit(f"{name} failed:\n{result.stderr}")
                runs[name].append(json.loads(result.stdout.splitlines()[-1]))
        for name in names:
            rows.append({
                "size": size, "contender": name,
                "tokens_per_second": statistics.median(run["tokens_per_second"] for run in runs[name]),
                "all": [round(run["tokens_per_second"], 1) for run in runs[name]],
                "peak_gib": round(statistics.median(run["peak_gib"] for run in runs[name]), 2)})
            print(rows[-1], file=sys.stderr)
    return {"sizes": {name: SIZES[name] for name in options.sizes}, "repeats": options.repeats, "steps": options.steps,
            "versions": versions, "python": platform.python_version(), "cores": os.cpu_count(), "rows": rows}


def as_table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = ["# Training throughput", "",
             f"Python {report['python']}, {report['cores']} cores; "
             + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
             + f". Median of {report['repeats']} processes in turns, {report['steps']} steps each."]
    for name, size in report["sizes"].items():
        rows = [row for row in report["rows"] if row["size"] == name]
        rates = {row["contender"]: row["tokens_per_second"] for row in rows}
        base = rates.get("transformers, float32")
        lines += ["", f"## {name}: {size['layers']} layers, {size['width']} wide, vocabulary {size['vocabulary']:,}, "
                  f"batch {size['batch']} x {size['tokens']}", "",
                  "| contender | tokens/s | of transformers, float32 | peak memory, GiB |",
                  "| --- | ---: | ---: | ---: |"]
        for row in rows:
            ratio = f"{row['tokens_per_second'] / base:.2f}" if base else ""
            lines.append(f"| {row['contender']} | {row['tokens_per_second']:,.0f} | {ratio} | {row['peak_gib']} |")
    if "curves" in report:
        found = report["curves"]
        lines += ["", f"## Loss on {found['text']}, float32 and the default arithmetic from the same start", "",
                  "| steps | float32 | default | difference |", "| --- | ---: | ---: | ---: |"]
        n = len(found["float32"])
        for start in range(0, n, max(n // 5, 1)):
            part = slice(start, start + max(n // 5, 1))
            first, second = (statistics.mean(found[key][part]) for key in ("float32", "auto"))
            lines.append(f"| {part.start + 1} to {min(part.stop, n)} | {first:.4f} | {second:.4f} | "
                         f"{second - first:+.4f} |")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the rates as bars, a panel a size, and the loss curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [*report["sizes"], *(["curves"] if "curves" in report else [])]
    figure, axes = plt.subplots(len(panels), 1, figsize=(7, 2.4 * len(panels)), dpi=90, layout="constrained")
    for panel, axis in zip(panels, axes if len(panels) > 1 else [axes], strict=True):
        if panel == "curves":
            for key, label in (("float32", "float32"), ("auto", "default")):
                axis.plot(report["curves"][key], label=label, linewidth=1)
            axis.set_xlabel("step")
            axis.set_ylabel("loss, nats a token")
            axis.legend()
            continue
        rows = [row for row in report["rows"] if row["size"] == panel]
        axis.barh([row["contender"] for row in rows][::-1], [row["tokens_per_second"] for row in rows][::-1])
        axis.set_title(panel)
        axis.set_xlabel("tokens/s")
    figure.savefig(path)


def main() -> int:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--curves", type=Path, help="a text file to compare the arithmetics on")
    parser.add_argument("--curve-steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(measure(options.contender, options.sizes[0], options.steps)))
        return 0
    report = run_all(options)
    if options.curves:
        report["curves"] = {"text": options.curves.name, **curves(options.curves, options.curve_steps)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "training.md").write_text(as_table(report), encoding="utf-8")
    print(as_table(report))
    plot(report, options.out / "training.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
