"""Shard files: token ids on disk, two or four bytes each, behind a header that says what they are.

A folder holds shard-00000.bin, shard-00001.bin, ... without a gap; the last one is marked as the last, so a
folder whose writing was cut off is recognised. Layout of a file, little-endian, 128 bytes of header and
then the ids::

    magic "GPTSHARD" | version u32 | bytes per id u32 (2 or 4) | n_vocab u64 | n_tokens u64 | number u32 |
    is_last u32 | sha256 of the tokenizer 32 | sha256 of the ids 32 | crc32 of the 104 bytes so far u32 |
    zeros
"""

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from gpt_train.errors import DataError

HEADER_BYTES = 128
SHARD_NAME = re.compile(r"shard-(\d{5,})\.bin")
_MAGIC = b"GPTSHARD"
_VERSION = 1
_FIELDS = struct.Struct("<8sIIQQII32s32s")
_PADDING = bytes(HEADER_BYTES - _FIELDS.size - 4)


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """What the first 128 bytes of a shard file say."""

    n_vocab: int
    n_tokens: int
    number: int
    is_last: bool
    tokenizer_sha256: str
    payload_sha256: str

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Two bytes an id where the vocabulary fits, else four."""
        return np.dtype("<u2") if self.n_vocab <= 2**16 else np.dtype("<u4")

    def pack(self) -> bytes:
        """Return the header's 128 bytes."""
        fields = _FIELDS.pack(
            _MAGIC, _VERSION, self.dtype.itemsize, self.n_vocab, self.n_tokens, self.number, self.is_last,
            bytes.fromhex(self.tokenizer_sha256), bytes.fromhex(self.payload_sha256),
        )
        return fields + struct.pack("<I", zlib.crc32(fields)) + _PADDING

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the header of ``path``, check it and the file's name and size; DataError names a fault."""
        with path.open("rb") as file:
            data = file.read(HEADER_BYTES)
            size = file.seek(0, os.SEEK_END)
        if not data.startswith(_MAGIC):
            raise DataError(f"{path} is not a shard file: it does not begin with {_MAGIC.decode()}")
        if len(data) < HEADER_BYTES:
            raise DataError(f"{path} is cut off within its header; write the shards again")
        magic_version = struct.unpack_from("<I", data, len(_MAGIC))[0]
        if magic_version != _VERSION:
            raise DataError(
                f"{path} has shard version {magic_version}, but this gpt-train reads version {_VERSION}; "
                "write the shards again or install the gpt-train that wrote them")
        if struct.unpack_from("<I", data, _FIELDS.size)[0] != zlib.crc32(data[: _FIELDS.size]):
            raise DataError(f"{path} has a damaged header: its checksum does not fit; write the shards again")
        _, _, width, n_vocab, n_tokens, number, is_last, tokenizer, payload = _FIELDS.unpack_from(data)
        header = cls(
            n_vocab=n_vocab, n_tokens=n_tokens, number=number, is_last=bool(is_last),
            tokenizer_sha256=tokenizer.hex(), payload_sha256=payload.hex(),
        )
        if width != header.dtype.itemsize:
            raise DataError(
                f"{path} stores {width} bytes an id, but a vocabulary of {n_vocab} is stored in "
                f"{header.dtype.itemsize}; write the shards again")
        expected = HEADER_BYTES + n_tokens * width
        if size != expected or not n_tokens:
            raise DataError(
                f"{path} has {size} bytes, but the {n_tokens} tokens its header announces make {expected}; "
                "write the shards again")
        if path.name != shard_name(number):
            raise DataError(f"{path} is shard {number} by its header: rename it to {shard_name(number)}")
        return header


def shard_name(number: int) -> str:
    """Return the file name of the shard with this number, counted from 0."""
    return f"shard-{number:05d}.bin"


