"""Named tensors in files, read a few at a time, so that a model never lies in memory twice.

A file is mapped, not read: a tensor's bytes are fetched when it is copied, and given back when the file is closed. So
``stream`` copies the largest first, and opens the file anew after every few megabytes. Nothing in a file is executed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from gpt_weights.errors import WeightsError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Floating-point types under safetensors' names; weights of another type are refused."""

Get = Callable[[str], Tensor]
"""Return a tensor of an open file by its name; it may not be used after the file is closed."""

_PIECE = 32 * 2**20  # 16 and 64 MB took the same time; opening a file of 148 tensors anew takes 1 ms


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of a tensor before its values are read."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str
    """A name where torch has no such type, or none that weights may have."""
    stored: tuple[str, int] | None = None
    """Name of the type and bytes in the file, where reading gives another type."""

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * (self.dtype.itemsize if isinstance(self.dtype, torch.dtype) else 1)


class TensorFiles(ABC):
    """Named tensors in one or several files; what they are called and their shapes are known before one is read."""

    kind: str
    """What the files are, in words."""
    path: Path
    """The file or, of several, the one that lists them."""
    tensors: Mapping[str, TensorInfo]
    """What is known of each tensor before it is read."""
    aliases: Mapping[str, str]
    """Names of tensors that share the memory of an earlier one, and its name: {"lm_head.weight": "wte.weight"}."""

    @abstractmethod
    def open(self) -> AbstractContextManager[Get]:
        """Open the files; within the context each tensor can be had by its name."""


class SafetensorsFiles(TensorFiles):
    """One or several safetensors files; several as Hugging Face's ``model.safetensors.index.json`` lists them."""

    kind = "safetensors"

    def __init__(self, path: Path, shards: Sequence[Path] = ()) -> None:
        self.path = path
        self.aliases = {}
        self._shard_of: dict[str, Path] = {}
        tensors: dict[str, TensorInfo] = {}
        for shard in shards or [path]:
            check_beginning(shard)
            with _reading(shard), safetensors.safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name in tensors:
                        raise WeightsError(f"{name} stands in {self._shard_of[name].name} and in {shard.name}")
                    part = file.get_slice(name)
                    tensors[name] = TensorInfo(tuple(part.get_shape()), DTYPES.get(part.get_dtype(), part.get_dtype()))
                    self._shard_of[name] = shard
        self.tensors = tensors

    def shard_of(self, name: str) -> Path:
        """Return the file that holds the tensor."""
        return self._shard_of[name]

    @contextmanager
    def open(self) -> Iterator[Get]:
        """Open the files that are asked for, each when it is first needed."""
        with ExitStack() as stack:
            opened: dict[Path, safetensors.safe_open] = {}

            def get(name: str) -> Tensor:
                shard = self._shard_of[name]
                with _reading(shard):
                    if shard not in opened:
                        opened[shard] = stack.enter_context(safetensors.safe_open(shard, framework="pt"))
                    return opened[shard].get_tensor(name)

            yield get


@dataclass(frozen=True)
class Job:
    """Tensors to read together, and what to make of them: named tensors with memory of their own."""

    reads: tuple[str, ...]
    make: Callable[[Sequence[Tensor]], Iterable[tuple[str, Tensor]]]


def stream(files: TensorFiles, jobs: Iterable[Job]) -> Iterator[tuple[str, Tensor]]:
    """Yield what the jobs make, the largest first; at most 32 MB or one job of the files is in memory besides.

    Raises WeightsError if a file cannot be read or a value is not finite.
    """
    sizes = {job: sum(files.tensors[name].nbytes for name in job.reads) for job in jobs}
    waiting = sorted(sizes, key=sizes.__getitem__, reverse=True)
    while waiting:
        taken = 0
        made: list[tuple[str, Tensor]] = []
        with files.open() as get:
            while waiting and (taken == 0 or taken + sizes[waiting[0]] <= _PIECE):
                job = waiting.pop(0)
                taken += sizes[job]
                made += job.make([_finite(files, get, name) for name in job.reads])
        while made:  # with the files closed: while a caller works, none of their pages count as the process's
            yield made.pop(0)


def check_beginning(path: Path) -> None:
    """Raise WeightsError if the file is missing or begins as something that is no file of weights."""
    with _reading(path), path.open("rb") as file:
        beginning = file.read(512).lstrip().lower()
    if not beginning:
        raise WeightsError(f"{path} is empty; download it again")
    if beginning.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise WeightsError(
            f"{path} is an HTML page, not weights: a login page or an error was saved under its name; download it again"
        )
    if beginning.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is only git-lfs's pointer to the weights; run `git lfs pull` in its folder")
    if beginning.startswith(b"\x1f\x8b"):
        raise WeightsError(f"{path} is compressed by gzip; unpack it: it may be a page that a server compressed")


def checked(files: TensorFiles, get: Get, name: str) -> Tensor:
    """Return a tensor of the opened ``files``; WeightsError if it is no longer what the files said of it."""
    tensor, told = get(name).detach(), files.tensors[name]
    if tuple(tensor.shape) != told.shape or tensor.dtype != told.dtype:
        raise WeightsError(f"{files.path} was changed while it was read; start again")
    return tensor


def _finite(files: TensorFiles, get: Get, name: str) -> Tensor:
    tensor = checked(files, get, name)
    # A sum passes on NaN and infinity, and takes half the time of aminmax; but sums of large numbers become infinite.
    if not math.isfinite(tensor.sum()) and not all(math.isfinite(end) for end in torch.aminmax(tensor)):
        raise WeightsError(f"{files.path} is damaged: {name} holds values that are no numbers (NaN or infinity)")
    return tensor


def converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in another type; WeightsError if a value is too large for it."""
    result = tensor.to(dtype)
    if result is not tensor and not all(math.isfinite(end) for end in torch.aminmax(result)):
        raise WeightsError(
            f"{name} has values up to {float(tensor.abs().max()):.3g}, the largest in {dtype} is "
            f"{torch.finfo(dtype).max:.3g}; choose a wider type"
        )
    return result


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
