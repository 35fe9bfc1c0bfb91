import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pretrain import reading
from gpt_pretrain.errors import BAD_DATA, PretrainError
from gpt_pretrain.reading import json_texts, text_pieces


@given(text=st.text(), block=st.integers(1, 7))
@settings(max_examples=200)
def test_pieces_of_a_file_add_up_to_its_text(text, block, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", block)
        assert "".join(text_pieces(path)) == text.removeprefix("\ufeff")


@given(text=st.text(alphabet="ab'1 \n\t\r\x1c\u2028!é"), block=st.integers(1, 7))
@settings(max_examples=300)
def test_pieces_encoded_one_by_one_give_the_ids_of_the_whole_text(text, block, tmp_path_factory):
    import tiktoken

    encoding = tiktoken.Encoding(
        "bytes",
        pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        mergeable_ranks={bytes([i]): i for i in range(256)} | {b"ab": 256, b"\n\n": 257, b" a": 258, b"!\x1c": 259},
        special_tokens={},
    )
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", block)
        pieces = list(text_pieces(path))
    assert [i for piece in pieces for i in encoding.encode(piece)] == encoding.encode("".join(pieces))


def test_pieces_of_a_text_without_white_space_stay_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 10)
    monkeypatch.setattr(reading, "LONGEST_PIECE", 50)
    path = tmp_path / "a.txt"
    path.write_text("a" * 1000, encoding="utf-8")
    assert max(map(len, text_pieces(path))) <= 60


def test_byte_order_mark_is_dropped_and_line_ends_are_kept(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\xef\xbb\xbf")
    assert "".join(text_pieces(path)) == "one\r\ntwo\n\ufeff"


@pytest.mark.parametrize("at", [0, 5, 9, 10, 11, 25])
def test_invalid_utf8_is_named_by_file_and_byte(tmp_path, monkeypatch, at):
    monkeypatch.setattr(reading, "BLOCK", 10)
    path = tmp_path / "latin.txt"
    path.write_bytes(b"a" * at + b"\xe9" + b"b" * 20)
    with pytest.raises(PretrainError, match=rf"latin\.txt is not UTF-8: byte {at} \(0xe9\)") as caught:
        list(text_pieces(path))
    assert caught.value.exit_code == BAD_DATA


def test_utf8_cut_off_at_the_end_of_the_file_is_named_by_byte(tmp_path):
    path = tmp_path / "cut.txt"
    path.write_bytes("caf\u00e9".encode()[:-1])
    with pytest.raises(PretrainError, match="byte 3"):
        list(text_pieces(path))


@given(texts=st.lists(st.text()))
def test_json_lines_give_every_row_in_order(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    assert list(json_texts(path, field="text")) == texts


def test_json_lines_take_a_byte_order_mark_crlf_and_blank_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"body": "one"}\r\n\r\n{"body": "two"}')
    assert list(json_texts(path, field="body")) == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"', "not valid JSON at column 13"),
        (b'{"txt": "a"}', r"no field 'text' \(fields here: 'txt'\)"),
        (b'{"text": 3}', "must hold text, got int"),
        (b'["text"]', "must be an object"),
        (b'{"text": "\xe9"}', "byte 10 of the line is not UTF-8"),
        (b'{"text": "\\ud800"}', "half a surrogate pair at character 0"),
        (b'{"text": ' + b"[" * 100_000, "JSON that cannot be read"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "JSON that cannot be read"),
    ],
)
def test_bad_json_line_is_named_by_file_and_line(tmp_path, line, problem):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(PretrainError, match=r"a\.jsonl:2: .*" + problem) as caught:
        list(json_texts(path, field="text"))
    assert caught.value.exit_code == BAD_DATA
