"""The book's functions of chapter 7 and its exercises: its signatures, lines and numbers.

``gpt_finetune.chat`` is what new code uses: there a conversation is made of tokens, several turns are possible, and
training, chat and evaluation share one template. Where the book masks by the padding's value, which loses real
targets of an answer that holds that token, the functions here mask by position; all else is equal.

Shapes: B items, T tokens of the longest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gpt_finetune.encode import SupportsEncode, encode_text

Entry = Mapping[str, Any]
"""An example of Alpaca's form: instruction, input (perhaps empty), output."""


def format_input(entry: Entry) -> str:
    """Return Alpaca's prompt for ``entry``, without the heading of the response (Taori et al. 2023)."""
    instruction_text = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    return instruction_text + (f"\n\n### Input:\n{entry['input']}" if entry["input"] else "")


def format_input_phi(entry: Entry) -> str:
    """Return exercise 7.1's prompt for ``entry``, in Phi-3's manner, without the heading of the response."""
    return f"<|user|>\n{entry['instruction']}" + (f"\n{entry['input']}" if entry["input"] else "")


class InstructionDataset(Dataset[list[int]]):
    """The ids of each entry's prompt and response, with neither an end token nor padding.

    What looks like a special token is ordinary text (where the book raises).
    """

    def __init__(self, data: Sequence[Entry], tokenizer: SupportsEncode) -> None:
        self.data = data
        self.encoded_texts = [
            encode_text(tokenizer, f"{format_input(entry)}\n\n### Response:\n{entry['output']}") for entry in data
        ]

    def __getitem__(self, index: int) -> list[int]:
        return self.encoded_texts[index]

    def __len__(self) -> int:
        return len(self.data)


class InstructionDatasetPhi(Dataset[list[int]]):
    """Exercise 7.1: as ``InstructionDataset``, with Phi-3's prompt."""

    def __init__(self, data: Sequence[Entry], tokenizer: SupportsEncode) -> None:
        self.data = data
        self.encoded_texts = [
            encode_text(tokenizer, f"{format_input_phi(entry)}\n<|assistant|>:\n{entry['output']}") for entry in data
        ]

    def __getitem__(self, index: int) -> list[int]:
        return self.encoded_texts[index]

    def __len__(self) -> int:
        return len(self.data)


class InstructionDatasetWithMasking(Dataset[tuple[int, list[int]]]):
    """Exercise 7.2: the number of the prompt's ids, and the ids of prompt and response."""

    def __init__(self, data: Sequence[Entry], tokenizer: SupportsEncode) -> None:
        self.data = data
        self.instruction_lengths = [len(encode_text(tokenizer, format_input(entry))) for entry in data]
        self.encoded_texts = InstructionDataset(data, tokenizer).encoded_texts

    def __getitem__(self, index: int) -> tuple[int, list[int]]:
        return self.instruction_lengths[index], self.encoded_texts[index]

    def __len__(self) -> int:
        return len(self.data)


def custom_collate_draft_1(
    batch: Sequence[Sequence[int]], pad_token_id: int = 50256, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the chapter's first draft of a batch: the inputs (B, T) alone, padded."""
    return _padded(batch, pad_token_id)[:, :-1].to(device)


def custom_collate_draft_2(
    batch: Sequence[Sequence[int]], pad_token_id: int = 50256, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return the chapter's second draft of a batch: inputs and targets (B, T), the padding among the targets."""
    rows = _padded(batch, pad_token_id)
    return rows[:, :-1].to(device), rows[:, 1:].to(device)


def custom_collate_fn(
    batch: Sequence[Sequence[int]],
    pad_token_id: int = 50256,
    ignore_index: int = -100,
    allowed_max_length: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets (B, T) int64: each item's ids, one ``pad_token_id`` that ends it, then padding.

    Every real token is a target, and so is the one that ends the item; the padding's targets are ``ignore_index``. Both
    are cut to ``allowed_max_length``: an item that is longer loses its end. The items are left as they are. Raises
    ValueError for an empty batch.
    """
    lengths = torch.tensor([len(item) for item in batch])
    rows = _padded(batch, pad_token_id)
    inputs, targets = rows[:, :-1], rows[:, 1:].clone()
    is_padding = torch.arange(targets.shape[1]) >= lengths[:, None]             # (B, T)
    targets[is_padding] = ignore_index
    return inputs[:, :allowed_max_length].to(device), targets[:, :allowed_max_length].to(device)


def custom_collate_with_masking_fn(
    batch: Sequence[tuple[int, Sequence[int]]],
    pad_token_id: int = 50256,
    ignore_index: int = -100,
    allowed_max_length: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return a batch of exercise 7.2: as ``custom_collate_fn``, but the prompt's own tokens are no targets either."""
    items = [item for _, item in batch]
    inputs, targets = custom_collate_fn(items, pad_token_id, ignore_index, allowed_max_length, device)
    for row, (instruction_length, _) in zip(targets, batch, strict=True):
        row[: max(instruction_length - 1, 0)] = ignore_index
    return inputs, targets


def _padded(batch: Sequence[Sequence[int]], pad_token_id: int) -> Tensor:
    """Return the items (B, T + 1) as rows, each with at least one padding token."""
    if not batch:
        raise ValueError("batch is empty; give at least one list of token ids")
    rows = torch.full((len(batch), max(map(len, batch)) + 1), pad_token_id, dtype=torch.int64)
    for row, item in zip(rows, batch, strict=True):
        row[: len(item)] = torch.tensor(item, dtype=torch.int64)
    return rows
