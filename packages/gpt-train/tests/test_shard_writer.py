"""Writing shard files: what they hold, and what is left of them where writing fails."""

from contextlib import contextmanager

import numpy as np
import pytest

from gpt_train import DataError, ShardWriter, write_shards
from gpt_train.shard_files import HEADER_BYTES

TOKENIZER = "ab" * 32


@contextmanager
def no_file_longer_than(n_bytes):
    """A disk that is full as the kernel reports it: a write beyond ``n_bytes`` of a file fails."""
    resource = pytest.importorskip("resource", reason="only Unix limits the length of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("n_vocab", "width"), [(2, 2), (65_536, 2), (65_537, 4), (2**32, 4)])
def test_ids_take_two_bytes_where_the_vocabulary_fits_and_else_four(tmp_path, n_vocab, width):
    [path] = write_shards(tmp_path, [[0, 1, n_vocab - 1]], n_vocab=n_vocab, tokenizer_sha256=TOKENIZER)

    assert path.stat().st_size == HEADER_BYTES + 3 * width
    payload = np.frombuffer(path.read_bytes()[HEADER_BYTES:], dtype=f"<u{width}")
    assert payload.tolist() == [0, 1, n_vocab - 1]


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
    [path] = write_shards(tmp_path, [[1, 2, 3]], n_vocab=100, tokenizer_sha256=TOKENIZER)
    before = path.read_bytes()

    with pytest.raises(DataError, match="already holds shards"):
        write_shards(tmp_path, [[4]], n_vocab=100, tokenizer_sha256=TOKENIZER)
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


@pytest.mark.parametrize("n_more", [600, 60_000], ids=["when the buffer is flushed", "when ids are written"])
def test_a_writer_leaves_nothing_on_a_disk_that_is_full(tmp_path, n_more):
    writer = ShardWriter(tmp_path, n_vocab=100, tokenizer_sha256=TOKENIZER, shard_tokens=100_000)

    writer.write([1] * 100_001)  # a finished shard, and the beginning of the next
    assert len(writer.paths) == 1

    with pytest.raises(OSError, match="too large"), no_file_longer_than(1000), writer:
        writer.write([2] * n_more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings_",
    [{"n_vocab": 0}, {"n_vocab": 2**32 + 1}, {"shard_tokens": 0}, {"tokenizer_sha256": "xyz"}],
)
def test_a_writer_refuses_settings_that_break_their_rule(tmp_path, settings_):
    with pytest.raises(ValueError, match=next(iter(settings_))):
        ShardWriter(tmp_path, **({"n_vocab": 100, "tokenizer_sha256": TOKENIZER} | settings_))
