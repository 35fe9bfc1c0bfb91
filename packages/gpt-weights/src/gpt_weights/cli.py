"""The command line: ``gpt-weights download``, ``convert``, ``export`` and ``inspect``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FAILURE, USAGE, BAD_DATA, NETWORK, RESOURCE = 1, 2, 3, 4, 5
_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
_DTYPES = ("float32", "float16", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (None: this process's) and return its exit code.

    0 done; 1 failure; 2 usage; 3 bad input data; 4 network; 5 no room on disk or in memory; 130 after Ctrl-C. Results
    go to stdout (with ``--json`` one object), progress and the one sentence of an error to stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal of another encoding
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed its help or what was wrong
        return stop.code if isinstance(stop.code, int) else USAGE
    warnings.showwarning = lambda message, *_, **__: _warn(str(message))
    try:
        result: dict[str, Any] = options.run(options)
        table = "\n".join(f"{key:12} {_printable(_shown(value))}" for key, value in result.items())
        print(json.dumps(result) if options.json else table, flush=True)
        return 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        print(f"gpt-weights: {_printable(_sentence(error))}", file=sys.stderr)
        return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpt-weights", description="GPT-2 weights in and out of every format.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], dict[str, Any]], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print the result as one JSON object")
        return command

    download = add("download", _download, "fetch a GPT-2 and write it as a checkpoint directory")
    download.add_argument("name", help="124M, 355M, 774M, 1558M, gpt2, gpt2-xl, ..., or the hub's ORGANISATION/NAME")
    download.add_argument("target", type=Path, nargs="?", help="the checkpoint directory; the name if left out")
    download.add_argument("--openai", action="store_true", help="OpenAI's own files; needs the extra tensorflow")
    download.add_argument("--offline", action="store_true", default=None, help="use what is there, open no socket")
    download.add_argument("--dtype", choices=_DTYPES, help="convert the values to this type")

    convert = add("convert", _convert, "read weights of any known format and write a checkpoint directory")
    export = add("export", _export, "write weights of any known format for other people's programs")
    inspect = add("inspect", _inspect, "say what is in a file or folder of weights")
    for command in (convert, export, inspect):
        command.add_argument("source", type=Path, help="a file, or a folder: ours, Hugging Face's or OpenAI's")
    convert.add_argument("target", type=Path, help="the checkpoint directory to write")
    export.add_argument("target", type=Path, help="the folder (hf) or file (gguf) to write; must be new")
    export.add_argument("--format", choices=("hf", "gguf"), required=True, help="Hugging Face's, or llama.cpp's")
    export.add_argument("--kind", choices=("f32", "f16", "q8_0"), help="type of the matrices in a GGUF file (f16)")
    export.add_argument("--labels", nargs="+", metavar="LABEL", help="names of a classifier's classes, in their order")
    for command in (convert, export, inspect):
        command.add_argument("--n-heads", type=int, help="attention heads, where no file says and no GPT-2 is so wide")
        command.add_argument("--vocab-size", type=int, help="keep only the first ids of a padded vocabulary")
        command.add_argument("--lora-scale", type=float, help="what LoRA matrices are multiplied by: alpha / rank")
    for command in (convert, export):
        command.add_argument("--tokenizer", type=Path, help="tokenizer.json, or a folder with it or GPT-2's pair")
        command.add_argument("--dtype", choices=_DTYPES, help="convert the values to this type")
    return parser


def _download(options: argparse.Namespace) -> dict[str, Any]:
    from gpt_weights.formats import open_weights
    from gpt_weights.hub import fetch_from_hub, fetch_from_openai, repository_of, size_of
    from gpt_weights.progress import ProgressLine

    try:
        (size_of if options.openai else repository_of)(options.name)
    except ValueError as error:
        raise _UsageError(f"{error}, or the hub's ORGANISATION/NAME") from None
    fetch = fetch_from_openai if options.openai else fetch_from_hub
    with ProgressLine() as progress:
        folder = fetch(options.name, offline=options.offline, progress=progress)
    target = options.target or Path(options.name.rpartition("/")[2])
    return _converted(open_weights(folder), target, options)


def _convert(options: argparse.Namespace) -> dict[str, Any]:
    return _converted(_source(options), options.target, options)


def _converted(weights: Any, target: Path, options: argparse.Namespace) -> dict[str, Any]:
    from gpt_weights.convert import convert

    convert(weights, target, tokenizer=_tokenizer(options), dtype=_dtype(options))
    return {"checkpoint": str(target), **_told(weights)}


def _export(options: argparse.Namespace) -> dict[str, Any]:
    from gpt_weights.export_gguf import export_gguf
    from gpt_weights.export_huggingface import export_huggingface

    weights = _source(options)
    if options.format == "gguf":
        if options.labels or options.dtype:
            raise _UsageError("--labels and --dtype are for --format hf; a GGUF file's type is --kind")
        done = export_gguf(weights, options.target, tokenizer=_tokenizer(options), kind=options.kind or "f16")
    else:
        if options.kind:
            raise _UsageError("--kind is for --format gguf; the type of --format hf is --dtype")
        done = export_huggingface(
            weights, options.target, tokenizer=_tokenizer(options), labels=options.labels, dtype=_dtype(options)
        )
    return {
        "exported": str(done.path), **_told(weights), "largest_difference": done.largest_difference,
        "notes": [*weights.notes, *done.notes],
    }


def _inspect(options: argparse.Namespace) -> dict[str, Any]:
    return _told(_source(options))


def _told(weights: Any) -> dict[str, Any]:
    from gpt_weights.inspection import inspect

    return dataclasses.asdict(inspect(weights))


def _source(options: argparse.Namespace) -> Any:
    from gpt_weights.formats import open_weights

    return open_weights(
        options.source, n_heads=options.n_heads, vocab_size=options.vocab_size, lora_scale=options.lora_scale
    )


def _tokenizer(options: argparse.Namespace) -> Any:
    from gpt_weights.errors import WeightsError
    from gpt_weights.tokenizer import find_tokenizer

    place = getattr(options, "tokenizer", None)
    if place is None:
        return None
    found = find_tokenizer(place)
    if found is None:
        raise WeightsError(f"{place} holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt")
    return found


def _dtype(options: argparse.Namespace) -> Any:
    import torch

    return None if options.dtype is None else getattr(torch, options.dtype)


class _UsageError(ValueError):
    pass


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of an error that a person can do something about, None for a fault of our own."""
    if isinstance(error, _UsageError):
        return USAGE
    if _is_out_of_memory(error):
        return RESOURCE
    if isinstance(error, ConnectionError):
        return NETWORK
    if isinstance(error, OSError):
        return RESOURCE if error.errno in _NO_ROOM else FAILURE
    # By name: importing the classes would import torch, for a typo too.
    names = {kind.__name__ for kind in type(error).__mro__}
    if "WeightsError" in names:
        return BAD_DATA
    return FAILURE if names & {"CheckpointError", "ImportError"} else None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python's or torch's memory is at its end; torch's is a RuntimeError with words of Linux or Windows."""
    words = ("allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(part in str(error) for part in words)


def _sentence(error: Exception) -> str:
    if _is_out_of_memory(error):
        return "not enough memory for the model; convert --dtype bfloat16 halves what float32 takes"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error)


def _warn(message: str) -> None:
    print(f"gpt-weights: warning: {_printable(message)}", file=sys.stderr)


def _printable(text: str) -> str:
    """Return the text with what a terminal would obey written out: names, labels and reasons come from strangers."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value)) or "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
