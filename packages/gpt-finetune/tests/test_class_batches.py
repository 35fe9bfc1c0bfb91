"""Batches of an epoch: every text once, like lengths together, the same from the same seed."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune.class_batches import IGNORED, ClassBatches, class_batch, last_tokens


def texts(lengths):
    """Sequences in which each id says the text's number, and classes of the same numbers."""
    return [[number] * length for number, length in enumerate(lengths)], list(range(len(lengths)))


def as_lists(batches):
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in batches]


lengths_of_texts = st.lists(st.integers(1, 60), min_size=1, max_size=60)


@given(lengths=lengths_of_texts, batch_size=st.integers(1, 9), seed=st.integers(0, 99), epoch=st.integers(0, 5))
def test_every_text_comes_once_an_epoch_whole_and_with_its_class_at_its_last_token(lengths, batch_size, seed, epoch):
    batches = ClassBatches(*texts(lengths), batch_size=batch_size, seed=seed)
    found = []
    for inputs, targets in batches.epoch(epoch):
        assert inputs.shape == targets.shape
        assert inputs.dtype == targets.dtype == torch.int64
        assert len(inputs) <= batch_size
        for ids, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
            place = next(at for at, target in enumerate(wanted) if target != IGNORED)
            assert set(wanted[:place] + wanted[place + 1 :]) <= {IGNORED}
            assert ids == [wanted[place]] * (place + 1) + [0] * (len(ids) - place - 1)
            found.append((wanted[place], place + 1))

    assert sorted(found) == list(enumerate(lengths))


@given(lengths=lengths_of_texts, batch_size=st.integers(1, 9), seed=st.integers(0, 99))
def test_texts_of_a_batch_are_of_about_one_length(lengths, batch_size, seed):
    batches = ClassBatches(*texts(lengths), batch_size=batch_size, seed=seed)
    ends = []
    for _, targets in batches.epoch(0):
        rows, _ = last_tokens(targets)
        ends.append((int(rows.min()) + 1, int(rows.max()) + 1))
    for least, most in ends:
        for other_least, other_most in ends:  # one of two batches holds the shorter texts, but for a fifth
            assert most <= 1.2 * other_least or other_most <= 1.2 * least or (least, most) == (other_least, other_most)


def test_most_of_what_is_computed_is_no_padding():
    draw = random.Random(1)
    lengths = [max(1, round(draw.lognormvariate(3, 0.7))) for _ in range(1000)]
    batches = ClassBatches(*texts(lengths), batch_size=8, seed=0)
    n_computed = sum(inputs.numel() for inputs, _ in batches.epoch(0))
    in_given_order = sum(8 * max(lengths[start : start + 8]) for start in range(0, 1000, 8))

    assert sum(lengths) / n_computed > 0.85
    assert sum(lengths) / in_given_order < 0.6


@given(lengths=lengths_of_texts, seed=st.integers(0, 99), epoch=st.integers(0, 5))
def test_an_epoch_depends_on_seed_and_number_alone(lengths, seed, epoch):
    expected = as_lists(ClassBatches(*texts(lengths), batch_size=4, seed=seed).epoch(epoch))
    again = ClassBatches(*texts(lengths), batch_size=4, seed=seed)
    list(again.epoch(epoch + 1))
    random.random()
    torch.rand(1)

    assert as_lists(again.epoch(epoch)) == expected


def test_neither_batches_nor_their_order_repeat_in_the_next_epoch_or_with_another_seed():
    batches = ClassBatches(*texts([10] * 40), batch_size=4, seed=1)
    orders = [as_lists(batches.epoch(0)), as_lists(batches.epoch(1))]
    orders.append(as_lists(ClassBatches(*texts([10] * 40), batch_size=4, seed=2).epoch(0)))
    together = [{frozenset(row[0] for row in inputs) for inputs, _ in batches} for batches in orders]

    assert len({str(order) for order in orders}) == 3
    assert together[0] != together[1]
    assert together[0] != together[2]


def test_the_shortest_texts_do_not_always_come_first():
    batches = ClassBatches(*texts(range(1, 41)), batch_size=4, seed=1)
    widths = [[inputs.shape[1] for inputs, _ in batches.epoch(number)] for number in range(2)]
    assert all(of_epoch != sorted(of_epoch) for of_epoch in widths)


@pytest.mark.parametrize(("n_texts", "expected"), [(8, 2), (9, 3), (1, 1)])
def test_n_steps_counts_the_short_last_batch(n_texts, expected):
    batches = ClassBatches(*texts([3] * n_texts), batch_size=4, seed=0)
    assert batches.n_steps == len(list(batches.epoch(0))) == expected


def test_epochs_follow_one_another():
    batches = ClassBatches(*texts([1, 2, 3, 4, 5]), batch_size=2, seed=0)
    one_by_one = [batch for number in range(3) for batch in as_lists(batches.epoch(number))]
    assert as_lists(batches.epochs(3)) == one_by_one


@given(lengths=lengths_of_texts, data=st.data())
def test_last_tokens_finds_place_and_class(lengths, data):
    classes = data.draw(st.lists(st.integers(0, 4), min_size=len(lengths), max_size=len(lengths)))
    rows, found = last_tokens(class_batch([[7] * length for length in lengths], classes)[1])

    assert rows.tolist() == [length - 1 for length in lengths]
    assert found.tolist() == classes
