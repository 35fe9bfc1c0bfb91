"""Damaged safetensors files and damaged ``torch.save`` files: each is refused with a sentence, or loads as it was.

    uv run python benchmarks/faults_weights.py

Faults F20 and F22: a checkpoint of a small GPT-2 in a Hugging Face directory, in shards, and as a ``.pth`` with its
optimizer, damaged one file at a time (bits, bytes, lengths, cuts, insertions), 10,000 times each. What may load with
other values is a damaged value: neither format has a checksum of its values; our checkpoint directory has, and is
measured beside them. Then the cases that need a hand: header lengths, every truncation, traps in pickles.

Results go to ``benchmarks/results/faults_weights.md``. Linux only.
"""

import argparse
import io
import json
import os
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mutated_files import as_table, run

from gpt_core import GPTConfig, GPTModel, save_checkpoint
from gpt_weights import WeightsError, open_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "gpt-weights" / "tests"))
from hand_made import CONFIG, huggingface_tensors

SIZES = GPTConfig(vocab_size=23, context_length=8, emb_dim=8, n_heads=2, n_layers=2, qkv_bias=True)


def values(path: Path) -> dict[str, bytes]:
    """Load the weights and return their bytes."""
    given = {} if path.is_dir() else {"n_heads": 2}
    return {name: tensor.numpy().tobytes() for name, tensor in open_weights(path, **given).tensors()}


def sources() -> dict[str, dict[str, bytes]]:
    """Return the files of each format."""
    torch.manual_seed(0)
    tensors = huggingface_tensors()
    config = json.dumps(CONFIG).encode()
    names = sorted(tensors)
    halves = [{name: tensors[name] for name in part} for part in (names[::2], names[1::2])]
    shards = {f"model-0000{n}-of-00002.safetensors": safetensors.torch.save(half) for n, half in enumerate(halves, 1)}
    places = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": places}).encode()
    model = GPTModel(SIZES)
    saved = io.BytesIO()
    torch.save({"model_state_dict": model.state_dict(),
                "optimizer_state_dict": torch.optim.AdamW(model.parameters()).state_dict()}, saved)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "ours", model)
        ours = {path.name: path.read_bytes() for path in sorted((Path(folder) / "ours").iterdir())}
    return {
        "safetensors, Hugging Face": {"config.json": config, "model.safetensors": safetensors.torch.save(tensors)},
        "safetensors, in shards": {"config.json": config, "model.safetensors.index.json": index, **shards},
        "torch.save, with optimizer": {"model.pth": saved.getvalue()},
        "our checkpoint directory": ours,
    }


def hand_made(folder: Path) -> list[str]:
    """Try what random damage does not reach; return a line a case, with what was said of it."""
    whole = sources()["safetensors, Hugging Face"]["model.safetensors"]
    n_header = 8 + struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:n_header])

    def with_header(change: Any) -> bytes:
        changed = json.loads(json.dumps(header))
        change(changed)
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + whole[n_header:]

    wte = "transformer.wte.weight"
    cases = {
        "header length 0": struct.pack("<Q", 0) + whole[8:],
        "header length 2^63": struct.pack("<Q", 2**63) + whole[8:],
        "header length 2^64 - 1": struct.pack("<Q", 2**64 - 1) + whole[8:],
        "100 MB of JSON": struct.pack("<Q", 100_000_001) + b"{" + b" " * 100_000_000,
        "99 MB of JSON, empty": struct.pack("<Q", 99_000_000) + b"{" + b" " * 98_999_998 + b"}",
        "JSON 100,000 deep": struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000,
        "offsets that overlap": with_header(lambda h: h[wte].update(data_offsets=[0, 736])),
        "a hole": with_header(lambda h: h.pop(wte)),
        "an offset of 2^63": with_header(lambda h: h[wte].update(data_offsets=[0, 2**63])),
        "a negative offset": with_header(lambda h: h[wte].update(data_offsets=[-736, 0])),
        "a shape of 2^62 squared": with_header(lambda h: h[wte].update(shape=[2**62, 2**62])),
        "a dtype of whole numbers": with_header(lambda h: h[wte].update(dtype="I32")),
        "a dtype that is none": with_header(lambda h: h[wte].update(dtype="F33")),
        "a name twice": whole[:8] + whole[8:n_header].replace(b"transformer.wpe.weight", b"transformer.wte.weight")
        + whole[n_header:],
        "NaN in a tensor": whole[:n_header] + struct.pack("<f", float("nan")) * 184 + whole[n_header + 736 :],
    }
    lines = []
    for name, data in cases.items():
        path = folder / "model.safetensors"
        path.write_bytes(data)
        lines.append(f"| {name} | {said(path)} |")
    refusals = 0
    for length in range(n_header + 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        refusals += "WeightsError" in said(folder / "model.safetensors")
    lines.append(f"| cut at each of {n_header + 1} bytes of the header | {refusals} times WeightsError |")
    trap = folder / "trap"
    executed = 0
    for gadget in ((os.system, f"touch {trap}"), (os.mkdir, str(trap)), (eval, f"open({str(trap)!r}, 'w')"),
                   (exec, f"open({str(trap)!r}, 'w')"), (__import__, "antigravity")):
        for place in (lambda g: g, lambda g: {"model": {}, "x": g}, lambda g: {"tok_emb.weight": g}):
            torch.save(place(Gadget(gadget)), folder / "trap.pth")
            refusal = said(folder / "trap.pth")
            executed += trap.exists() or "WeightsError" not in refusal
    lines.append(f"| 15 pickles calling os.system, os.mkdir, eval, exec, __import__ | {executed} executed or loaded |")
    return lines


class Gadget:
    """Unpickled without care, it calls a function."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


def said(path: Path) -> str:
    """Return what loading the file ended in."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak
    before, started = peak(), time.perf_counter()
    try:
        values(path)
        return "loaded"
    except WeightsError as error:
        text = str(error).replace(str(path.parent) + "/", "").replace("|", "/")
        ms = 1000 * (time.perf_counter() - started)
        return f"WeightsError after {ms:.0f} ms and {(peak() - before) / 2**20:.0f} MB: {text[:160]}"


def peak() -> int:
    """Return the largest resident memory since the peak was forgotten, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> int:
    """Damage, load, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, files in sources().items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run(name, files, Path(folder), values, WeightsError, inputs=options.inputs))
            print(rows[-1], file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cases = hand_made(Path(folder))
    text = "\n".join([
        "# Damaged files of weights", "", "\n".join((__doc__ or "").split("\n")[4:9]), "", as_table(rows),
        "| by hand | what was said |", "| --- | --- |", *cases, ""])
    (options.out / "faults_weights.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
