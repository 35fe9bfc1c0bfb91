"""The faults of a folder of shards: each is refused when it is opened, or by ``verify``."""

import struct
import zlib

import pytest

from gpt_train import DataError, ShardDataset, ShardWriter, write_shards
from gpt_train.shard_files import HEADER_BYTES, ShardHeader

TOKENIZER = "ab" * 32


def write(folder, *, shard_tokens=2**26):
    """Thirty ids of a vocabulary of a hundred."""
    return write_shards(
        folder, [range(30)], n_vocab=100, tokenizer_sha256=TOKENIZER, shard_tokens=shard_tokens
    )


def rewrite_header(path, **changes):
    """Replace fields of a header, checksum included, as a program with a fault would write it."""
    header, payload = ShardHeader.read(path), path.read_bytes()[HEADER_BYTES:]
    fields = {name: getattr(header, name) for name in header.__dataclass_fields__}
    path.write_bytes(ShardHeader(**(fields | changes)).pack() + payload)


def rewrite_width(path, width):
    """Let a header say another number of bytes an id than its vocabulary takes, under a checksum that fits."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 12, width)
    struct.pack_into("<I", data, 104, zlib.crc32(data[:104]))
    path.write_bytes(data)


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
        (lambda p: rewrite_width(p, 4), "stores 4 bytes an id, but a vocabulary of 100 is stored in 2"),
    ],
)
def test_a_folder_with_a_fault_is_refused_when_it_is_opened(tmp_path, fault, message):
    paths = write(tmp_path, shard_tokens=10)
    fault(paths[1])

    with pytest.raises(DataError, match=message) as caught:
        ShardDataset(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_every_flipped_bit_of_a_header_is_noticed_when_it_is_opened(tmp_path):
    [path] = write(tmp_path)
    good = path.read_bytes()

    for bit in range(8 * 108):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(DataError):
            ShardDataset(tmp_path)


def test_every_flipped_bit_of_the_ids_is_noticed_by_verify(tmp_path):
    [path] = write(tmp_path)
    good = path.read_bytes()

    for bit in range(8 * HEADER_BYTES, 8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(DataError, match=path.name):
            ShardDataset(tmp_path).verify()


def test_an_id_outside_the_vocabulary_never_reaches_the_model(tmp_path):
    [path] = write(tmp_path)
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 20 : HEADER_BYTES + 22] = (100).to_bytes(2, "little")
    path.write_bytes(data)

    with pytest.raises(DataError, match="holds id 100"):
        ShardDataset(tmp_path).verify()
    with pytest.raises(DataError, match="holds id 100"):
        list(ShardDataset(tmp_path).windows(batch_size=1, context_length=8))


def test_shards_of_another_tokenizer_or_vocabulary_are_refused(tmp_path):
    write(tmp_path)

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
