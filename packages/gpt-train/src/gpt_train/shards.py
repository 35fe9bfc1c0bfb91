"""Reading shards: a memory map, and batches that are a pure function of (seed, number of the batch).

All shards of a folder are one stream of N tokens: windows run across the files' borders, so no token is
lost there and the batches do not depend on how the stream was cut.

Shapes: B batch, L context length. A window is L + 1 consecutive tokens: L inputs and, shifted by one, L
targets.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, count
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt_train.errors import DataError
from gpt_train.loss import IGNORED
from gpt_train.shard_files import HEADER_BYTES, SHARD_NAME, ShardHeader, shard_name

Batch = tuple[Tensor, Tensor]
Ids = npt.NDArray[np.int64]


class ShardDataset:
    """The token stream of a folder of shards, mapped into memory, never read as a whole.

    Opening it checks every file's header, name and size, and that all belong together; with ``n_vocab`` or
    ``tokenizer_sha256`` also that they fit the model and the tokenizer. Raises DataError naming the file.
    The ids themselves are checked by ``verify``.

    Attributes: ``folder``, ``paths``, ``n_tokens``, ``n_vocab``, ``tokenizer_sha256``.
    """

    def __init__(
        self, folder: Path | str, *, n_vocab: int | None = None, tokenizer_sha256: str | None = None
    ) -> None:
        self.folder = Path(folder)
        self.paths = _shard_paths(self.folder)
        self._headers = [ShardHeader.read(path) for path in self.paths]
        first = self._headers[0]
        for path, header in zip(self.paths, self._headers, strict=True):
            for name in ("n_vocab", "tokenizer_sha256"):
                if getattr(header, name) != getattr(first, name):
                    raise DataError(
                        f"{path} has another {name} than {self.paths[0].name} ({getattr(header, name)}, not "
                        f"{getattr(first, name)}); keep the shards of one text and tokenizer in a folder")
            if header.is_last != (path == self.paths[-1]):
                raise DataError(
                    f"{path} is the last shard by its header, but more follow; remove those of another text"
                    if header.is_last
                    else f"{path} is not the last shard, but no other follows; write the shards again")
        if n_vocab is not None and first.n_vocab != n_vocab:
            raise DataError(
                f"{self.folder} is for a vocabulary of {first.n_vocab}, but the model has {n_vocab}; "
                "write the shards with the model's tokenizer")
        if tokenizer_sha256 is not None and first.tokenizer_sha256 != tokenizer_sha256:
            raise DataError(
                f"{self.folder} was written with another tokenizer (sha256 {first.tokenizer_sha256[:12]}..., "
                f"not {tokenizer_sha256[:12]}...); write the shards again with this one")
        self.n_vocab, self.tokenizer_sha256 = first.n_vocab, first.tokenizer_sha256
        # A plain array over the map: np.memmap itself adds microseconds to every slice.
        self._shards = [
            np.asarray(np.memmap(path, dtype=header.dtype, mode="r", offset=HEADER_BYTES))
            for path, header in zip(self.paths, self._headers, strict=True)
        ]
        self._ends = list(accumulate(shard.size for shard in self._shards))
        self.n_tokens = self._ends[-1]

    def verify(self) -> None:
        """Read every id; DataError names the file with a wrong digest or an id outside the vocabulary."""
        for path, header, shard in zip(self.paths, self._headers, self._shards, strict=True):
            digest = hashlib.sha256()
            for start in range(0, shard.size, 2**22):
                piece = shard[start : start + 2**22]
                digest.update(piece.data)
                if piece.max() >= self.n_vocab:
                    raise DataError(f"{path} holds id {piece.max()}, but its vocabulary is {self.n_vocab}")
            if digest.hexdigest() != header.payload_sha256:
                raise DataError(f"{path} is damaged: its ids do not fit their sha256; write the shards again")

    def n_windows(self, context_length: int) -> int:
        """Return how many windows an epoch has; DataError if the text is too short for one."""
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1, got {context_length}")
        if self.n_tokens <= context_length:
            raise DataError(
                f"{self.folder} holds {self.n_tokens} tokens, but a window of length {context_length} "
                f"needs {context_length + 1}; give more text or a smaller context_length")
        # One window less than would fit, so that the epoch's offset can be any of 0 ... L-1.
        return max(1, (self.n_tokens - context_length) // context_length)

    def batch(self, k: int, *, batch_size: int, context_length: int, seed: int) -> Batch:
        """Return batch ``k`` (from 0): inputs and targets, two int64 tensors (B, L).

        The windows of an epoch lie end to end from an offset drawn from (seed, epoch); the epoch visits
        each once, in an order drawn from the same. Epochs follow each other without a gap, so a batch can
        span two. Only numpy's bit generator is used, whose stream is the same in every version and on every
        machine.

        Raises DataError if the text is too short, ValueError for a negative ``k`` or ``seed`` or a
        ``batch_size`` below 1.
        """
        for name, value, least in (("k", k, 0), ("seed", seed, 0), ("batch_size", batch_size, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        n_windows = self.n_windows(context_length)
        n_offsets = min(context_length, self.n_tokens - n_windows * context_length)
        starts: list[int] = []
        while len(starts) < batch_size:
            epoch, place = divmod(k * batch_size + len(starts), n_windows)
            order, offset = _epoch(n_windows, n_offsets, seed, epoch)
            windows = order[place : place + batch_size - len(starts)]
            starts += (offset + windows * context_length).tolist()
        ids = self._read(starts, context_length + 1)                     # (B, L + 1)
        # Copied by numpy: torch takes three times as long for so small a piece.
        return torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(ids[:, 1:].copy())

    def batches(self, *, batch_size: int, context_length: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield batch ``start``, ``start`` + 1, ... without end; see ``batch``."""
        for k in count(start):
            yield self.batch(k, batch_size=batch_size, context_length=context_length, seed=seed)

    def windows(self, *, batch_size: int, context_length: int) -> "EvaluationWindows":
        """Return the stream in order, cut into windows that do not overlap: each target comes exactly once.

        The last window is filled up with targets of -100 (not counted), the last batch may have fewer rows.
        It is a sequence, read anew on every pass: ``windows(...)[:20]`` are its first 20 batches.

        Raises DataError if the stream has fewer than two tokens.
        """
        if batch_size < 1 or context_length < 1:
            raise ValueError(
                f"batch_size and context_length must be at least 1, got {batch_size} and {context_length}")
        if self.n_tokens < 2:
            raise DataError(f"{self.folder} holds 1 token, but scoring needs at least 2; give more text")
        return EvaluationWindows(self, batch_size, context_length)

    def _read(self, starts: Sequence[int], length: int) -> Ids:
        """Return a row of ``length`` ids from each start on; -100 past the end of the stream."""
        ids = np.full((len(starts), length), IGNORED, dtype=np.int64)
        for row, start in zip(ids, starts, strict=True):
            number, filled = bisect_right(self._ends, start), 0
            while filled < length and number < len(self._shards):
                shard = self._shards[number]
                first = start + filled - (self._ends[number] - shard.size)
                piece = shard[first : first + length - filled]
                row[filled : filled + piece.size] = piece
                filled += piece.size
                number += 1
        if ids.max() >= self.n_vocab:
            raise DataError(f"{self.folder} holds id {ids.max()}, but its vocabulary is {self.n_vocab}")
        return ids