class ShardWriter:
    """Write token ids as shard files, piece by piece, in memory that does not grow with them.

    Use it as a context manager. Each file is written under a temporary name, fsynced and renamed; leaving
    the block writes the last one. If the block raises, what this writer wrote is removed.
    """

    def __init__(
        self, folder: Path | str, *, n_vocab: int, tokenizer_sha256: str, shard_tokens: int = 2**26
    ) -> None:
        """Make ``folder``; a file holds up to ``shard_tokens`` (default: 128 MiB at two bytes an id).

        Raises DataError if the folder already holds shards, ValueError for a number or digest that breaks
        its rule.
        """
        if not 1 <= n_vocab <= 2**32:
            raise ValueError(f"n_vocab must lie between 1 and 2**32, got {n_vocab}")
        if shard_tokens < 1:
            raise ValueError(f"shard_tokens must be at least 1, got {shard_tokens}")
        if not re.fullmatch(r"[0-9a-f]{64}", tokenizer_sha256):
            raise ValueError(f"tokenizer_sha256 must be 64 lower-case hex digits, got {tokenizer_sha256!r}")
        self.folder = Path(folder)
        self.paths: list[Path] = []
        self.n_tokens = 0
        self._n_vocab, self._tokenizer_sha256, self._shard_tokens = n_vocab, tokenizer_sha256, shard_tokens
        self._dtype = ShardHeader(
            n_vocab=n_vocab, n_tokens=0, number=0, is_last=False, tokenizer_sha256="", payload_sha256=""
        ).dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(SHARD_NAME.fullmatch(path.name) for path in self.folder.iterdir()):
            raise DataError(f"{self.folder} already holds shards; delete them or choose another folder")
        self._temporary = self.folder / f".shard.tmp-{os.getpid()}"
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._filled = 0

    def write(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> None:
        """Append ``ids``; DataError if one lies outside the vocabulary or is no integer."""
        array = np.asarray(ids)
        if array.size == 0:
            return
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(f"token ids must be a list of integers, got {array.ndim} axes of {array.dtype}")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self._n_vocab:
            raise DataError(
                f"token id {low if low < 0 else high} lies outside the vocabulary of {self._n_vocab}; "
                "use the tokenizer that n_vocab belongs to")
        array = np.ascontiguousarray(array, dtype=self._dtype)
        while array.size:
            # A full shard is closed only when more tokens come: only then is it known not to be the last.
            if self._file is not None and self._filled == self._shard_tokens:
                self._finish(is_last=False)
            if self._file is None:
                self._file = self._temporary.open("wb")
                self._file.write(bytes(HEADER_BYTES))
            piece, array = np.split(array, [self._shard_tokens - self._filled])
            self._file.write(piece.data)
            self._digest.update(piece.data)
            self._filled += piece.size
            self.n_tokens += piece.size

    def close(self) -> None:
        """Write the last shard; DataError if there was no token at all."""
        if self._file is None:
            raise DataError(f"no token to write to {self.folder}: the text is empty")
        self._finish(is_last=True)

    def discard(self) -> None:
        """Remove every file this writer wrote."""
        if self._file is not None:
            # On a full disk closing fails once more: it writes what is left in the buffer.
            with suppress(OSError):
                self._file.close()
            self._file = None
        for path in (self._temporary, *self.paths):
            path.unlink(missing_ok=True)
        self.paths = []

    def _finish(self, *, is_last: bool) -> None:
        assert self._file is not None
        header = ShardHeader(
            n_vocab=self._n_vocab, n_tokens=self._filled, number=len(self.paths), is_last=is_last,
            tokenizer_sha256=self._tokenizer_sha256, payload_sha256=self._digest.hexdigest(),
        )
        self._file.seek(0)
        self._file.write(header.pack())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        path = self.folder / shard_name(header.number)
        self._temporary.replace(path)
        self.paths.append(path)
        _sync_folder(self.folder)
        self._digest, self._filled = hashlib.sha256(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self.close()
            except BaseException:
                self.discard()
                raise
        else:
            self.discard()


def write_shards(
    folder: Path | str,
    ids: Iterable[Sequence[int] | npt.NDArray[np.integer]],
    *,
    n_vocab: int,
    tokenizer_sha256: str,
    shard_tokens: int = 2**26,
) -> list[Path]:
    """Write the pieces of ``ids``, one after the other, as shards in ``folder``; return the files in order.

    The ids are stored as they come: an end-of-text id between documents is the caller's. Errors as
    ``ShardWriter``.
    """
    with ShardWriter(
        folder, n_vocab=n_vocab, tokenizer_sha256=tokenizer_sha256, shard_tokens=shard_tokens
    ) as writer:
        for piece in ids:
            writer.write(piece)
    return writer.paths


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable; Windows has no such call and needs none."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
