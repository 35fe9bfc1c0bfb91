"""tokenizer.json is compared with what Hugging Face's tokenizers writes and reads."""

import copy
import json
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gpt_tokenizer import BPETokenizer
from gpt_tokenizer.files import Vocabulary, token_name
from gpt_tokenizer.train import BYTE_ORDER

TEXT = "It was  the worst\n of times — \U0001f600 don't <|endoftext|>x<|endoftext|>"


@pytest.fixture(scope="module")
def document(tokenizer: BPETokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    tokenizer.save(path)
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def load(document: object, folder: Path) -> BPETokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return BPETokenizer.load(path)


def test_hugging_face_opens_our_file_with_the_same_ids(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.get_vocab_size() == tokenizer.n_vocab
    assert theirs.encode(TEXT).ids == tokenizer.encode(TEXT, allowed_special="all")
    assert theirs.decode(theirs.encode(TEXT).ids, skip_special_tokens=False) == TEXT
    theirs.encode_special_tokens = True
    assert theirs.encode(TEXT).ids == tokenizer.encode(TEXT)


def test_hugging_face_opens_gpt2_as_we_save_it(data: Path, tmp_path: Path) -> None:
    ours = BPETokenizer.from_openai(data / "gpt2-bpe" / "encoder.json", data / "gpt2-bpe" / "vocab.bpe")
    ours.save(tmp_path)
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = (data / "the-verdict.txt").read_text(encoding="utf-8") + TEXT
    assert theirs.encode(text).ids == ours.encode(text, allowed_special="all")
    assert BPETokenizer.load(tmp_path).sha256 == ours.sha256


@pytest.mark.parametrize("first", [True, False], ids=["special tokens first", "special tokens last"])
def test_we_open_what_hugging_face_trained_with_its_ids(
        english: list[str], tmp_path: Path, first: bool) -> None:
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    theirs.post_processor = processors.ByteLevel(trim_offsets=False)
    theirs.train_from_iterator(english, trainers.BpeTrainer(
        vocab_size=320, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"] if first else []))
    if not first:
        theirs.add_special_tokens([AddedToken("<|endoftext|>")])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = BPETokenizer.load(tmp_path)
    assert ours.eot_token == (0 if first else 320)
    assert ours.encode(TEXT, allowed_special="all") == theirs.encode(TEXT).ids
    assert ours.n_vocab == theirs.get_vocab_size()


def test_save_and_load_are_each_others_inverse_to_the_byte(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a.json")
    again = BPETokenizer.load(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (again.sha256, again.merges, again.special_tokens) == (
        tokenizer.sha256, tokenizer.merges, tokenizer.special_tokens)


def test_both_spellings_of_merges_are_read(
        tokenizer: BPETokenizer, document: dict[str, Any], tmp_path: Path) -> None:
    pairs = copy.deepcopy(document)
    pairs["model"]["merges"] = [line.split(" ") for line in document["model"]["merges"]]
    assert load(pairs, tmp_path).sha256 == load(document, tmp_path).sha256 == tokenizer.sha256


def made_by_plain_merging(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, ...]:
    """The definition: join the neighbours that spell the smallest id below the token's own; again."""
    parts = [bytes([b]) for b in token]
    while True:
        found = [(ranks.get(parts[i] + parts[i + 1], ranks[token]), i) for i in range(len(parts) - 1)]
        rank, i = min(found)
        if rank == ranks[token]:
            return tuple(parts)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def hugging_faces(ranks: dict[bytes, int], merges: list[tuple[bytes, bytes]]) -> Tokenizer:
    theirs = Tokenizer(models.BPE(
        {token_name(t): i for t, i in ranks.items()}, [(token_name(a), token_name(b)) for a, b in merges]))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    return theirs


def with_merges(*pairs: str) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]]]:
    """Return ids, the bytes first and each pair's token when it is first made, and the pairs."""
    ranks = {bytes([b]): i for i, b in enumerate(BYTE_ORDER)}
    merges = []
    for left, right in (pair.encode().split() for pair in pairs):
        ranks.setdefault(left + right, len(ranks))
        merges.append((left, right))
    return ranks, merges


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12))
def test_a_vocabulary_is_taken_if_plain_merging_ends_in_its_merges_and_then_ids_are_hugging_faces(
        draws: list[tuple[int, int]]) -> None:
    tokens, pairs = [b"a", b"b"], []
    for i, j in draws:
        left, right = tokens[i % len(tokens)], tokens[j % len(tokens)]
        if len(left + right) < 10:
            pairs.append((left, right))
            tokens += [left + right] if left + right not in tokens else []
    pairs.sort(key=lambda pair: tokens.index(b"".join(pair)))
    ranks = {bytes([b]): i for i, b in enumerate(BYTE_ORDER)}
    ranks |= {token: 256 + i for i, token in enumerate(tokens[2:])}
    if all(made_by_plain_merging(token, ranks) in pairs for token in tokens[2:]):
        text = " ".join("".join(word) for n in range(1, 10) for word in product("ab", repeat=n))
        ours = BPETokenizer(Vocabulary(ranks, pairs, {}))
        assert ours.encode(text) == hugging_faces(ranks, pairs).encode(text).ids
    else:
        with pytest.raises(ValueError, match="is reached where any neighbours"):
            Vocabulary(ranks, pairs, {})


@pytest.mark.parametrize(("pairs", "text", "their_parts", "message"), [
    (("a b", "b c", "a bc"), "xabc", ["x", "ab", "c"], r"no merge listed for token 'abc' \(such as 'a bc'\)"),
    (("a b", "b c", "a bc", "c d", "ab c"), "abcd", ["ab", "cd"], r"merge 5 \(ab c\) makes id 258 after id 259"),
    (("a b", "c d", "a b"), "acdab", ["a", "cd", "ab"], r"\(a b\) makes id 256 after id 257"),
])
def test_merges_that_tiktoken_would_not_follow_are_refused(
        tmp_path: Path, pairs: tuple[str, ...], text: str, their_parts: list[str], message: str) -> None:
    theirs = hugging_faces(*with_merges(*pairs))
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(text).tokens == their_parts
    with pytest.raises(ValueError, match=message):
        BPETokenizer.load(tmp_path)


def test_a_token_with_every_split_listed_is_read_with_hugging_faces_ids(tmp_path: Path) -> None:
    # So transformers converts tiktoken's files.
    theirs = hugging_faces(*with_merges("a b", "b c", "a bc", "ab c"))
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert BPETokenizer.load(tmp_path).encode("xabc bcabc") == theirs.encode("xabc bcabc").ids


@pytest.mark.parametrize("folder", ["absent", "absent/deeper"])
def test_saving_into_a_missing_folder_says_to_make_it(
        tokenizer: BPETokenizer, tmp_path: Path, folder: str) -> None:
    with pytest.raises(FileNotFoundError, match="make the folder first") as caught:
        tokenizer.save(tmp_path / folder / "tokenizer.json")
    assert str(tmp_path / folder) in str(caught.value)
    assert ".tmp" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002])
