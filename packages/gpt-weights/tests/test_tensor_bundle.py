"""The index of a TensorFlow checkpoint: read as tensorflow wrote it, refused if anything in it is not as it must be."""

import base64
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_weights.errors import WeightsError
from gpt_weights.tensor_bundle import masked_crc32c, read_bundle

# tensorflow 2.21 wrote it (SaveV2): a GPT-2 of one block, 4 wide, 5 tokens, context 3.
INDEX = zlib.decompress(
    base64.b85decode(
        "c-muNVB=tvV&Y(A5EIJHPf5+u&oIzWEGfy;PmTvuNgRwqEJ92iJPHe#H4IEYSbr54Wt1)lit+$O8G#rg`+!m70HdkX<;Rl**n|p-^0VMNSrjI"
        ")Xb70@%n!dI$|!}dlSSbIvxb9d=BI#4PBx*Oym&(-jT;!D8u=K7(&3^DV4^(CLPkicFJM)D04B=GC6t>}0Q6T{GF+2@!U8s^?LwHo0?M*zG%%U"
        "&jb6gakKwBa98iNrP<0AGWZ7Uk*}&dPLk<s^lem!`+5i(}V-_thNCk>>0L7WXaskkwXW$fu#8P<)OaUuMfkuF-v-a*Z1|V3^$iTn^V%U64@&VC|"
        "AmYHMg&P<cne!NKF~h~87k_$wpPAzgGd}}C5dOQNTcy<fHUPd7Z8r"
    )
)
SIZE = 1136  # of the data file: 284 parameters of four bytes
SHAPES = {
    "model/h0/attn/c_attn/b": (12,), "model/h0/attn/c_attn/w": (1, 4, 12), "model/h0/attn/c_proj/b": (4,),
    "model/h0/attn/c_proj/w": (1, 4, 4), "model/h0/ln_1/b": (4,), "model/h0/ln_1/g": (4,), "model/h0/ln_2/b": (4,),
    "model/h0/ln_2/g": (4,), "model/h0/mlp/c_fc/b": (16,), "model/h0/mlp/c_fc/w": (1, 4, 16),
    "model/h0/mlp/c_proj/b": (4,), "model/h0/mlp/c_proj/w": (1, 16, 4), "model/ln_f/b": (4,), "model/ln_f/g": (4,),
    "model/wpe": (3, 4), "model/wte": (5, 4),
}


def write(folder: Path, index: bytes = INDEX, data: bytes | None = b"\0" * SIZE) -> Path:
    prefix = folder / "model.ckpt"
    (folder / "model.ckpt.index").write_bytes(index)
    if data is not None:
        (folder / "model.ckpt.data-00000-of-00001").write_bytes(data)
    return prefix


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def block(pairs: Sequence[tuple[bytes, bytes]], restarts: Sequence[int] | None = None) -> bytes:
    content, starts = b"", []
    for key, value in pairs:
        starts.append(len(content))
        content += varint(0) + varint(len(key)) + varint(len(value)) + key + value
    starts = list(restarts if restarts is not None else starts or [0])
    return content + struct.pack(f"<{len(starts) + 1}I", *starts, len(starts))


def table(blocks: Sequence[bytes], kind: bytes = b"\0", places: Sequence[tuple[int, int]] | None = None) -> bytes:
    """Return an index with these blocks, whose checksums are right; ``places`` replaces where they are said to lie."""
    file, real = b"", []
    for content in blocks:
        real.append((len(file), len(content)))
        file += content + kind + struct.pack("<I", masked_crc32c(content + kind))
    listed = block([(b"\xff%d" % n, varint(at) + varint(size)) for n, (at, size) in enumerate(places or real)])
    footer = varint(0) + varint(8) + varint(len(file)) + varint(len(listed))
    file += listed + b"\0" + struct.pack("<I", masked_crc32c(listed + b"\0"))
    return file + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


HEADER = (b"", b"\x08\x01\x1a\x02\x08\x01")


