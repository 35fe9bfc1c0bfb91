"""Windows over one text in memory (chapter 2); for more text than memory see ``shards``.

Shapes: L = max_length. A window is L inputs and, shifted by one, L targets.
"""

import warnings
from collections.abc import Sequence
from typing import Protocol, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gpt_tokenizer import GPT2Tokenizer
from gpt_train.errors import DataError


class SupportsEncode(Protocol):
    """What is needed of a tokenizer; tiktoken's encodings have it too."""

    def encode(self, text: str, /, *, allowed_special: set[str]) -> list[int]:
        """Return the ids of a text, in which the named special tokens count as such."""
        ...


class Windows(Sequence[Tensor]):
    """The ``length`` ids from ``first``, ``first + stride``, ... on: views of ``ids``, not copies."""

    def __init__(self, ids: Tensor, *, length: int, stride: int, first: int, n_windows: int) -> None:
        self._ids, self._length = ids, length
        self._starts = range(first, first + n_windows * stride, stride)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        starts = self._starts[index]
        if isinstance(starts, range):
            return [self._ids[start : start + self._length] for start in starts]
        return self._ids[starts : starts + self._length]


class GPTDatasetV1(Dataset[tuple[Tensor, Tensor]]):
    """The windows of ``txt`` that begin at token 0, ``stride``, 2 * ``stride``, ...

    Tokens at the end that fill no window are left out. ``input_ids`` and ``target_ids`` read like lists of
    int64 tensors (L,), but are views of one tensor: memory grows with the text, not with text times L /
    stride.

    Raises ValueError if ``max_length`` or ``stride`` is below 1, DataError if the text has no window: L + 1
    tokens.
    """

    def __init__(self, txt: str, tokenizer: SupportsEncode, max_length: int, stride: int) -> None:
        for name, value in (("max_length", max_length), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.tokenizer = tokenizer
        ids = torch.tensor(tokenizer.encode(txt, allowed_special={"<|endoftext|>"}), dtype=torch.int64)
        if len(ids) <= max_length:
            raise DataError(
                f"the text has {len(ids)} tokens, but max_length {max_length} needs {max_length + 1}; "
                "give more text or a smaller max_length")
        n_windows = -(-(len(ids) - max_length) // stride)
        self.input_ids = Windows(ids, length=max_length, stride=stride, first=0, n_windows=n_windows)
        self.target_ids = Windows(ids, length=max_length, stride=stride, first=1, n_windows=n_windows)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor]:
        return self.input_ids[idx], self.target_ids[idx]


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
    tokenizer: SupportsEncode | None = None,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a torch DataLoader over ``GPTDatasetV1`` of ``txt``: batches of two int64 tensors (B, L).

    ``tokenizer`` is GPT-2's unless another is given. The order comes from torch's global generator, with
    the draws the book's numbers rest on. Errors as ``GPTDatasetV1``; warns if ``drop_last`` leaves no batch
    at all.
    """
    dataset = GPTDatasetV1(txt, tokenizer or GPT2Tokenizer(), max_length, stride)
    if drop_last and len(dataset) < batch_size:
        warnings.warn(
            f"the loader is empty: {len(dataset)} windows fill no batch of {batch_size} (drop_last)",
            stacklevel=2,
        )
    return DataLoader(
        dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers
    )