def test_a_saved_file_has_the_permissions_that_the_umask_leaves(
        tokenizer: BPETokenizer, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        tokenizer.save(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "tokenizer.json").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
        tokenizer: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("old", encoding="utf-8")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save(path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def add(document: dict[str, Any], **changes: object) -> None:
    document["added_tokens"].append(document["added_tokens"][0] | changes)


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.pop("model"), "has no 'model' of type dict"),
    (lambda d: d["model"].pop("vocab"), "has no 'vocab' of type dict"),
    (lambda d: d["model"].pop("merges"), "has no 'merges' of type list"),
    (lambda d: d.pop("added_tokens"), "has no 'added_tokens' of type list"),
    (lambda d: d["model"].update(vocab=[["a", 0]]), "has no 'vocab' of type dict"),
    (lambda d: d["model"].update(type="Unigram"), "type is 'Unigram'; only byte-level BPE"),
    (lambda d: d["model"].update(type="WordPiece"), "type is 'WordPiece'"),
    (lambda d: d["model"].update(dropout=0.1), "dropout is 0.1"),
    (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix is '</w>'"),
    (lambda d: d.update(normalizer={"type": "NFC"}), "normalizer is {'type': 'NFC'}"),
    (lambda d: d.update(truncation={"max_length": 8}), "truncation is {'max_length': 8}"),
    (lambda d: d.update(padding={"pad_id": 0}), "padding is {'pad_id': 0}"),
    (lambda d: d.update(pre_tokenizer=None), "pre_tokenizer is None; only byte-level BPE"),
    (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer is 'Whitespace'"),
    (lambda d: d.update(decoder={"type": "BPEDecoder"}), "decoder is 'BPEDecoder'"),
    (lambda d: d.update(post_processor={"type": "Template"}), "post_processor is 'Template'"),
    (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space must be false"),
    (lambda d: d["pre_tokenizer"].pop("add_prefix_space"), "add_prefix_space must be false"),
    (lambda d: d["pre_tokenizer"].update(use_regex=False), "use_regex must be true"),
    (lambda d: d["model"]["merges"].insert(0, "a"), "merge 1 is 'a', not two tokens"),
    (lambda d: d["model"]["merges"].insert(0, "a b c"), "merge 1 is 'a b c', not two tokens"),
    (lambda d: d["model"]["merges"].insert(0, ["a", 1]), r"merge 1 is \['a', 1\], not two tokens"),
    (lambda d: d["model"]["merges"].insert(0, None), "merge 1 is None, not two tokens"),
    (lambda d: d["model"]["merges"].insert(0, "a q"), r"merge 1 \(a q\) needs 'aq', which has no id"),
    (lambda d: d["model"]["merges"].reverse(), "ids must grow in the order of the merges"),
    (lambda d: d["model"]["merges"].pop(), "no merge makes token"),
    (lambda d: d["model"]["vocab"].pop("q"), r"lacks 1 of the 256 bytes \(first: 0x71\)"),
    (lambda d: d["model"]["vocab"].update(a=-1), "'a' has the id -1"),
    (lambda d: d["model"]["vocab"].update(a="7"), "'a' has the id '7'"),
    (lambda d: d["model"]["vocab"].update(a=True), "'a' has the id True"),
    (lambda d: d["model"]["vocab"].update(b=d["model"]["vocab"]["a"]), "belongs to '.' and to '.'; each"),
    (lambda d: d["model"]["vocab"].update({"日": 999}), r"'日' \(id 999\) is not written in the byte"),
    (lambda d: d["model"]["vocab"].update({"": 999}), r"'' \(id 999\) is not written"),
    (lambda d: d["added_tokens"][0].update(id=5), r"'<\|endoftext\|>' has two ids, 5 and another"),
    (lambda d: add(d, content="<x>"), r"id 299 belongs to '<\|endoftext\|>' and to '<x>'"),
    (lambda d: add(d, id=400), "has two ids, 400 and another"),
    (lambda d: add(d, id=400, content=""), "a special token is empty"),
    (lambda d: add(d, id=400, content="a"), "added token 'a' has two ids"),
    (lambda d: add(d, id=400, content="x\ud800"), "holds a lone surrogate"),
    (lambda d: d["added_tokens"].append({"content": "x"}), "an added token has no 'id' of type int"),
    (lambda d: d["added_tokens"].append(3), "an added token has no 'content' of type str"),
    (lambda d: d["added_tokens"][0].update(special=False), "must be special, without lstrip"),
    (lambda d: d["added_tokens"][0].update(lstrip=True), "must be special, without lstrip"),
])
def test_what_would_not_give_hugging_faces_ids_is_refused(
        document: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], object],
        message: str) -> None:
    damaged = copy.deepcopy(document)
    change(damaged)
    with pytest.raises(ValueError, match=message) as caught:
        load(damaged, tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(("content", "message"), [
    (b"", "not JSON, or cut off: .*line 1 column 1"),
    (b"[1, 2]", "has no 'model' of type dict"),
    (b"<html>sign in</html>", "not JSON"),
    (b'{"model": "\xff"}', "not UTF-8: byte 0xFF at position 11"),
    ("{}".encode("utf-16"), "not UTF-8"),
    (b"[" * 100_000, "nested too deeply"),
    (b"\xef\xbb\xbf{}", "has no 'model' of type dict"),
])
def test_files_that_are_no_tokenizer_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        BPETokenizer.load(path)


def test_a_file_cut_off_anywhere_is_refused(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"not JSON, or cut off|not UTF-8"):
            BPETokenizer.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        BPETokenizer.load(tmp_path / "absent.json")


@pytest.fixture
def openai_files(tokenizer: BPETokenizer, document: dict[str, Any], tmp_path: Path) -> tuple[Path, Path]:
    vocab, merges = tmp_path / "encoder.json", tmp_path / "vocab.bpe"
    vocab.write_text(json.dumps(document["model"]["vocab"]), encoding="utf-8")
    merges.write_text("#version: 0.2\n" + "\n".join(document["model"]["merges"]) + "\n", encoding="utf-8")
    return vocab, merges


def test_openais_two_files_give_the_same_tokenizer(
        tokenizer: BPETokenizer, openai_files: tuple[Path, Path]) -> None:
    assert BPETokenizer.from_openai(*openai_files).sha256 == tokenizer.sha256


def test_openais_files_with_windows_line_ends_are_read(
        tokenizer: BPETokenizer, openai_files: tuple[Path, Path]) -> None:
    vocab, merges = openai_files
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert BPETokenizer.from_openai(vocab, merges).sha256 == tokenizer.sha256


@pytest.mark.parametrize(("vocab", "merges", "message"), [
    ("[]", None, "must hold an object of tokens and ids, not list"),
    ('{"a": 0', None, "not JSON, or cut off"),
    ('{"a": 0}', None, "lacks 255 of the 256 bytes"),
    (None, "#version: 0.2\na b c\n", "merge 1 is 'a b c'"),
    (None, "", "no merge makes token"),
])
def test_openais_files_that_do_not_fit_are_refused_by_name(
        openai_files: tuple[Path, Path], vocab: str | None, merges: str | None, message: str) -> None:
    for path, content in zip(openai_files, (vocab, merges), strict=True):
        if content is not None:
            path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        BPETokenizer.from_openai(*openai_files)
    assert "encoder.json" in str(caught.value)
