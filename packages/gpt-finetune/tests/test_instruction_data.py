"""The book's download of its instructions, from a server of our own."""

import json
import sys

import pytest
import requests

from gpt_finetune.instruction_data import download_and_load_file
from gpt_train import DataError

ENTRIES = [{"instruction": "Say caf\u00e9.", "input": "", "output": "caf\u00e9"}]


def test_the_file_is_fetched_once_and_whole(tmp_path, serve):
    body = json.dumps(ENTRIES, ensure_ascii=False).encode()
    site = serve({"/data.json": body})
    path = tmp_path / "new" / "data.json"
    for _ in range(2):
        assert download_and_load_file(str(path), site.url("/data.json")) == ENTRIES

    assert path.read_bytes() == body
    assert list(path.parent.iterdir()) == [path]
    assert site.asked == ["/data.json"]


def test_a_file_that_is_there_needs_no_requests(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "requests", None)  # as if it were not installed
    path = tmp_path / "data.json"
    with pytest.raises(ImportError, match=r"needs requests: install 'gpt-finetune\[data\]'"):
        download_and_load_file(path, "http://127.0.0.1/")
    path.write_text('{"any": [1.5, null]}', encoding="utf-8-sig")
    assert download_and_load_file(path, "http://127.0.0.1/") == {"any": [1.5, None]}


@pytest.mark.parametrize(("page", "error", "words"), [
    (404, requests.exceptions.HTTPError, "404"),
    (503, requests.exceptions.HTTPError, "503"),
    ((b'[{"a": 1}', 100), requests.exceptions.ChunkedEncodingError, "IncompleteRead"),
    (b"<html>log in</html>", DataError, ":1:1: it is no JSON: Expecting value; give the address of a JSON file"),
    (b"", DataError, ":1:1: it is no JSON"),
    (b"[" * 100_000, DataError, "nested too deeply"),
])  # fmt: skip
def test_an_address_that_does_not_deliver_leaves_no_file(tmp_path, serve, page, error, words):
    site = serve({"/a": page})
    with pytest.raises(error, match=words) as caught:
        download_and_load_file(tmp_path / "folder" / "data.json", site.url("/a"))
    if error is DataError:
        assert caught.value.args[0].startswith(site.url("/a"))
    assert list(tmp_path.iterdir()) == []


def test_a_download_without_end_is_cut_off(tmp_path, serve, monkeypatch):
    monkeypatch.setattr("gpt_finetune.instruction_data.MOST_BYTES", 2**20)
    with pytest.raises(DataError, match="sends more than 1,048,576 bytes"):
        download_and_load_file(tmp_path / "data.json", serve({"/a": bytes(2**22)}).url("/a"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("data", "words"), [
    (b'[{"a": 1},\n{"b"', r":2:5: it is no JSON"),
    (b"", r":1:1: it is no JSON"),
    (b"[1] [2]", r":1:5: it is no JSON: Extra data"),
    (b'["ab",\n"caf\xe9"]', r":2:5: byte 0xe9 is not UTF-8"),
    ("[]".encode("utf-16"), r" is UTF-16; convert it"),
    (b"[1e400]", r" is refused: the number 1e400 is too large"),
    (b'{"a": 1, "a": 2}', r" is refused: the name 'a' stands twice"),
])  # fmt: skip
def test_a_damaged_file_is_named_with_its_place_and_stays(tmp_path, data, words):
    path = tmp_path / "data.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"data\.json" + words) as caught:
        download_and_load_file(path, "http://127.0.0.1/")
    assert caught.value.args[0].endswith("mend the file, or remove it to have it fetched anew")
    assert path.read_bytes() == data
