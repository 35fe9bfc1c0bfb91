"""OpenAI's GPT-2 checkpoints, as TensorFlow saved them. The only file that imports tensorflow, and only to read values.

What lies in a checkpoint is known without it (``tensor_bundle``), and checked whole before it reads one tensor at a
time, comparing the values with their checksum. What remains: a file that another program changes in between.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_weights.errors import WeightsError
from gpt_weights.files import Get, TensorFiles, check_beginning
from gpt_weights.json_file import read_json
from gpt_weights.tensor_bundle import read_bundle

_FIELDS = {
    "n_vocab": "vocab_size", "n_ctx": "context_length", "n_embd": "emb_dim", "n_head": "n_heads", "n_layer": "n_layers",
}
_NAMED = re.compile(rb'^[ \t]*model_checkpoint_path[ \t]*:[ \t]*"([^"\r\n]*)"', re.MULTILINE)
_LARGEST = 2**20  # OpenAI's has 77 bytes; a training run's lists each checkpoint that it keeps


class TensorBundle(TensorFiles):
    """The tensors of the checkpoint that begins with ``prefix``, such as ``124M/model.ckpt``."""

    kind = "TensorFlow checkpoint"

    def __init__(self, prefix: Path) -> None:
        self.path = prefix.with_name(f"{prefix.name}.index")
        self.aliases = {}
        self._prefix = prefix
        self._bundled = read_bundle(prefix)
        self.tensors = {name: tensor.info for name, tensor in self._bundled.items()}

    @contextmanager
    def open(self) -> Iterator[Get]:
        """Open the files; ImportError naming the extra if there is no tensorflow."""
        tf = import_tensorflow()
        with _reading(self.path):
            # tf.train.load_checkpoint would take a folder of that name for one with checkpoints in it.
            reader = tf.compat.v1.train.NewCheckpointReader(str(self._prefix.absolute()))

        def get(name: str) -> Tensor:
            info, file = self.tensors[name], self._bundled[name].file
            with _reading(file, of=name):
                array = reader.get_tensor(name)
                if info.dtype is torch.bfloat16:  # which numpy has not
                    array = array.view("int16")
                tensor = torch.from_numpy(array)
            tensor = tensor.view(torch.bfloat16) if info.dtype is torch.bfloat16 else tensor
            if (tuple(tensor.shape), tensor.dtype) != (info.shape, info.dtype):
                raise WeightsError(f"{file} was changed while it was read")
            return tensor

        yield get


def open_checkpoint(folder: Path) -> TensorBundle:
    """Return the tensors of the checkpoint in the folder; WeightsError naming the file that cannot be used."""
    return TensorBundle(checkpoint_prefix(folder))


def checkpoint_prefix(folder: Path) -> Path:
    """Return what the names of the checkpoint's files begin with: as the file ``checkpoint`` says, else model.ckpt.

    Raises WeightsError if ``checkpoint`` is no such file or names a place outside of the folder.
    """
    path = folder / "checkpoint"
    if not path.is_file():
        return folder / "model.ckpt"
    check_beginning(path)
    try:
        data = path.read_bytes() if path.stat().st_size <= _LARGEST else b""
        found = _NAMED.search(data)
        name = found[1].decode() if found else ""
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not name or not name.isprintable():
        raise WeightsError(f'{path} names no checkpoint: expected the line model_checkpoint_path: "model.ckpt"')
    named = Path(name)
    if named.is_absolute() and named.parent == folder.absolute():
        name = named.name
    if name == ".." or Path(name).name != name or "\\" in name or ":" in name:
        raise WeightsError(
            f"{path} is refused: it names {name!r}, which does not lie in its folder; "
            "if the checkpoint was moved, change that to its plain name"
        )
    return folder / name


def read_hints(folder: Path) -> dict[str, Any]:
    """Return the fields of ``GPTConfig`` that ``hparams.json`` names, and that the head is tied, as OpenAI's are.

    Raises WeightsError if it is no JSON object, lacks a field or has one that is no whole number above 0.
    """
    path = folder / "hparams.json"
    return hints_of(read_json(path), str(path)) if path.is_file() else {"tie_weights": True}


def hints_of(settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return OpenAI's ``settings`` as fields of ``GPTConfig``; WeightsError naming ``source`` and the bad value."""
    if missing := [name for name in _FIELDS if name not in settings]:
        raise WeightsError(f"{source}: {', '.join(missing)} is missing; expected {', '.join(_FIELDS)}")
    for name in _FIELDS:
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise WeightsError(f"{source}: {name} must be a whole number from 1 to 2147483647, got {value!r:.60}")
    return {ours: settings[theirs] for theirs, ours in _FIELDS.items()} | {"tie_weights": True}


def import_tensorflow() -> Any:
    """Return the module ``tensorflow``, without its banner; ImportError naming the extra if it is not installed.

    The banner is shown if the environment has set TF_CPP_MIN_LOG_LEVEL.
    """
    # torch imports triton with its first optimizer. After tensorflow that ends the process (2.21 and triton 3.9: "LLVM
    # ERROR: inconsistency in registered CommandLine options"); before, it does no harm and takes 0.3 s.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")
    try:
        # torch was imported above: in the other order tensorflow warns. 2 GB to install, 10 s to import.
        with _without_banner():
            import tensorflow  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise ImportError("reading OpenAI's checkpoint needs tensorflow: install 'gpt-weights[tensorflow]'") from error
    return tensorflow


@contextmanager
def _without_banner() -> Iterator[None]:
    if "tensorflow" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    with contextlib.ExitStack() as stack:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        stack.callback(os.environ.pop, "TF_CPP_MIN_LOG_LEVEL", None)
        # tensorflow 2.21 writes two lines before it looks at that level, straight to descriptor 2.
        with contextlib.suppress(OSError):  # a process without descriptor 2
            saved = os.dup(2)
            stack.callback(os.close, saved)
            null = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, null)
            os.dup2(null, 2)
            stack.callback(os.dup2, saved, 2)
        yield


@contextmanager
def _reading(path: Path, *, of: str = "") -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # tensorflow's own, and whatever numpy makes of their text
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path} is damaged: {f'{of}: ' if of else ''}{reason}; download it again") from error
