"""Damaged TensorFlow checkpoints: each is refused with a sentence or loads as it was; and what tensorflow alone does.

    uv run --isolated --package gpt-weights --extra tensorflow python benchmarks/faults_tensorflow.py

Fault F21: a checkpoint of a small GPT-2 that tensorflow wrote, damaged one file at a time (bits, bytes, lengths, cuts,
insertions). Then its index alone, damaged below checksums that are made right again, as one who means harm would. Both
once by ``open_weights`` and once by tensorflow's own reader alone, where every exception counts as a refusal. At last
the cases that need a hand.

Results go to ``benchmarks/results/faults_tensorflow.md``. Linux only.
"""

import argparse
import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutated_files import as_table, run

from gpt_weights import WeightsError, open_weights
from gpt_weights.openai_tf import import_tensorflow
from gpt_weights.tensor_bundle import masked_crc32c

V, C, E, H, L = 23, 8, 8, 2, 2
HPARAMS = {"n_vocab": V, "n_ctx": C, "n_embd": E, "n_head": H, "n_layer": L}
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
FILES = (INDEX, DATA, "checkpoint", "hparams.json")
EXPLAINED = """
What loads unchanged was damaged where nothing is read (the index's block of filters, its footer's padding, what follows
the name in `checkpoint`, spaces and further keys in `hparams.json`) or overwritten with the same bytes. What nobody can
detect is another number of heads in `hparams.json` that divides the width too: the file has no checksum, and shapes do
not tell it.
"""
PAGE = b"<!DOCTYPE html>\n<html><title>Log in to the network</title></html>\n"


def write(folder: Path, seed: int) -> None:
    """Write a checkpoint with tensorflow, under OpenAI's names and in OpenAI's shapes."""
    shapes: dict[str, tuple[int, ...]] = {"wte": (V, E), "wpe": (C, E), "ln_f/g": (E,), "ln_f/b": (E,)}
    for n in range(L):
        for name, shape in {
            "ln_1/g": (E,), "ln_1/b": (E,), "attn/c_attn/w": (1, E, 3 * E), "attn/c_attn/b": (3 * E,),
            "attn/c_proj/w": (1, E, E), "attn/c_proj/b": (E,), "ln_2/g": (E,), "ln_2/b": (E,),
            "mlp/c_fc/w": (1, E, 4 * E), "mlp/c_fc/b": (4 * E,), "mlp/c_proj/w": (1, 4 * E, E), "mlp/c_proj/b": (E,),
        }.items():
            shapes[f"h{n}/{name}"] = shape
    draws = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    import_tensorflow().raw_ops.SaveV2(
        prefix=str(folder / "model.ckpt"), tensor_names=[f"model/{name}" for name in shapes],
        shape_and_slices=[""] * len(shapes),
        tensors=[draws.standard_normal(shape).astype(np.float32) for shape in shapes.values()],
    )
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n', encoding="utf-8")
    (folder / "hparams.json").write_text(json.dumps(HPARAMS), encoding="utf-8")


def by_us(folder: Path) -> dict[str, bytes]:
    """Load the weights and return their bytes, and the config."""
    weights = open_weights(folder)
    values = {name: tensor.numpy().tobytes() for name, tensor in weights.tensors()}
    return {**values, "config": repr(weights.config).encode()}


def by_tensorflow(folder: Path) -> dict[str, bytes]:
    """Load the tensors with tensorflow's reader alone."""
    reader = import_tensorflow().train.load_checkpoint(str(folder / "model.ckpt"))
    return {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()}


def split(index: bytes) -> tuple[bytes, int]:
    """Return the index's only block of entries, and what lies behind it up to the index of blocks."""
    (offset, at) = 0, len(index) - 48
    for n in range(10):  # where the block of filters begins: five bytes behind that of the entries
        offset |= (index[at + n] & 127) << 7 * n
        if index[at + n] < 128:
            break
    return index[: offset - 5], offset


def entry(dtype: int, *shape: int) -> bytes:
    """Return how a tensor's entry begins: type and shape."""
    dims = b"".join(b"\x12" + varint(1 + len(varint(n))) + b"\x08" + varint(n) for n in shape)
    return b"\x08" + varint(dtype) + b"\x12" + varint(len(dims)) + dims


def varint(number: int) -> bytes:
    """Return a number as seven bits a byte; a negative one as the 64 bits it has."""
    number %= 2**64
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def with_block(block: bytes) -> bytes:
    """Return an index whose only block of entries is this one, with right checksums."""

    def checked(content: bytes) -> bytes:
        return content + b"\0" + struct.pack("<I", masked_crc32c(content + b"\0"))

    filters = checked(struct.pack("<II", 0, 1))
    start = len(block) + 5
    place = varint(0) + varint(len(block))
    blocks = bytes([0, 1, len(place)]) + b"n" + place + struct.pack("<II", 0, 1)
    footer = varint(start) + varint(8) + varint(start + len(filters)) + varint(len(blocks))
    magic = struct.pack("<Q", 0xDB4775248B80FB57)
    return checked(block) + filters + checked(blocks) + footer.ljust(40, b"\0") + magic


