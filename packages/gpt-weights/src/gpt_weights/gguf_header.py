"""The header of a GGUF file, read and checked whole: key/value pairs, and what each tensor is and where it lies.

The format: magic, version, number of tensors, number of pairs; the pairs (name, type, value); the tensors' entries
(name, dimensions from the fastest to the slowest, type, offset); padding; the values, each at a multiple of the
alignment. Little endian. A reader that believes the numbers in it reads past the file's end (CVE-2026-7482 of Ollama)
or never ends; here nothing is believed that the file's size does not admit.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt_weights.errors import WeightsError

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# GPT-2 1558M has 581 tensors and about 30 pairs; the largest vocabularies have some 262,000 tokens.
_MOST_TENSORS, _MOST_PAIRS, _MOST_ITEMS, _MOST_AXES = 10_000, 10_000, 2**22, 4
_LARGEST_HEADER = 64 * 2**20
_LONGEST_NAME = 2**16 - 1
# Values in a block, and its bytes, of the types that torch has; the quantized ones are asked of the package gguf.
PLAIN = {0: (1, 4), 1: (1, 2), 28: (1, 8), 30: (1, 2)}  # F32, F16, F64, BF16


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor's entry."""

    shape: tuple[int, ...]
    """As torch has it: the slowest axis first."""
    type: int
    start: int
    """Of its values, in bytes from the file's first."""
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What the file says before its values."""

    pairs: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_header(path: Path) -> GGUFHeader:
    """Return the header; WeightsError unless it is sound and the tensors fill the file to its last byte."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return _header(_Reader(file, min(size, _LARGEST_HEADER)), size)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, struct.error) as error:
        raise WeightsError(f"{path} is damaged or no GGUF file: {error}; download it again") from error


class _Reader:
    """Takes values from a file, and no byte more than are left of it."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file = file
        self.left = left
        self.at = 0
        self._n_items = _MOST_ITEMS  # that arrays may still have, all together

    def take(self, n: int) -> bytes:
        data = self._file.read(n) if n <= self.left else b""
        if len(data) != n:
            raise ValueError(f"its header claims {n:,} bytes at {self.at:,}, where {self.left:,} are left")
        self.left, self.at = self.left - n, self.at + n
        return data

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def count(self, most: int, what: str) -> int:
        n: int = self.number("Q")
        if n > most:
            raise ValueError(f"it claims {n:,} {what}, the most that is read is {most:,}")
        return n

    def text(self, longest: int = _LARGEST_HEADER) -> str:
        try:
            return self.take(self.count(longest, "bytes of text")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the text before {self.at:,} is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array(self.number("I"))
        if kind not in _SCALARS:
            raise ValueError(f"a value at {self.at:,} has the unknown type {kind}")
        return self.number(_SCALARS[kind])

    def array(self, kind: int) -> list[Any]:
        n = self.count(self._n_items, "values in an array")
        self._n_items -= n
        if kind == _STRING:
            return [self.text() for _ in range(n)]
        if kind not in _SCALARS:  # arrays of arrays, which no writer makes, among them
            raise ValueError(f"an array at {self.at:,} holds values of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        return np.frombuffer(self.take(n * dtype.itemsize), dtype).tolist()


def _header(reader: _Reader, size: int) -> GGUFHeader:
    if reader.take(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, known are 2 and 3 (little endian)")
    n_tensors, n_pairs = reader.count(_MOST_TENSORS, "tensors"), reader.count(_MOST_PAIRS, "key/value pairs")
    pairs: dict[str, Any] = {}
    for _ in range(n_pairs):
        name = reader.text(_LONGEST_NAME)
        if name in pairs:
            raise ValueError(f"it has the key {name!r} twice")
        pairs[name] = reader.value(reader.number("I"))
    alignment = pairs.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r:.60}, it must be a power of two from 8 on")
    entries = [_entry(reader) for _ in range(n_tensors)]
    if len({name for name, *_ in entries}) != n_tensors:
        raise ValueError("it has two tensors of one name")
    first = reader.at + -reader.at % alignment
    tensors = {name: _tensor(name, shape, kind, first + offset) for name, shape, kind, offset in entries}
    place = first
    for name, tensor in tensors.items():
        end = tensor.start + tensor.nbytes
        if end > size:
            raise ValueError(f"{name} ends at {end:,}, but the file has {size:,} bytes")
        if tensor.start != place:
            raise ValueError(f"{name} begins at {tensor.start:,}, where {place:,} would follow the tensor before it")
        place = end + -end % alignment
    if size > max(place, first):
        raise ValueError(f"its last {size - place:,} bytes belong to no tensor")
    return GGUFHeader(pairs, tensors)


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.text(_LONGEST_NAME)
    n_axes = reader.number("I")
    if not 1 <= n_axes <= _MOST_AXES:
        raise ValueError(f"{name!r:.60} has {n_axes} axes, it can have 1 to {_MOST_AXES}")
    shape = struct.unpack(f"<{n_axes}Q", reader.take(8 * n_axes))[::-1]
    return name, shape, reader.number("I"), reader.number("Q")


def _tensor(name: str, shape: tuple[int, ...], kind: int, start: int) -> GGUFTensor:
    n_values, n_bytes = PLAIN.get(kind) or _block_size(kind)
    if shape[-1] % n_values:
        raise ValueError(f"{name!r:.60} has rows of {shape[-1]} values, which do not fill blocks of {n_values}")
    return GGUFTensor(shape, kind, start, math.prod(shape) // n_values * n_bytes)


def _block_size(kind: int) -> tuple[int, int]:
    """Return how many values a block of the type has, and how many bytes; ValueError if there is no such type."""
    from gpt_weights.gguf_file import import_gguf

    gguf = import_gguf(f"reading a GGUF file with values of type {kind}")
    try:
        block: tuple[int, int] = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ValueError(f"a tensor has values of the unknown type {kind}") from None
    return block
