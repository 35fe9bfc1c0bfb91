"""gpt-eval's reading of a checkpoint's tokenizer.json gives gpt-tokenizer's ids, and never a control token."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from gpt_eval.tokenizer_file import TokenizerFile
from gpt_tokenizer import BPETokenizer

SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>")
OURS = BPETokenizer.train(
    ["the cat sat on the mat, and the dog sat on the log; then they all sat still.\n" * 20],
    vocab_size=280, special_tokens=SPECIAL,
)  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFile:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    OURS.save(path)
    return TokenizerFile(path)


PIECES = [*SPECIAL, " the cat", "  ", "\r\n", "\u00e9", "\U0001f642"]


@given(parts=st.lists(st.one_of(st.sampled_from(PIECES), st.text())))
def test_any_text_gets_the_ids_of_our_tokenizer_and_comes_back(parts: list[str], theirs: TokenizerFile) -> None:
    text = "".join(parts).encode("utf-8", errors="ignore").decode("utf-8")
    ids = theirs.encode(text)
    assert ids == OURS.encode(text)
    assert not set(ids) & set(OURS.special_tokens.values())
    assert theirs.decode(ids) == text


@given(ids=st.lists(st.integers(0, OURS.n_vocab - 1), max_size=20))
def test_any_ids_have_the_bytes_of_our_tokenizer(ids: list[int], theirs: TokenizerFile) -> None:
    assert theirs.decode_bytes(ids) == OURS.decode_bytes(ids)
    assert theirs.decode(ids) == OURS.decode(ids)


def test_the_end_of_the_text_and_the_size_are_those_of_our_tokenizer(theirs: TokenizerFile, tmp_path: Path) -> None:
    assert (theirs.eot_token, theirs.n_vocab) == (OURS.eot_token, OURS.n_vocab)
    assert theirs.special_tokens == dict(OURS.special_tokens)
    BPETokenizer.train(["abab" * 9], vocab_size=257, special_tokens=()).save(tmp_path / "t.json")
    assert TokenizerFile(tmp_path / "t.json").eot_token is None


def test_an_added_token_that_the_file_does_not_call_special_is_no_text_either(tmp_path: Path) -> None:
    OURS.save(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        token["special"] = False
    (tmp_path / "t.json").write_text(json.dumps(content), encoding="utf-8")
    assert TokenizerFile(tmp_path / "t.json").encode("a<|user|>b") == OURS.encode("a<|user|>b")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"added_tokens": []}', '{"added_tokens": 3}'])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer in Hugging Face's schema"):
        TokenizerFile(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"missing\.json cannot be read"):
        TokenizerFile(tmp_path / "missing.json")


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    words = tokenizers.models.WordLevel({"\u2581the": 0, "?": 1}, unk_token="?")
    tokenizers.Tokenizer(words).save(str(tmp_path / "t.json"))
    with pytest.raises(ValueError, match="no byte-level tokenizer: its token '\u2581the' spells no bytes"):
        TokenizerFile(tmp_path / "t.json")


def test_an_id_that_it_does_not_have_is_named(theirs: TokenizerFile) -> None:
    for bad in (-1, OURS.n_vocab):
        with pytest.raises(ValueError, match=f"no token {bad}, its ids are 0\\.\\."):
            theirs.decode([bad])
