"""The index of a TensorFlow checkpoint, read and checked whole before tensorflow sees it.

tensorflow trusts an index whose checksums are right: a negative dimension in it ends the whole process (2.21: "Check
failed: size >= 0"), a large one makes it ask for terabytes. What passes here can do neither. No tensorflow is needed.

A checkpoint is PREFIX.index and PREFIX.data-00000-of-00001, or several data files. The index is a table of LevelDB's
format: blocks of sorted keys and values, each with its type (0: not compressed) and CRC-32C behind it; a footer that
says where the block lies that lists the others; a magic number. A key is a tensor's name, its value a protocol buffer
(tensor_bundle.proto): type, shape, data file, offset, size, the values' own CRC-32C. The key "" has the header: how
many data files there are, and their byte order.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt_weights.errors import WeightsError
from gpt_weights.files import TensorInfo, check_beginning

_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER = 48  # two places, each of two numbers of up to 10 bytes, and the magic number
_TRAILER = 5
_LARGEST = 2**18  # GPT-2 1558M: 20 KB; with an optimizer's two tensors for each, 60 KB
_LONGEST_NAME = 256
_DTYPES = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}
# A field's tag is its number * 8 + its kind (0: varint, 2: bytes, 5: four bytes).
_HEADER = {8: "n_shards", 16: "byte_order", 26: "version"}
_ENTRY = {8: "dtype", 18: "shape", 24: "shard", 32: "offset", 40: "size", 53: "checksum", 58: "slices"}
_DIM_OF_SHAPE, _DIM = 18, {8: "size", 18: "name"}


@dataclass(frozen=True)
class BundledTensor:
    """A tensor of the checkpoint, and where its values lie."""

    info: TensorInfo
    file: Path
    offset: int
    size: int
    """Bytes in the file."""


def read_bundle(prefix: Path) -> dict[str, BundledTensor]:
    """Return the tensors that ``PREFIX.index`` lists, by name; the data files are there, and as long as it says.

    Raises WeightsError naming the file that is missing, damaged, of another format or of another checkpoint.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    check_beginning(index)
    try:
        if index.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes, that of GPT-2 1558M has 20,000")
        data = index.read_bytes()
        if data[-8:] != _MAGIC or len(data) < _FOOTER:
            raise ValueError("its end is not that of an index")
        pairs = _pairs(data)
        n_shards = _n_shards(*next(pairs, (b"no", b"")))
        tensors = {key.decode(): _tensor(prefix, n_shards, value) for key, value in pairs}
    except OSError as error:
        raise WeightsError(f"{index} cannot be read: {error.strerror or error}") from error
    except (ValueError, IndexError, struct.error) as error:
        reason = str(error) if type(error) is ValueError else f"it breaks off or holds no text ({error})"
        raise WeightsError(
            f"{index} is damaged or not the index of a TensorFlow checkpoint: {reason}; download it again"
        ) from error
    for shard in range(n_shards):
        _check_data(index, file := _data_file(prefix, shard, n_shards), [t for t in tensors.values() if t.file == file])
    return tensors


def _check_data(index: Path, file: Path, tensors: list[BundledTensor]) -> None:
    """Raise WeightsError unless the tensors fill the file from first byte to last, each with bytes of its own."""
    if not file.is_file():
        raise WeightsError(f"{file} is missing, though {index.name} says where in it tensors lie; download it again")
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset != end:
            raise WeightsError(f"{index} is refused: tensors overlap in {file.name}, or leave gaps")
        end += tensor.size
    size = file.stat().st_size
    if size != end:
        check_beginning(file)
        raise WeightsError(
            f"{file} has {size:,} bytes, but {index.name} lists tensors of {end:,}: one of the two was cut off or "
            "belongs to another checkpoint; download both again"
        )


def _data_file(prefix: Path, shard: int, n_shards: int) -> Path:
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{n_shards:05d}")


def _n_shards(key: bytes, value: bytes) -> int:
    numbers, _ = ({}, {}) if key else _message(value, _HEADER)
    n_shards = numbers.get("n_shards", 0)
    if n_shards < 1:
        raise ValueError("it does not begin with the number of data files")
    if numbers.get("byte_order", 0) != 0:
        raise ValueError("its numbers are big-endian, OpenAI's are not")
    return n_shards