class EvaluationWindows(Sequence[Batch]):
    """The batches of ``ShardDataset.windows``."""

    def __init__(self, dataset: ShardDataset, batch_size: int, context_length: int) -> None:
        self._dataset, self._batch_size, self._context_length = dataset, batch_size, context_length
        self._n_windows = -(-(dataset.n_tokens - 1) // context_length)

    def __len__(self) -> int:
        return -(-self._n_windows // self._batch_size)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        k = range(len(self))[index]  # negative indices and IndexError as a list has them
        L, first = self._context_length, k * self._batch_size
        starts = [row * L for row in range(first, min(first + self._batch_size, self._n_windows))]
        ids = torch.from_numpy(self._dataset._read(starts, L + 1))       # (B, L + 1)
        # Past the end an input may be any valid id: no counted target sees it.
        return ids[:, :-1].clamp(min=0), ids[:, 1:].contiguous()


# Two epochs: a batch can span two. For 10 million windows an entry takes 80 MB.
@lru_cache(maxsize=2)
def _epoch(n_windows: int, n_offsets: int, seed: int, epoch: int) -> tuple[Ids, int]:
    """Return the order of the windows in this epoch and the offset at which they begin."""
    draws = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(n_windows + 1)
    return np.argsort(draws[1:], kind="stable"), int(draws[0] % n_offsets)


def _shard_paths(folder: Path) -> list[Path]:
    """Return the folder's shard files in order; DataError if there is none or a number is missing."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder of shards: " + (
            "it is a file" if folder.exists() else "it does not exist"))
    found = {int(match[1]): path for path in folder.iterdir() if (match := SHARD_NAME.fullmatch(path.name))}
    if not found:
        raise DataError(f"{folder} holds no shard: expected {shard_name(0)}; write shards there first")
    for number in range(len(found)):
        if number not in found:
            raise DataError(f"{folder} lacks {shard_name(number)}; copy it there or write the shards again")
    return [found[number] for number in range(len(found))]
