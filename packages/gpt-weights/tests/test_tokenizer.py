"""A tokenizer's files become one tokenizer.json, and are refused by name where they are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_weights import WeightsError
from gpt_weights.tokenizer import find_tokenizer

VOCABULARY = {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4, "<|endoftext|>": 5}
MERGES = "#version: 0.2\na b\nĠ ab\n"

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def write_pair(folder: Path, vocabulary: str, merges: str) -> None:
    (folder / vocabulary).write_text(json.dumps(VOCABULARY), encoding="utf-8")
    (folder / merges).write_text(MERGES, encoding="utf-8")


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2s_pair_of_files_becomes_a_tokenizer_json(names: tuple[str, str], tmp_path: Path) -> None:
    write_pair(tmp_path, *names)
    found = find_tokenizer(tmp_path)
    assert found is not None
    assert found.vocabulary == VOCABULARY
    assert found.merges == ["a b", "Ġ ab"]
    assert found.special_tokens == {"<|endoftext|>": 5}
    assert found.end_of_text == ("<|endoftext|>", 5)
    found.save(tmp_path / "tokenizer.json")
    again = find_tokenizer(tmp_path / "tokenizer.json")
    assert again is not None
    assert (again.data, again.vocabulary, again.merges) == (found.data, found.vocabulary, found.merges)


def test_a_tokenizer_json_is_taken_as_it_is_before_the_pair(tmp_path: Path) -> None:
    write_pair(tmp_path, "vocab.json", "merges.txt")
    document = json.dumps({
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, BYTE_LEVEL]}, "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": {"x": 0, "xx": 1}, "merges": [["x", "x"]]}, "added_tokens": [],
    })
    (tmp_path / "tokenizer.json").write_text(document, encoding="utf-8")
    found = find_tokenizer(tmp_path)
    assert found is not None
    assert found.data.decode() == document
    assert (found.merges, found.end_of_text) == (["x x"], None)


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    assert find_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ("<!DOCTYPE html>", "is an HTML page"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "must hold a JSON object, found a list"),
        ({"model": {"type": "WordPiece"}}, "no byte-level BPE"),
        ({"model": {"vocab": {"a": -1}, "merges": []}}, "an id, a whole number"),
        ({"model": {"vocab": {"a": True}, "merges": []}}, "an id, a whole number"),
        ({"model": {"vocab": {"a": 0, "aa": 1}, "merges": [["a", "a"], "a"]}}, "merge 2 is 'a', not two tokens"),
        ({"model": {"vocab": {"a": 0}, "merges": None}}, "merge 1 is None"),
        ({"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [{"content": "x"}]}, "a content and an id"),
        ({"model": {"vocab": {"a\ud800": 0}, "merges": []}}, r"the token 'a\\ud800' holds half a surrogate"),
        ({"model": {"vocab": {"a": 0, "aa": 1}, "merges": ["a a", "a b"]}}, "merge 2 is 'a b', but 'b' is not in"),
        ({"model": {"vocab": {"a": 0}, "merges": ["a a"]}}, "merge 1 is 'a a', but 'aa' is not in the vocabulary"),
        ({"model": {"vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}}, "tokens are marked by '</w>'"),
        ({"model": {"vocab": {"a": 0}, "merges": []}}, "its pre_tokenizer must be ByteLevel, not none"),
        (
            {"model": {"vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "Metaspace"}, "decoder": BYTE_LEVEL},
            "its pre_tokenizer must be ByteLevel, not Metaspace",
        ),
        (
            {"model": {"vocab": {"a": 0}, "merges": []}, "pre_tokenizer": BYTE_LEVEL,
             "decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}]}},
            "its decoder must be ByteLevel, not Fuse",
        ),
    ],
)
def test_what_is_no_tokenizer_is_refused_by_name(document: Any, named: str, tmp_path: Path) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=named) as caught:
        find_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_another_encoding_than_utf8_is_refused(encoding: str, tmp_path: Path) -> None:
    write_pair(tmp_path, "vocab.json", "merges.txt")
    found = find_tokenizer(tmp_path)
    assert found is not None
    (tmp_path / "tokenizer.json").write_bytes(found.data.decode().encode(encoding))
    with pytest.raises(WeightsError, match=r"tokenizer.json is no UTF-8 without a byte order mark"):
        find_tokenizer(tmp_path)


def test_half_a_character_in_a_vocabulary_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "vocab.json", "merges.txt")
    (tmp_path / "vocab.json").write_text(json.dumps({**VOCABULARY, "\ud800": 6}), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"vocab.json: the token '\\ud800' holds half"):
        find_tokenizer(tmp_path)


def test_a_file_too_large_for_a_tokenizer_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(256 * 2**20 + 1)
    with pytest.raises(WeightsError, match=r"tokenizer\.json has more than 268,435,456 bytes"):
        find_tokenizer(tmp_path)


def test_added_tokens_beside_the_pair_are_merged_in(tmp_path: Path) -> None:
    write_pair(tmp_path, "vocab.json", "merges.txt")
    (tmp_path / "added_tokens.json").write_text('{"<user>": 6, "<pad>": 7, "<sep>": 8}', encoding="utf-8")
    named = {"pad_token": {"content": "<pad>", "lstrip": False}, "additional_special_tokens": ["<sep>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    found = find_tokenizer(tmp_path)
    assert found is not None
    assert found.vocabulary == {**VOCABULARY, "<user>": 6, "<pad>": 7, "<sep>": 8}
    assert found.added_tokens == {"<|endoftext|>": 5, "<user>": 6, "<pad>": 7, "<sep>": 8}
    assert found.special_tokens == {"<|endoftext|>": 5, "<pad>": 7, "<sep>": 8}


def test_an_added_token_with_two_ids_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "vocab.json", "merges.txt")
    (tmp_path / "added_tokens.json").write_text('{"ab": 6}', encoding="utf-8")
    with pytest.raises(WeightsError, match=r"'ab' has the id 3, in added_tokens\.json 6"):
        find_tokenizer(tmp_path)