def _tensor(prefix: Path, n_shards: int, value: bytes) -> BundledTensor:
    numbers, parts = _message(value, _ENTRY)
    if "slices" in parts:
        raise ValueError("it holds a tensor in slices, OpenAI's are whole")
    number, shard, offset, size = (numbers.get(name, 0) for name in ("dtype", "shard", "offset", "size"))
    shape = _shape(parts.get("shape", b""))
    info = TensorInfo(shape, _DTYPES.get(number, f"tensorflow's type {number}"))
    is_of_size = size == info.nbytes if number in _DTYPES else size < 2**63
    if shard >= n_shards or not is_of_size:
        raise ValueError(f"a tensor of shape {shape} cannot have {size:,} bytes in data file {shard} of {n_shards}")
    return BundledTensor(info, _data_file(prefix, shard, n_shards), offset, size)


def _shape(message: bytes) -> tuple[int, ...]:
    dims = [dim if tag == _DIM_OF_SHAPE else None for tag, _, dim in _fields(message)]
    shape = tuple(-1 if dim is None else _message(dim, _DIM)[0].get("size", 0) for dim in dims)
    # A negative number is one above 2**63 here.
    if len(shape) > 8 or None in dims or math.prod(size or 1 for size in shape) >= 2**60:
        raise ValueError(f"no tensor has the shape ({', '.join(map(str, shape[:8]))})")
    return shape


def _message(message: bytes, names: Mapping[int, str]) -> tuple[dict[str, int], dict[str, bytes]]:
    """Return a protocol buffer's fields by name, numbers and those of bytes; each may stand there once."""
    numbers: dict[str, int] = {}
    parts: dict[str, bytes] = {}
    for tag, number, part in _fields(message):
        name = names.get(tag)
        if name is None or name in numbers or name in parts:
            raise ValueError(f"an entry has the field {tag // 8}, which is unknown or there twice")
        if tag & 7 == 0:
            numbers[name] = number
        else:
            parts[name] = part
    return numbers, parts


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield tag, number and bytes of each field; it has one of the two."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, part = 0, b""
        if tag & 7 == 0:
            number, at = _varint(message, at)
        else:
            size, at = (4, at) if tag & 7 == 5 else _varint(message, at)
            part = message[at : at + size]
            at += size
        if tag & 7 not in (0, 2, 5) or at > len(message):
            raise ValueError("an entry breaks off")
        yield tag, number, part


def _pairs(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the table's keys and values, in ascending order of the keys."""
    at = len(data) - _FOOTER
    for _ in range(2):  # the place of the block of filters, which is not used
        _, at = _varint(data, at)
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    end, last = 0, None
    for _, place in _block(data, offset, size):
        start, at = _varint(place, 0)
        length, at = _varint(place, at)
        if start < end or start + length > offset:
            raise ValueError("its blocks overlap")
        end = start + length
        for key, value in _block(data, start, length):
            if last is not None and key <= last:
                raise ValueError("its names are not in order")
            last = key
            yield key, value


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of the block; a key begins with the first bytes of the one before, if it says so."""
    end = offset + size
    if end + _TRAILER > len(data) - _FOOTER or size < 8:
        raise ValueError(f"a block of {size:,} bytes at {offset:,} lies outside of it")
    kind, checksum = struct.unpack_from("<BI", data, end)
    if checksum != masked_crc32c(data[offset : end + 1]):
        raise ValueError(f"the checksum of the block at {offset:,} is not that of its content")
    if kind != 0:
        raise ValueError("its blocks are compressed, OpenAI's are not")
    content = data[offset:end]
    n_restarts = struct.unpack_from("<I", content, size - 4)[0]
    limit = size - 4 - 4 * n_restarts
    if n_restarts < 1 or limit < 0:
        raise ValueError("a block's places to begin at are not in it")
    restarts = set(struct.unpack_from(f"<{n_restarts}I", content, limit))
    at, key, whole = 0, b"", {0}
    while at < limit:
        start = at
        shared, at = _varint(content, at)
        fresh, at = _varint(content, at)
        length, at = _varint(content, at)
        if shared > len(key) or shared + fresh > _LONGEST_NAME or at + fresh + length > limit:
            raise ValueError(f"an entry at {offset + start:,} breaks off or has too long a name")
        if shared == 0:
            whole.add(start)
        key = key[:shared] + content[at : at + fresh]
        at += fresh + length
        yield key, content[at - length : at]
    if not restarts <= whole:
        raise ValueError("a block's places to begin at are not in it")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("a number in it has more than ten bytes")


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) as LevelDB stores it: turned, and moved by a constant."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _crc32c_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table
