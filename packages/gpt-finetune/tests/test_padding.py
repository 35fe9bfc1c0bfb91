"""Sequences as rectangles."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune.padding import padded, padded_batches


@given(lengths=st.lists(st.integers(1, 50), max_size=100))
def test_each_sequence_comes_once_the_shortest_first(lengths: list[int]) -> None:
    sequences = [[number + 1] * length for number, length in enumerate(lengths)]
    seen = []
    for numbers, inputs, found in padded_batches(sequences, torch.device("cpu")):
        assert inputs.shape == (len(numbers), max(len(sequences[number]) for number in numbers))
        for number, row, length in zip(numbers, inputs.tolist(), found.tolist(), strict=True):
            assert row == sequences[number] + [0] * (len(row) - length)
            seen.append(number)
    assert sorted(seen) == list(range(len(lengths)))
    assert [lengths[number] for number in seen] == sorted(lengths)


def test_padded_puts_the_ids_on_the_left_and_tells_the_lengths() -> None:
    inputs, lengths = padded([[5], [6, 7, 8], [9, 9]])
    assert inputs.tolist() == [[5, 0, 0], [6, 7, 8], [9, 9, 0]]
    assert (lengths.tolist(), inputs.dtype, lengths.dtype) == ([1, 3, 2], torch.int64, torch.int64)
