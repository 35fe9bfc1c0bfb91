from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_train import DataError, ShardDataset, ShardWriter, write_shards
from gpt_train.shard_files import HEADER_BYTES, ShardHeader

TOKENIZER = "ab" * 32


def write(folder, n_tokens, *, shard_tokens=2**26, n_vocab=100_000, pieces=3):
    """Shards whose id at position i is i, so that a window shows where it was taken from."""
    ids = np.array_split(np.arange(n_tokens), pieces)
    return write_shards(folder, ids, n_vocab=n_vocab, tokenizer_sha256=TOKENIZER, shard_tokens=shard_tokens)


def starts(batch):
    return batch[0][:, 0].tolist()


def rewrite_header(path, **changes):
    """Replace fields of a header, checksum included, as a program with a fault would write it."""
    header, payload = ShardHeader.read(path), path.read_bytes()[HEADER_BYTES:]
    fields = {name: getattr(header, name) for name in header.__dataclass_fields__}
    path.write_bytes(ShardHeader(**(fields | changes)).pack() + payload)


@pytest.mark.parametrize(("n_vocab", "width"), [(2, 2), (65_536, 2), (65_537, 4), (2**32, 4)])
def test_ids_take_two_bytes_where_the_vocabulary_fits_and_else_four(tmp_path, n_vocab, width):
    [path] = write_shards(tmp_path, [[0, 1, n_vocab - 1]], n_vocab=n_vocab, tokenizer_sha256=TOKENIZER)

    assert path.stat().st_size == HEADER_BYTES + 3 * width
    payload = np.frombuffer(path.read_bytes()[HEADER_BYTES:], dtype=f"<u{width}")
    assert payload.tolist() == [0, 1, n_vocab - 1]


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


@pytest.mark.parametrize("ids", [[0, 100], [-1], [2**40], [2**70], [0.5], [[1, 2]]])
def test_writing_an_id_that_is_not_in_the_vocabulary_is_refused_and_leaves_nothing(tmp_path, ids):
    with pytest.raises(DataError):
        write_shards(tmp_path, [[1, 2, 3], ids], n_vocab=100, tokenizer_sha256=TOKENIZER, shard_tokens=2)
    assert list(tmp_path.iterdir()) == []


def test_writing_no_token_is_refused(tmp_path):
    with pytest.raises(DataError, match="empty"):
        write_shards(tmp_path, [[], []], n_vocab=100, tokenizer_sha256=TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_writing_over_other_shards_is_refused_and_leaves_them(tmp_path):
    [path] = write(tmp_path, 10)
    before = path.read_bytes()

    with pytest.raises(DataError, match="already holds shards"):
        write(tmp_path, 20)
    assert path.read_bytes() == before


def test_a_writer_that_fails_removes_its_own_files_only(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    writer = ShardWriter(tmp_path, n_vocab=100, tokenizer_sha256=TOKENIZER, shard_tokens=2)

    def fail():
        with writer:
            writer.write([1, 2, 3, 4, 5])
            assert len(writer.paths) == 2
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "settings_",
    [{"n_vocab": 0}, {"n_vocab": 2**32 + 1}, {"shard_tokens": 0}, {"tokenizer_sha256": "xyz"}],
)
def test_a_writer_refuses_settings_that_break_their_rule(tmp_path, settings_):
    with pytest.raises(ValueError, match=next(iter(settings_))):
        ShardWriter(tmp_path, **({"n_vocab": 100, "tokenizer_sha256": TOKENIZER} | settings_))


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


# What follows are the faults of a folder: each is refused when it is opened.


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda p: p.write_bytes(b"NOTSHARD" + p.read_bytes()[8:]), "is not a shard file"),
        (lambda p: p.write_bytes(b""), "is not a shard file"),
        (lambda p: p.write_bytes(p.read_bytes()[:50]), "cut off within its header"),
        (lambda p: flip(p, 8), "version"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes"),
        (lambda p: p.write_bytes(p.read_bytes() + b"\0\0"), "bytes"),
        (lambda p: p.unlink(), "lacks shard-00001.bin"),
        (lambda p: p.rename(p.with_name("shard-00003.bin")), "lacks shard-00001.bin"),
        (lambda p: p.with_name("shard-00002.bin").unlink(), "is not the last shard"),
        (lambda p: p.write_bytes(p.with_name("shard-00000.bin").read_bytes()), "rename it"),
        (lambda p: rewrite_header(p, tokenizer_sha256="cd" * 32), "another tokenizer_sha256"),
        (lambda p: rewrite_header(p, n_vocab=200), "another n_vocab"),
        (lambda p: rewrite_header(p, n_vocab=2**20), "bytes"),
        (lambda p: rewrite_header(p, is_last=True), "more follow"),
        (lambda p: rewrite_header(p, n_tokens=0), "bytes"),
    ],
)
def test_a_folder_with_a_fault_is_refused_when_it_is_opened(tmp_path, fault, message):
    paths = write(tmp_path, 30, shard_tokens=10, n_vocab=100)
    fault(paths[1])

    with pytest.raises(DataError, match=message) as caught:
        ShardDataset(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_every_flipped_bit_of_a_header_is_noticed_when_it_is_opened(tmp_path):
    [path] = write(tmp_path, 30, n_vocab=100)
    good = path.read_bytes()

    for bit in range(8 * 108):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(DataError):
            ShardDataset(tmp_path)


def test_every_flipped_bit_of_the_ids_is_noticed_by_verify(tmp_path):
    [path] = write(tmp_path, 30, n_vocab=100)
    good = path.read_bytes()

    for bit in range(8 * HEADER_BYTES, 8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(DataError, match=path.name):
            ShardDataset(tmp_path).verify()


def test_an_id_outside_the_vocabulary_never_reaches_the_model(tmp_path):
    [path] = write(tmp_path, 30, n_vocab=100)
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 20 : HEADER_BYTES + 22] = (100).to_bytes(2, "little")
    path.write_bytes(data)

    with pytest.raises(DataError, match="holds id 100"):
        ShardDataset(tmp_path).verify()
    with pytest.raises(DataError, match="holds id 100"):
        list(ShardDataset(tmp_path).windows(batch_size=1, context_length=8))


def test_shards_of_another_tokenizer_or_vocabulary_are_refused(tmp_path):
    write(tmp_path, 30, n_vocab=100)

    with pytest.raises(DataError, match="another tokenizer"):
        ShardDataset(tmp_path, tokenizer_sha256="cd" * 32)
    with pytest.raises(DataError, match="vocabulary of 100, but the model has 101"):
        ShardDataset(tmp_path, n_vocab=101)


def test_a_folder_without_shards_is_refused(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(DataError, match="holds no shard"):
        ShardDataset(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        ShardDataset(tmp_path / "nothing")
    with pytest.raises(DataError, match="it is a file"):
        ShardDataset(tmp_path / "file")


def test_what_a_killed_writer_left_behind_is_not_taken_for_a_text(tmp_path):
    writer = ShardWriter(tmp_path, n_vocab=100, tokenizer_sha256=TOKENIZER, shard_tokens=5)
    writer.write(list(range(12)))
    writer._file.close()  # the process dies here: two shards are there, the third has its temporary name

    with pytest.raises(DataError, match="is not the last shard"):
        ShardDataset(tmp_path)
