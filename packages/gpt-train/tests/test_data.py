import os
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gpt_train import DataError, GPTDatasetV1, create_dataloader_v1


class Numbers:
    """A tokenizer whose ids are the numbers in the text; it notes what was allowed."""

    def encode(self, text, *, allowed_special=frozenset()):
        self.allowed_special = allowed_special
        return [int(word) for word in text.split()]


def text(n):
    return " ".join(str(i) for i in range(n))


@given(n=st.integers(2, 60), length=st.integers(1, 20), stride=st.integers(1, 25))
def test_windows_are_those_the_book_defines(n, length, stride):
    """Starts 0, stride, ... below n - length; targets are the same window shifted by one."""
    expected = [list(range(start, start + length)) for start in range(0, n - length, stride)]
    if not expected:
        with pytest.raises(DataError, match=f"has {n} tokens, but max_length {length} needs {length + 1};"):
            GPTDatasetV1(text(n), Numbers(), length, stride)
        return
    dataset = GPTDatasetV1(text(n), Numbers(), length, stride)

    assert len(dataset) == len(dataset.input_ids) == len(dataset.target_ids) == len(expected)
    assert [x.tolist() for x in dataset.input_ids] == expected
    assert [y.tolist() for y in dataset.target_ids] == [[i + 1 for i in row] for row in expected]
    for k in (0, -1, len(expected) - 1):
        x, y = dataset[k]
        assert (x.tolist(), y.tolist()) == (expected[k], [i + 1 for i in expected[k]])
        assert x.dtype == y.dtype == torch.int64


def test_windows_read_like_lists():
    ids = GPTDatasetV1(text(10), Numbers(), 3, 2).input_ids

    assert [x.tolist() for x in ids[1:3]] == [[2, 3, 4], [4, 5, 6]]
    assert ids[-1].tolist() == [6, 7, 8]
    assert [x.tolist() for x in reversed(ids)] == [x.tolist() for x in list(ids)[::-1]]
    with pytest.raises(IndexError):
        ids[4]


def test_windows_share_one_tensor_so_that_memory_does_not_grow_with_the_overlap():
    dataset = GPTDatasetV1(text(100), Numbers(), 50, 1)
    bases = {x.untyped_storage().data_ptr() for x in (*dataset.input_ids, *dataset.target_ids)}

    assert len(bases) == 1
    assert dataset[0][0].untyped_storage().nbytes() == 100 * 8


def test_the_text_is_encoded_with_the_end_of_text_token_allowed():
    tokenizer = Numbers()
    dataset = GPTDatasetV1(text(5), tokenizer, 2, 1)

    assert tokenizer.allowed_special == {"<|endoftext|>"}
    assert dataset.tokenizer is tokenizer


def test_a_dataset_can_be_sent_to_a_worker_process():
    dataset = pickle.loads(pickle.dumps(GPTDatasetV1(text(10), Numbers(), 3, 2)))

    assert [x.tolist() for x in dataset.input_ids] == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]]


@pytest.mark.parametrize("wrong", [{"max_length": 0}, {"max_length": -1}, {"stride": 0}, {"stride": -2}])
def test_a_length_or_stride_below_one_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least 1"):
        GPTDatasetV1(text(10), Numbers(), **({"max_length": 2, "stride": 1} | wrong))


def test_an_empty_text_is_refused():
    with pytest.raises(DataError, match="has 0 tokens"):
        create_dataloader_v1("", tokenizer=Numbers())


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_loader_is_torchs_dataloader_with_its_draws(shuffle, drop_last):
    """Order of the batches and state of the generator afterwards, over three epochs."""
    starts = range(0, 45, 5)
    rows = [(torch.arange(i, i + 5), torch.arange(i + 1, i + 6)) for i in starts]
    plain = DataLoader(rows, batch_size=2, shuffle=shuffle, drop_last=drop_last)
    loader = create_dataloader_v1(
        text(50), 2, max_length=5, stride=5, shuffle=shuffle, drop_last=drop_last, tokenizer=Numbers()
    )

    def three_epochs(batches):
        torch.manual_seed(3)
        seen = [x.tolist() for _ in range(3) for batch in batches for x in batch]
        return seen, torch.get_rng_state().tolist()

    assert len(loader) == len(plain) == (4 if drop_last else 5)
    assert three_epochs(loader) == three_epochs(plain)


def test_a_loader_that_drop_last_leaves_empty_says_so():
    with pytest.warns(UserWarning, match="3 windows fill no batch of 4"):
        loader = create_dataloader_v1(text(10), max_length=2, stride=3, tokenizer=Numbers())

    assert list(loader) == []


def test_the_tokenizer_is_gpt2s_unless_another_is_given():
    """The first batch of the book's chapter 2: ids of "I HAD always thought Jack Gisburn ..."."""
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("TIKTOKEN_CACHE_DIR is not set, and tests do not use the network")
    loader = create_dataloader_v1("I HAD always thought Jack Gisburn", 1, 4, stride=1, shuffle=False)
    inputs, targets = next(iter(loader))

    assert inputs.tolist() == [[40, 367, 2885, 1464]]
    assert targets.tolist() == [[367, 2885, 1464, 1807]]