def entry(shape: Sequence[int] = (2,), *, dtype: int = 1, shard: int = 0, offset: int = 0, size: int = 8) -> bytes:
    dims = b"".join(b"\x12" + varint(1 + len(varint(n))) + b"\x08" + varint(n) for n in shape)
    numbers = b"\x18" + varint(shard) + b"\x20" + varint(offset) + b"\x28" + varint(size)
    return b"\x08" + varint(dtype) + b"\x12" + varint(len(dims)) + dims + numbers + b"\x35\x00\x00\x00\x00"


def one(value: bytes) -> bytes:
    return table([block([HEADER, (b"model/wte", value)])])


def test_an_index_by_tensorflow_is_read_with_names_shapes_types_and_places(tmp_path: Path) -> None:
    tensors = read_bundle(write(tmp_path))
    assert {name: tensor.info.shape for name, tensor in tensors.items()} == SHAPES
    assert {tensor.info.dtype for tensor in tensors.values()} == {torch.float32}
    assert {tensor.file for tensor in tensors.values()} == {tmp_path / "model.ckpt.data-00000-of-00001"}
    assert sum(tensor.size for tensor in tensors.values()) == SIZE


def test_a_crafted_index_of_two_blocks_is_read(tmp_path: Path) -> None:
    pairs = [(b"a", entry()), (b"b", entry((), offset=8, size=4))]
    tensors = read_bundle(write(tmp_path, table([block([HEADER, pairs[0]]), block([pairs[1]])]), b"\0" * 12))
    assert {name: tensor.info.shape for name, tensor in tensors.items()} == {"a": (2,), "b": ()}


