"""Loading GPT-2-shaped weights: time and memory against transformers, and the peak of memory on every route.

    uv run python benchmarks/weights.py [--sizes 124M 355M 774M 1558M] [--repeats 3] [--routes]

Random weights in float32, saved by transformers as a Hugging Face directory. Contenders take turns, each load in a
process of its own that has imported what it needs; the files are in the system's cache. "first" is the first load of a
process, "again" a second one; both end when every weight has been read (their sum). The peak is the largest resident
memory since the imports, above what it was then, over the bytes of the weights. transformers maps the file, as
``mapped=True`` does; without it our model owns its memory, in the order of axes that computes fastest.

The second table is the peak on each way in and out. Results go to ``benchmarks/results``: weights.json, .md and .png.
Linux only; 1558M needs 20 GB of disk.
"""

import argparse
import gc
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

CONTENDERS = {
    "transformers": "from_pretrained(folder)",
    "mapped": "open_weights(folder).model(mapped=True)",
    "owned": "open_weights(folder).model()",
    "checkpoint": "load_checkpoint(our folder)",
}
SOURCES = {"Hugging Face, one file": "hf", "Hugging Face, in shards": "shards", ".pth with optimizer": "model.pth",
           ".pth with LoRA in all layers": "lora.pth", "nanoGPT's ckpt.pt": "ckpt.pt", "GGUF, Q8_0": "q8_0.gguf"}
ROUTES = (*SOURCES, "load_checkpoint", "convert to a checkpoint directory", "export to Hugging Face",
          "export to GGUF, F32", "export to GGUF, F16", "export to GGUF, Q8_0")


def status(field: str) -> int:
    """Return a field of this process's memory, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def measured(what: Callable[[], Any]) -> tuple[Any, float, int]:
    """Return the result of ``what``, the seconds it took, and by how many bytes the resident memory grew at most."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak
    before, started = status("VmRSS"), time.perf_counter()
    result = what()
    return result, time.perf_counter() - started, status("VmHWM") - before


def load(contender: str, folder: Path) -> dict[str, float]:
    """Load twice in this process."""
    import torch

    make: Callable[[], Any]
    if contender == "transformers":
        from transformers import GPT2LMHeadModel, logging

        logging.disable_progress_bar()
        make = lambda: GPT2LMHeadModel.from_pretrained(folder / "hf")  # noqa: E731
    elif contender == "checkpoint":
        from gpt_core import load_checkpoint

        make = lambda: load_checkpoint(folder / "ours").model  # noqa: E731
    else:
        from gpt_weights import open_weights

        make = lambda: open_weights(folder / "hf").model(mapped=contender == "mapped")  # noqa: E731

    def read() -> Any:
        model = make()
        with torch.no_grad():
            total = sum(float(parameter.sum()) for parameter in model.parameters())
        assert total == total
        return model

    model, first, peak = measured(read)
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    del model
    _, again, _ = measured(read)
    return {"first": first, "again": again, "peak": peak / n_bytes, "bytes": n_bytes}


def route(name: str, folder: Path) -> dict[str, float]:
    """Go one way in or out in this process."""
    from gpt_core import load_checkpoint
    from gpt_weights import convert, export_gguf, export_huggingface, find_tokenizer, inspect, open_weights

    lora_scale = 1.0 if "LoRA" in name else None
    weights = open_weights(folder / SOURCES.get(name, "hf"), lora_scale=lora_scale)
    n_bytes = 4 * inspect(weights).parameters
    tokenizer = find_tokenizer(folder / "tokenizer")
    out = folder / "out"
    ways: dict[str, Callable[[], Any]] = {
        "convert to a checkpoint directory": lambda: convert(weights, out),
        "load_checkpoint": lambda: load_checkpoint(folder / "ours"),
        "export to Hugging Face": lambda: export_huggingface(weights, out, tokenizer=tokenizer),
    }
    for kind in ("f32", "f16", "q8_0"):
        target = out / "model.gguf"
        ways[f"export to GGUF, {kind.upper()}"] = (
            lambda kind=kind, target=target: export_gguf(weights, target, tokenizer=tokenizer, kind=kind))
    if name.endswith(("F32", "F16", "Q8_0")):
        import gguf  # noqa: F401 - not in the measured part

        out.mkdir()
    _, seconds, peak = measured(ways.get(name, weights.model))
    return {"seconds": seconds, "peak": peak / n_bytes, "bytes": n_bytes}


def write(size: str, folder: Path) -> dict[str, float]:
    """Write the files that are read: by transformers and by torch."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt_core import gpt2_config
    from gpt_weights import convert, export_gguf, find_tokenizer, open_weights

    config = gpt2_config(size)
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_embd=config.emb_dim, n_layer=config.n_layers, n_head=config.n_heads))
    theirs.save_pretrained(folder / "hf", max_shard_size="20GB")
    convert(open_weights(folder / "hf"), folder / "ours")
    (folder / "tokenizer").mkdir()
    tokens = {"a": 0, "b": 1, "ab": 2, **{f"t{i}": i for i in range(3, 50256)}, "<|endoftext|>": 50256}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(tokens), encoding="utf-8")
    (folder / "tokenizer" / "merges.txt").write_text("a b\n", encoding="utf-8")
    if size in ("124M", "355M"):
        theirs.save_pretrained(folder / "shards", max_shard_size="200MB")
        model = open_weights(folder / "hf").model()
        moments = {n: {"exp_avg": p.detach().clone(), "exp_avg_sq": p.detach().clone()}
                   for n, p in enumerate(model.parameters())}
        optimizer = {"state": moments, "param_groups": []}
        torch.save({"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer}, folder / "model.pth")
        state = {f"_orig_mod.{name}": tensor.t().contiguous() if is_conv1d(name, tensor) else tensor
                 for name, tensor in theirs.state_dict().items()}
        arguments = {"n_layer": config.n_layers, "n_head": config.n_heads, "n_embd": config.emb_dim, "block_size": 1024,
                     "bias": True, "vocab_size": 50257}
        torch.save({"model": state, "optimizer": optimizer, "model_args": arguments}, folder / "ckpt.pt")
        torch.save(with_lora(model.state_dict()), folder / "lora.pth")
        tokenizer = find_tokenizer(folder / "tokenizer")
        export_gguf(open_weights(folder / "hf"), folder / "q8_0.gguf", tokenizer=tokenizer, kind="q8_0")
    return {}


def with_lora(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict as it is after appendix E's replace_linear_with_lora, with rank 16."""
    import torch

    found: dict[str, Any] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        is_linear = "_emb" not in name and "norm" not in name
        found[f"{module}.linear.{kind}" if is_linear else name] = tensor
        if is_linear and kind == "weight":
            found[f"{module}.lora.A"] = torch.randn(tensor.shape[1], 16)
            found[f"{module}.lora.B"] = torch.zeros(16, len(tensor))
    return found


