"""A tokenizer's files become one tokenizer.json, and are refused by name where they are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_weights import WeightsError
from gpt_weights.tokenizer import find_tokenizer

VOCABULARY = {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4, "<|endoftext|>": 5}
MERGES = "#version: 0.2\na b\nĠ ab\n"


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
    document = '{"model": {"type": "BPE", "vocab": {"x": 0}, "merges": [["x", "x"]]}, "added_tokens": []}'
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
        ({"model": {"vocab": {"a": 0}, "merges": ["a a", "a"]}}, "merge 2 is 'a', not two tokens"),
        ({"model": {"vocab": {"a": 0}, "merges": None}}, "merge 1 is None"),
        ({"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [{"content": "x"}]}, "a content and an id"),
    ],
)
def test_what_is_no_tokenizer_is_refused_by_name(document: Any, named: str, tmp_path: Path) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=named) as caught:
        find_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
