"""Chapter 7's functions: the book's batches, and every real token a target."""

import json
from pathlib import Path

import pytest
import tiktoken
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune import (
    InstructionDataset,
    InstructionDatasetPhi,
    InstructionDatasetWithMasking,
    custom_collate_draft_1,
    custom_collate_draft_2,
    custom_collate_fn,
    custom_collate_with_masking_fn,
    format_input,
    format_input_phi,
)

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
BOOKS_BATCH = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]  # the example of section 7.3
END = 50256
ENTRY = {"instruction": "Name a colour.", "input": "of the sky", "output": "Blue."}


class Letters:
    """A tokenizer whose ids are code points."""

    def encode(self, text):
        return [ord(letter) for letter in text]


def collate_by_value(batch, pad=END, ignore_index=-100, allowed_max_length=None):
    """The book's rule in its own words: of all padding ids among the targets the first one counts."""
    longest = max(len(item) + 1 for item in batch)
    rows = [item + [pad] * (longest - len(item)) for item in batch]
    targets = []
    for row in rows:
        wanted, n_seen = [], 0
        for token in row[1:]:
            n_seen += token == pad
            wanted.append(ignore_index if token == pad and n_seen > 1 else token)
        targets.append(wanted[:allowed_max_length])
    return [row[:-1][:allowed_max_length] for row in rows], targets


def test_the_prompt_is_the_books():
    head = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nName a colour."
    )
    assert format_input({**ENTRY, "input": ""}) == head
    assert format_input(ENTRY) == head + "\n\n### Input:\nof the sky"
    assert format_input_phi(ENTRY) == "<|user|>\nName a colour.\nof the sky"
    with pytest.raises(KeyError, match="input"):
        format_input({"instruction": "x"})


def test_the_drafts_and_the_batch_are_the_books():
    inputs = [[0, 1, 2, 3, 4], [5, 6, END, END, END], [7, 8, 9, END, END]]

    assert custom_collate_draft_1(BOOKS_BATCH).tolist() == inputs
    first, second = custom_collate_draft_2(BOOKS_BATCH)
    assert (first.tolist(), second.tolist()) == (
        inputs, [[1, 2, 3, 4, END], [6, END, END, END, END], [8, 9, END, END, END]])
    first, second = custom_collate_fn(BOOKS_BATCH)
    assert (first.tolist(), second.tolist()) == (
        inputs, [[1, 2, 3, 4, END], [6, END, -100, -100, -100], [8, 9, END, -100, -100]])
    assert BOOKS_BATCH == [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    assert first.dtype == second.dtype == torch.int64


@given(
    batch=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=12), min_size=1, max_size=6),
    allowed=st.none() | st.integers(1, 14),
)
def test_where_no_item_holds_the_padding_id_the_batch_is_the_books(batch, allowed):
    inputs, targets = custom_collate_fn(batch, allowed_max_length=allowed)

    assert (inputs.tolist(), targets.tolist()) == collate_by_value(batch, allowed_max_length=allowed)


@given(batch=st.lists(st.lists(st.sampled_from([END, 1, 2]), min_size=1, max_size=12), min_size=1, max_size=6))
def test_every_real_token_and_the_end_is_a_target_whatever_its_value(batch):
    _, targets = custom_collate_fn(batch)

    for item, row in zip(batch, targets.tolist(), strict=True):
        assert row == [*item[1:], END, *[-100] * (targets.shape[1] - len(item))]


def test_masking_leaves_the_response_and_its_end():
    data = InstructionDatasetWithMasking([ENTRY, {**ENTRY, "input": "", "output": "Red, as the sun is."}], Letters())
    _, targets = custom_collate_with_masking_fn([data[0], data[1]])

    for place, (length, ids) in enumerate(data):
        kept = [token for token in targets[place].tolist() if token != -100]
        assert kept == [*ids[length:], END]
        assert "".join(map(chr, kept[:-1])) == f"\n\n### Response:\n{data.data[place]['output']}"


def test_an_empty_batch_is_named():
    for collate in (custom_collate_draft_1, custom_collate_draft_2, custom_collate_fn, custom_collate_with_masking_fn):
        with pytest.raises(ValueError, match="batch is empty"):
            collate([])


def test_phi3s_data_set_has_its_headings():
    (ids,) = InstructionDatasetPhi([ENTRY], Letters())

    assert "".join(map(chr, ids)) == "<|user|>\nName a colour.\nof the sky\n<|assistant|>:\nBlue."


@pytest.fixture(scope="module")
def books_data():
    path = SHARED / "instruction-data.json"
    if not path.exists():
        pytest.skip("needs instruction-data.json in ../shared/data")
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_books_own_data_gives_its_split_and_tokens(books_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken-cache"))
    gpt2 = tiktoken.get_encoding("gpt2")
    n_train, n_test = int(len(books_data) * 0.85), int(len(books_data) * 0.1)
    assert (n_train, n_test, len(books_data) - n_train - n_test) == (935, 110, 55)
    data = InstructionDataset(books_data[:n_train], gpt2)
    assert data[7] == gpt2.encode(f"{format_input(books_data[7])}\n\n### Response:\n{books_data[7]['output']}")
    # Without shuffling the first batches of 8 are as long as their longest item, its end taking the place of the first.
    for start in range(0, 80, 8):
        batch = [data[number] for number in range(start, start + 8)]
        inputs, targets = custom_collate_fn(batch, allowed_max_length=1024)
        assert inputs.shape == targets.shape == (8, max(map(len, batch)))
        assert (inputs.tolist(), targets.tolist()) == collate_by_value(batch)
