"""Reading a folder of shards: the stream, its batches and its windows."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_train import DataError, ShardDataset, write_shards

TOKENIZER = "ab" * 32


def write(folder, n_tokens, *, shard_tokens=2**26, n_vocab=100_000, pieces=3):
    """Shards whose id at position i is i, so that a window shows where it was taken from."""
    ids = np.array_split(np.arange(n_tokens), pieces)
    return write_shards(folder, ids, n_vocab=n_vocab, tokenizer_sha256=TOKENIZER, shard_tokens=shard_tokens)


def starts(batch):
    return batch[0][:, 0].tolist()


@given(
    pieces=st.lists(st.lists(st.integers(0, 70_000), max_size=20), min_size=1, max_size=8),
    shard_tokens=st.integers(1, 30),
)
def test_what_is_written_is_read_whatever_the_cuts(tmp_path_factory, pieces, shard_tokens):
    ids = [i for piece in pieces for i in piece] + [1, 2]
    folder = tmp_path_factory.mktemp("shards")
    write_shards(
        folder, [*pieces, [1, 2]], n_vocab=70_001, tokenizer_sha256=TOKENIZER, shard_tokens=shard_tokens
    )

    dataset = ShardDataset(folder, n_vocab=70_001, tokenizer_sha256=TOKENIZER)
    dataset.verify()
    assert dataset.n_tokens == len(ids)
    assert len(dataset.paths) == -(-len(ids) // shard_tokens)
    [(inputs, targets)] = dataset.windows(batch_size=1, context_length=len(ids) - 1)
    assert inputs.tolist() == [ids[:-1]]
    assert targets.tolist() == [ids[1:]]


def test_batches_do_not_depend_on_how_the_stream_was_cut_into_shards(tmp_path):
    write(tmp_path / "one", 1000)
    write(tmp_path / "many", 1000, shard_tokens=7, pieces=40)
    one, many = ShardDataset(tmp_path / "one"), ShardDataset(tmp_path / "many")

    for k in range(60):
        a, b = (d.batch(k, batch_size=4, context_length=16, seed=5) for d in (one, many))
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


@given(
    n_tokens=st.integers(9, 300),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 2**64),
    epoch=st.integers(0, 3),
)
def test_an_epoch_visits_each_window_exactly_once(tmp_path_factory, n_tokens, batch_size, seed, epoch):
    folder = tmp_path_factory.mktemp("shards")
    write(folder, n_tokens)
    dataset = ShardDataset(folder)
    n = dataset.n_windows(8)
    stream = dataset.batches(batch_size=batch_size, context_length=8, seed=seed)
    visited = [start for batch in islice(stream, (epoch + 1) * n) for start in starts(batch)]

    windows = sorted(visited[epoch * n : (epoch + 1) * n])
    assert windows == list(range(windows[0], windows[0] + 8 * n, 8))
    assert 0 <= windows[0] < 8
    assert windows[-1] + 8 < n_tokens


def test_a_batch_holds_a_window_and_the_same_shifted_by_one(tmp_path):
    write(tmp_path, 500)
    inputs, targets = ShardDataset(tmp_path).batch(3, batch_size=5, context_length=16, seed=0)

    assert inputs.shape == targets.shape == (5, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert row == list(range(row[0], row[0] + 16))
        assert target == [i + 1 for i in row]


def test_a_batch_is_a_pure_function_of_seed_and_number(tmp_path):
    write(tmp_path, 500)
    in_order = ShardDataset(tmp_path).batches(batch_size=5, context_length=16, seed=9)
    expected = [next(in_order)[0] for _ in range(30)]
    later = ShardDataset(tmp_path).batches(batch_size=5, context_length=16, seed=9, start=29)
    dataset = ShardDataset(tmp_path)

    assert torch.equal(next(later)[0], expected[29])
    for k in np.random.default_rng(0).permutation(30):
        assert torch.equal(dataset.batch(int(k), batch_size=5, context_length=16, seed=9)[0], expected[k])


def test_epochs_and_seeds_differ_in_order_and_offset(tmp_path):
    write(tmp_path, 5000)
    dataset = ShardDataset(tmp_path)
    n = dataset.n_windows(16)
    orders = [
        starts(dataset.batch(epoch, batch_size=n, context_length=16, seed=seed))
        for seed in (0, 1)
        for epoch in range(10)
    ]

    assert len({tuple(order) for order in orders}) == 20
    assert len({min(order) for order in orders}) > 5


def test_batches_draw_nothing_from_the_global_generators(tmp_path):
    write(tmp_path, 500)
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    ShardDataset(tmp_path).batch(0, batch_size=2, context_length=8, seed=0)

    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


@given(n_tokens=st.integers(2, 80), batch_size=st.integers(1, 5), context_length=st.integers(1, 20))
def test_evaluation_windows_score_every_target_exactly_once(
    tmp_path_factory, n_tokens, batch_size, context_length
):
    folder = tmp_path_factory.mktemp("shards")
    write(folder, n_tokens, shard_tokens=11)
    windows = ShardDataset(folder).windows(batch_size=batch_size, context_length=context_length)

    scored = [
        pair for x, y in windows for pair in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)
    ]
    assert [pair for pair in scored if pair[1] != -100] == [(i, i + 1) for i in range(n_tokens - 1)]
    assert len(list(windows)) == len(windows)
    assert torch.equal(windows[-1][0], list(windows)[-1][0])
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_a_text_that_is_too_short_says_how_many_tokens_are_needed(tmp_path):
    write(tmp_path, 16)
    dataset = ShardDataset(tmp_path)

    with pytest.raises(DataError, match=r"holds 16 tokens.* needs 17"):
        dataset.batch(0, batch_size=1, context_length=16, seed=0)
    assert starts(dataset.batch(0, batch_size=1, context_length=15, seed=0)) == [0]


@pytest.mark.parametrize("wrong", [{"k": -1}, {"seed": -1}, {"batch_size": 0}, {"context_length": 0}])
def test_a_batch_refuses_numbers_that_break_their_rule(tmp_path, wrong):
    write(tmp_path, 100)
    good = {"k": 0, "seed": 0, "batch_size": 1, "context_length": 8}

    with pytest.raises(ValueError, match=next(iter(wrong))):
        ShardDataset(tmp_path).batch(**(good | wrong))