def is_conv1d(name: str, tensor: Any) -> bool:
    """Whether transformers keeps this matrix as (in, out), where nanoGPT has (out, in)."""
    return ".h." in name and tensor.ndim == 2


def in_process(*arguments: str) -> dict[str, float]:
    """Do one thing in a process of its own and return its figures."""
    command = [sys.executable, __file__, "--do", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    return json.loads(done.stdout.splitlines()[-1])


def measure(sizes: list[str], repeats: int, last: dict[str, Any] | None) -> dict[str, Any]:
    """Return all figures, contenders in turns; of ``last``, an earlier report, the loads are kept as they are."""
    loads: list[dict[str, Any]] = []
    routes: list[dict[str, Any]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            in_process("write", size, name)
            found: dict[str, list[dict[str, float]]] = {contender: [] for contender in CONTENDERS}
            for _ in range(repeats if last is None else 0):
                for contender in CONTENDERS:
                    found[contender].append(in_process("load", contender, name))
            for contender, figures in found.items() if last is None else ():
                medians = {key: statistics.median(one[key] for one in figures) for key in figures[0]}
                worst = max(one["peak"] for one in figures)
                loads.append({"size": size, "contender": contender, **medians, "worst_peak": worst})
                print(loads[-1], file=sys.stderr, flush=True)
            for way in ROUTES if size in ("124M", "355M") else ():
                routes.append({"size": size, "route": way, **in_process("route", way, name)})
                shutil.rmtree(folder / "out", ignore_errors=True)
                print(routes[-1], file=sys.stderr, flush=True)
    versions = {name: version(name) for name in ("torch", "transformers", "safetensors")}
    made = {"python": platform.python_version(), **versions, "repeats": repeats, "loads": loads, "routes": routes}
    return made if last is None else {**last, "routes": routes}


def as_table(report: dict[str, Any]) -> str:
    """Return the Markdown page."""
    lines = ["# Loading weights", "",
             f"Medians of {report['repeats']} processes in turns, two cores; Python {report['python']}, "
             f"torch {report['torch']}, transformers {report['transformers']}, safetensors {report['safetensors']}; "
             "see the head of [weights.py](../weights.py).", "",
             "| shape | contender | first, s | ratio | again, s | ratio | peak / weights | at worst |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    theirs = {row["size"]: row for row in report["loads"] if row["contender"] == "transformers"}
    for row in report["loads"]:
        times = [f"{row[when]:.2f} | {row[when] / theirs[row['size']][when]:.2f}" for when in ("first", "again")]
        lines.append(f"| {row['size']} | {CONTENDERS[row['contender']]} | {' | '.join(times)} | {row['peak']:.3f} "
                     f"| {row['worst_peak']:.3f} |")
    lines += ["", "| route | " + " | ".join(f"peak / weights, {size}" for size in ("124M", "355M")) + " |",
              "| --- | ---: | ---: |"]
    for way in ROUTES:
        peaks = [f"{row['peak']:.3f}" for row in report["routes"] if row["route"] == way]
        lines.append(f"| {way} | " + " | ".join(peaks) + " |")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw time and peak of each contender over the size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), dpi=90, layout="constrained")
    for contender, label in CONTENDERS.items():
        rows = [row for row in report["loads"] if row["contender"] == contender]
        gigabytes = [row["bytes"] / 1e9 for row in rows]
        axes[0].loglog(gigabytes, [row["again"] for row in rows], "o-", label=label, markersize=4)
        axes[1].semilogx(gigabytes, [row["peak"] for row in rows], "o-", markersize=4)
    axes[0].set_ylabel("seconds until every weight was read")
    axes[1].set_ylabel("peak of memory / bytes of the weights")
    axes[1].axhline(1.15, color="gray", linewidth=0.7, linestyle="--")
    axes[1].set_ylim(0, 1.3)
    for axis in axes:
        axis.set_xlabel("weights, GB")
    axes[0].legend(fontsize=7)
    figure.savefig(path)


def main() -> int:
    """Measure, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["124M", "355M", "774M", "1558M"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--routes", action="store_true", help="measure the second table, keep the first one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--do", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        what, name, folder = options.do
        print(json.dumps({"write": write, "load": load, "route": route}[what](name, Path(folder))))
        return 0
    last = json.loads((options.out / "weights.json").read_text(encoding="utf-8")) if options.routes else None
    report = measure(["124M", "355M"] if options.routes else options.sizes, options.repeats, last)
    (options.out / "weights.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "weights.md").write_text(as_table(report), encoding="utf-8")
    print(as_table(report))
    plot(report, options.out / "weights.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