def test_a_flipped_bit_of_an_index_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    expected = read_bundle(write(tmp_path))
    undetected = set()
    for bit in range(0, 8 * len(INDEX), 3):
        data = bytearray(INDEX)
        data[bit // 8] ^= 1 << bit % 8
        try:
            assert read_bundle(write(tmp_path, bytes(data), None)) == expected
            undetected.add(bit // 8)
        except WeightsError as error:
            assert "model.ckpt" in str(error)  # noqa: PT017
    # The block of filters, which nobody reads, its place, and zeros between the places and the magic number.
    unused = set(range(len(INDEX) - 48 - 46, len(INDEX) - 8))
    assert undetected <= unused


def test_each_shorter_index_is_refused(tmp_path: Path) -> None:
    for size in range(len(INDEX)):
        with pytest.raises(WeightsError, match=r"model\.ckpt\.index"):
            read_bundle(write(tmp_path, INDEX[:size]))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (entry((-4,)), "no tensor has the shape"),
        (entry((2**62, 2**62)), "no tensor has the shape"),
        (entry((0, 2**62, 2**62), size=0), "no tensor has the shape"),
        (entry((1,) * 300), "no tensor has the shape"),
        (entry((2**40,)), "cannot have 8 bytes"),
        (entry((2**40,), size=2**42), "lists tensors of 4,398,046,511,104"),
        (entry(size=-1), "cannot have"),
        (entry(shard=1), "in data file 1 of 1"),
        (entry(shard=-1), "in data file"),
        (entry(offset=-1), "overlap"),
        (entry(offset=4), "leave gaps"),
        (entry(dtype=9, size=2**63), "cannot have"),
        (b"\xff\xff\xff\xff\x01", "breaks off"),
        (b"\xff" * 20, "more than ten bytes"),
        (entry() + b"\x3a\x04\x0a\x02\x08\x02", "in slices"),
        (entry() + b"\x12\x00", "there twice"),
        (entry() + b"\x12\x7f", "breaks off"),
        (entry()[:-1], "breaks off"),
        (entry() + b"\x40\x01", "unknown"),
        (b"\x08\x01\x12\x02\x18\x01\x28\x04", "no tensor has the shape"),  # of unknown rank
        (b"\x08\x01\x12\x04\x12\x02\x08", "breaks off"),
    ],
)
def test_an_entry_that_no_checkpoint_has_is_refused_though_its_checksum_is_right(
    tmp_path: Path, value: bytes, said: str
) -> None:
    with pytest.raises(WeightsError, match=said):
        read_bundle(write(tmp_path, one(value), b"\0" * 8))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (table([block([(b"model/wte", entry())])]), "does not begin with the number of data files"),
        (table([block([(b"", b"\x08\x00"), (b"a", entry())])]), "does not begin with the number of data files"),
        (table([block([(b"", b"\x08" + varint(-1)), (b"a", entry())])]), "is missing"),
        (table([block([(b"", b"\x08\x02"), (b"a", entry())])]), "00000-of-00002 is missing"),
        (table([block([(b"", b"\x08\x01\x10\x01"), (b"a", entry())])]), "big-endian"),
        (table([block([])]), "does not begin"),
        (table([block([HEADER, (b"a", entry())])], b"\1"), "compressed"),
        (table([block([HEADER, (b"a", entry())], [])]), "places to begin"),
        (table([block([HEADER, (b"a", entry())], [2**31])]), "places to begin"),
        (table([block([HEADER, (b"a", entry())], [1])]), "places to begin"),
        (table([block([HEADER, (b"b", entry()), (b"a", entry(offset=8))])]), "not in order"),
        (table([block([HEADER, (b"a", entry()), (b"a", entry(offset=8))])]), "not in order"),
        (table([block([HEADER, (b"a", entry()), (b"b", entry())])]), "overlap"),
        (table([block([HEADER, (b"a" * 300, entry())])]), "too long a name"),
        (table([block([HEADER, (b"\xff", entry())])]), "no text"),
        (table([block([HEADER, (b"a", entry())])], places=[(0, 2**62)]), "overlap"),
        (table([block([HEADER, (b"a", entry())])], places=[(0, 4)]), "lies outside"),
        (table([block([HEADER])] * 2, places=[(0, 20), (0, 20)]), "overlap|checksum"),
        (INDEX[:-46] + varint(0) + varint(2**62) + bytes(28) + INDEX[-8:], "outside"),
        (INDEX[:-46] + varint(0) + varint(2**64 - 6) + bytes(27) + INDEX[-8:], "outside"),
        (bytes(2**19), "more than 262,144 bytes"),
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>Log in</title>", "is an HTML page"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "compressed by gzip"),
        (bytes(SIZE), "not that of an index"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, index: bytes, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        read_bundle(write(tmp_path, index, b"\0" * 8))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, r"data-00000-of-00001 is missing"),
        (b"", "is empty"),
        (bytes(SIZE - 1), r"has 1,135 bytes, but model\.ckpt\.index lists tensors of 1,136"),
        (bytes(SIZE + 1), r"has 1,137 bytes, but model\.ckpt\.index lists tensors of 1,136"),
        (b"<html>" + bytes(400), "is an HTML page"),
        (b"\x1f\x8b" + bytes(400), "compressed by gzip"),
    ],
)
def test_a_data_file_that_is_not_as_the_index_says_is_refused_by_name(
    tmp_path: Path, data: bytes | None, said: str
) -> None:
    with pytest.raises(WeightsError, match=said):
        read_bundle(write(tmp_path, data=data))


@given(st.lists(st.tuples(st.integers(0, len(INDEX) - 1), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4))
def test_bytes_overwritten_under_right_checksums_end_in_an_answer_or_a_weights_error(
    tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, bytes]]
) -> None:
    size = INDEX.index(b"\0\0\0\0\1\0\0\0") + 8  # of the only block, to the end of its one restart
    content = bytearray(INDEX[:size])
    for at, new in spans:
        content[at % size : at % size + len(new)] = new
    folder = tmp_path_factory.getbasetemp() / "overwritten"
    folder.mkdir(exist_ok=True)
    try:
        tensors = read_bundle(write(folder, table([bytes(content)])))
    except WeightsError:
        return
    assert sum(tensor.size for tensor in tensors.values()) == SIZE


def test_crc32c_of_nine_digits_is_castagnolis_check_value() -> None:
    masked = (masked_crc32c(b"123456789") - 0xA282EAD8) & 0xFFFFFFFF
    assert (masked >> 17 | masked << 15) & 0xFFFFFFFF == 0xE3069283