def hand_made(whole: Path, other: Path, folder: Path) -> list[str]:
    """Return a line for each case: what we say, and how tensorflow's reader ends."""
    index, data = (whole / INDEX).read_bytes(), (whole / DATA).read_bytes()
    block = split(index)[0]
    old = entry(1, 23, 8)
    at = block.index(b"te" + old)  # of the token embedding, behind what its name shares with the one before

    def with_entry(dtype: int, *shape: int) -> bytes:
        new = entry(dtype, *shape)
        length = bytes([block[at - 1] + len(new) - len(old)])
        return with_block(block[: at - 1] + length + b"te" + new + block[at + 2 + len(old) :])

    def footer(offset: int, size: int) -> bytes:
        return index[:-48] + (varint(0) + varint(8) + varint(offset) + varint(size)).ljust(40, b"\0") + index[-8:]

    cases: dict[str, dict[str, bytes | None]] = {
        "index and data swapped": {INDEX: data, DATA: index},
        "data of another checkpoint of the same shapes": {DATA: (other / DATA).read_bytes()},
        "index of another checkpoint of the same shapes": {INDEX: (other / INDEX).read_bytes()},
        "no data file": {DATA: None},
        "no index": {INDEX: None},
        "a web page as the data": {DATA: PAGE},
        "a web page as the index": {INDEX: PAGE},
        "a compressed web page as the index": {INDEX: gzip.compress(PAGE)},
        "a web page as checkpoint": {"checkpoint": PAGE},
        "a web page as hparams.json": {"hparams.json": PAGE},
        "checkpoint names a place outside": {"checkpoint": b'model_checkpoint_path: "../model.ckpt"\n'},
        "a dimension of -1": {INDEX: with_entry(1, 23, -1)},
        "a dimension of 2^62": {INDEX: with_entry(1, 23, 2**62)},
        "a dimension of 2^40": {INDEX: with_entry(1, 23, 2**40)},
        "another type of number": {INDEX: with_entry(3, 23, 8)},
        "a type that is none": {INDEX: with_entry(99, 23, 8)},
        "a block of 2^62 bytes": {INDEX: footer(0, 2**62)},
        "a block of 2^36 bytes": {INDEX: footer(0, 2**36)},
        "hparams of another size": {"hparams.json": json.dumps({**HPARAMS, "n_layer": 12}).encode()},
        "hparams with 1e999": {"hparams.json": json.dumps(HPARAMS).replace('embd": 8', 'embd": 1e999').encode()},
    }
    lines = []
    for name, files in cases.items():
        place(whole, folder, files)
        lines.append(f"| {name} | {said(folder)} | {end_of(folder)} |")
    for file, sizes in ((INDEX, range(len(index))), (DATA, range(0, len(data), len(data) // 100))):
        refusals = 0
        for size in sizes:
            place(whole, folder, {file: (index if file == INDEX else data)[:size]})
            refusals += said(folder).startswith("WeightsError")
        lines.append(f"| {file} cut at {len(sizes):,} places | {refusals:,} times WeightsError | |")
    return lines


def place(whole: Path, folder: Path, files: dict[str, bytes | None]) -> None:
    """Put the checkpoint into the folder, with these files in place of its own; None for one that is missing."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    for name, content in files.items():
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)


def said(folder: Path) -> str:
    """Return what loading the checkpoint ended in."""
    started = time.perf_counter()
    try:
        by_us(folder)
        return "loaded"
    except WeightsError as error:
        text = str(error).replace(f"{folder}/", "").replace("|", "/")
        return f"WeightsError after {1000 * (time.perf_counter() - started):.0f} ms: {text[:170]}"


def end_of(folder: Path) -> str:
    """Return how tensorflow's reader alone ends, in a process of its own."""
    child = os.fork()
    if child == 0:
        status = 3
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        started = time.perf_counter()
        try:
            by_tensorflow(folder)
            status = 0
        except Exception:
            status = 1 if time.perf_counter() - started < 5 else 2
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    words = {0: "loads", 1: "raises", 2: "raises after more than 5 s", -6: "the process is aborted"}
    return words.get(status, f"the process ends with {status}")


def main() -> int:
    """Damage, load, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="for each row of ours")
    parser.add_argument("--compared", type=int, default=2_000, help="for each row of tensorflow alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:  # in a process of its own: what forks below must have no threads of tensorflow's
        write(options.write / "whole", 0)
        write(options.write / "other", 1)
        return 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        subprocess.run([sys.executable, __file__, "--write", str(work)], check=True)
        import_tensorflow()
        whole = work / "whole"
        sources = {name: (whole / name).read_bytes() for name in FILES}
        block = split(sources[INDEX])[0]
        assert with_block(block)[: len(block) + 5] == sources[INDEX][: len(block) + 5]  # tensorflow's own checksum
        rows = []
        for reader, load, refused, inputs in (
            ("open_weights", by_us, WeightsError, options.inputs),
            ("tensorflow alone", by_tensorflow, Exception, options.compared),
        ):
            def load_block(path: Path, load: Any = load) -> Any:
                (path.parent / INDEX).write_bytes(with_block(path.read_bytes()))
                return load(path.parent)

            place(whole, work / "damaged", {})
            damaged = sources if load is by_us else {name: sources[name] for name in (INDEX, DATA)}
            quiet = os.dup(2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what tensorflow writes when it aborts
            rows.append(run(f"any file, {reader}", damaged, work / "damaged", load, refused, inputs=inputs))
            place(whole, work / "damaged", {})
            rows.append(run(f"right checksums, {reader}", {"block": block}, work / "damaged", load_block, refused,
                            inputs=inputs))
            os.dup2(quiet, 2)
            print(*rows[-2:], sep="\n", file=sys.stderr, flush=True)
        cases = hand_made(whole, work / "other", work / "damaged")
    text = "\n".join([
        "# Damaged TensorFlow checkpoints", "", "\n".join((__doc__ or "").split("\n")[4:8]), "",
        as_table(rows) + EXPLAINED,
        "| by hand | what was said | tensorflow alone |", "| --- | --- | --- |", *cases, ""])
    (options.out / "faults_tensorflow.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
