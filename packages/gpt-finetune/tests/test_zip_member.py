"""Zip files as an attacker, a broken download or an old tool makes them: read whole, or refused with the reason."""

import io
import struct
import tracemalloc
import warnings
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune.zip_member import read_zip_member
from gpt_train import DataError

NAME, TEXT = "SMSSpamCollection", b"ham\thello\nspam\tbuy\n" * 50


def make(*members, method=zipfile.ZIP_DEFLATED):
    """Return a zip file with (name or ZipInfo, content) each."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name twice
        for info, data in members:
            archive.writestr(info, data)
    return file.getvalue()


def info(name=NAME, *, mode=0, method=zipfile.ZIP_DEFLATED):
    made = zipfile.ZipInfo(name)
    made.external_attr, made.compress_type, made.create_system = mode << 16, method, 3
    return made


def with_name(data, old, new):
    """Return the archive with a member's name replaced, where Python's writer would not write it."""
    assert len(old) == len(new)
    assert data.count(old) == 2
    return data.replace(old, new)


def with_field(data, signature, offset, form, value):
    """Return the archive with a field of its last header of that kind replaced."""
    at = data.rindex(signature) + offset
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def central(data, offset, form, value):
    return with_field(data, b"PK\1\2", offset, form, value)


def local(data, offset, form, value):
    return with_field(data, b"PK\3\4", offset, form, value)


def both(data, change):
    """Set the same field in the local and in the central header."""
    where = {"flags": (6, 8), "method": (8, 10), "crc": (14, 16), "size": (22, 24)}
    for key, value in change.items():
        form = "<H" if key in ("flags", "method") else "<I"
        data = central(local(data, where[key][0], form, value), where[key][1], form, value)
    return data


GOOD = make((NAME, TEXT), ("readme", b"read me"))
ONE = make((NAME, TEXT))
BOMB = make((NAME, bytes(3 * 2**20)))

HOSTILE = {
    "absolute": make((NAME, TEXT), ("/etc/passwd", b"x")),
    "parent": make((NAME, TEXT), ("../evil", b"x")),
    "parent within": make((NAME, TEXT), ("a/../../evil", b"x")),
    "dot": make((NAME, TEXT), ("./evil", b"x")),
    "empty part": make((NAME, TEXT), ("a//b", b"x")),
    "network share": make((NAME, TEXT), ("//server/share/x", b"x")),
    "backslash": with_name(make((NAME, TEXT), ("..?evil", b"x")), b"..?evil", b"..\\evil"),
    "drive": make((NAME, TEXT), ("C:evil", b"x")),
    "stream of NTFS": make((NAME, TEXT), ("evil:stream", b"x")),
    "NUL in another name": with_name(make((NAME, TEXT), ("evil?txt", b"x")), b"evil?txt", b"evil\0txt"),
    "NUL behind the name": with_name(make((NAME + "?exe", TEXT)), NAME.encode() + b"?exe", NAME.encode() + b"\0exe"),
    "the name is a path": make(("../" + NAME, TEXT)),
}
REFUSED = {
    "no member": (make(), "0 members called 'SMSSpamCollection', not one (it has none)"),
    "another name": (make(("smsspamcollection", TEXT)), "(it has 'smsspamcollection')"),
    "in a folder": (make(("folder/" + NAME, TEXT)), "0 members called"),
    "the name twice": (make((NAME, TEXT), (NAME, b"other")), "2 members called"),
    "a folder": (make((info(mode=0o040755), b"")), "link or a folder"),
    "a link": (make((info(mode=0o120777), b"/etc/passwd")), "link or a folder"),
    "a device": (make((info(mode=0o020666), b"")), "link or a folder"),
    "encrypted": (both(ONE, {"flags": 1}), "is encrypted"),
    "encrypted by AES": (both(ONE, {"flags": 1, "method": 99}), "is encrypted"),
    "bzip2": (make((NAME, TEXT), method=zipfile.ZIP_BZIP2), "compressed by method 12"),
    "lzma": (make((NAME, TEXT), method=zipfile.ZIP_LZMA), "compressed by method 14"),
    "an unknown method": (both(ONE, {"method": 98}), "compressed by method 98"),
    "a bomb": (BOMB, "as a bomb"),
    "a bomb that lies about its compressed size": (central(BOMB, 20, "<I", 3 * 2**20), "as a bomb"),
    "larger than allowed": (make((NAME, bytes(range(256)) * 40_000)), "10,240,000 bytes, more than 8,388,608"),
    "4 GB declared": (both(ONE, {"size": 2**32 - 2}), "4,294,967,294 bytes, more than 8,388,608"),
    "less declared than there is": (both(ONE, {"size": 100}), "damaged or cut zip file (Bad CRC-32"),
    "more declared than there is": (both(ONE, {"size": 2000}), "is damaged"),
    "less declared, with the checksum of that": (
        both(make((NAME, TEXT), method=zipfile.ZIP_STORED), {"size": 2000, "crc": zlib.crc32(TEXT)}), "is damaged"),
    "a wrong checksum": (both(ONE, {"crc": 1}), "damaged or cut zip file (Bad CRC-32"),
    "another name in the local header": (ONE.replace(NAME.encode(), b"X" * len(NAME), 1), "damaged or cut"),
    "the local header beyond the end": (central(ONE, 42, "<I", 2**31), "damaged or cut"),
    "cut in the data": (GOOD[:60], "damaged or cut zip file"),
    "cut in the list": (GOOD[:-30], "damaged or cut zip file"),
    "the list before the beginning": (with_field(ONE, b"PK\5\6", 12, "<I", 2**31), "damaged or cut"),
    "empty": (b"", "no zip file"),
    "text": (TEXT, "no zip file"),
    "a gzip file": (b"\x1f\x8b\x08\0" + bytes(50), "no zip file"),
    "an HTML page": (b"\n<!DOCTYPE html><html><body>Log in to the network</body></html>", "an HTML page; get it anew"),
    "far too many members": (make((NAME, TEXT), *((f"f{i}" * 30, b"") for i in range(40_000))), "that are read"),
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "file.zip"


def read(path, data, name=NAME, most_bytes=8 * 2**20):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    try:
        return read_zip_member(path, name, most_bytes=most_bytes)
    finally:
        assert list(path.parent.parent.rglob("*")) == [path.parent, path], "something was extracted"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_is_read_by_its_name(path, method):
    data = make(("readme", b"read me"), (NAME, TEXT), ("folder/", b""), ("folder/x", b""), method=method)
    assert read(path, data) == TEXT
    assert read(path, data, "folder/x") == b""


@pytest.mark.parametrize("made", [info(), info(mode=0o100644), info(mode=0o644)])
def test_a_member_from_any_system_is_a_file(path, made):
    assert read(path, make((made, TEXT))) == TEXT


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_an_archive_with_a_name_that_points_out_of_the_folder_is_refused(path, kind):
    with pytest.raises(DataError, match=r"file\.zip is refused: .* is no name of a file inside a folder"):
        read(path, HOSTILE[kind])


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_hostile_or_damaged_archive_is_refused_with_the_reason(path, kind):
    data, words = REFUSED[kind]
    with pytest.raises(DataError) as caught:
        read(path, data)
    assert caught.value.args[0].startswith(f"{path} ")
    assert words in caught.value.args[0]


def test_a_bomb_takes_no_memory(path):
    """50 MB of zeros in 50 KB, which claim to be 100 bytes."""
    data = both(make((NAME, bytes(50 * 2**20))), {"size": 100})
    tracemalloc.start()
    with pytest.raises(DataError):
        read(path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_small_file_may_be_as_regular_as_it_likes(path):
    assert read(path, make((NAME, bytes(2**20)))) == bytes(2**20)


@given(st.data())
def test_a_damaged_archive_gives_the_member_or_a_data_error(tmp_path_factory, data):
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("zip") / "file.zip"
    path.write_bytes(damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))])
    try:
        found = read_zip_member(path, NAME, most_bytes=2**20)
    except DataError:
        return
    assert found == TEXT


def test_every_cut_of_an_archive_is_refused(path):
    for length in range(len(GOOD)):
        with pytest.raises(DataError):
            read(path, GOOD[:length])


def test_a_file_that_is_not_there_is_the_systems_error(path):
    with pytest.raises(FileNotFoundError):
        read_zip_member(path, NAME, most_bytes=1)
