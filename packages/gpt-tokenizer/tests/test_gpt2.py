"""GPT-2's ids are compared with tiktoken's "gpt2" on real text and on strings made to be hard."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_tokenizer import BPETokenizer, GPT2Tokenizer, get_tokenizer, gpt2

PLANES = st.one_of(*(
    st.characters(min_codepoint=plane << 16, max_codepoint=(plane << 16) + 0xFFFF, exclude_categories=["Cs"])
    for plane in range(17)))
HARD = st.lists(st.one_of(
    st.text(alphabet=PLANES, max_size=8),
    st.text(alphabet=[chr(c) for c in [*range(32), *range(0x7F, 0xA0), 0x200B, 0x200D, 0xFEFF]], max_size=8),
    st.text(alphabet=" \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000", max_size=12),
    st.text(alphabet="aábcdeilmnorstv' 01²Ⅷ.-_", max_size=20),
    st.sampled_from(
        ["<|endoftext|>", "'ll", "'S", "\u2019s", "e\u0301", "\u2764\ufe0f\u200d\U0001f525", "שלום", "   x"]),
)).map("".join)


@pytest.fixture
def ours(tiktoken_cache: None) -> GPT2Tokenizer:
    return GPT2Tokenizer()


@pytest.fixture
def reference(tiktoken_cache: None) -> tiktoken.Encoding:
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def openai(data: Path) -> BPETokenizer:
    return BPETokenizer.from_openai(data / "gpt2-bpe" / "encoder.json", data / "gpt2-bpe" / "vocab.bpe")


def lines_of(folder: Path) -> Iterator[str]:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open(encoding="utf-8", newline="") as lines:
            yield from lines


def test_ids_of_every_line_of_the_real_data_are_tiktokens(
        data: Path, ours: GPT2Tokenizer, openai: BPETokenizer, reference: tiktoken.Encoding) -> None:
    lines = list(dict.fromkeys(lines_of(data)))
    assert len(lines) > 70_000
    expected = [reference.encode_ordinary(line) for line in lines]
    assert ours.encode_batch(lines) == expected
    assert openai.encode_batch(lines) == expected


@settings(
    max_examples=max(1_000, settings.default.max_examples),  # 10 strings each
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(texts=st.lists(HARD, min_size=10, max_size=10))
def test_ids_of_hard_strings_are_tiktokens(
        ours: GPT2Tokenizer, reference: tiktoken.Encoding, texts: list[str]) -> None:
    for text in texts:
        expected = reference.encode_ordinary(text)
        assert ours.encode(text) == expected
        assert ours.encode(text, allowed_special="all") == reference.encode(text, allowed_special="all")
        assert ours.decode(expected) == text


def test_each_character_of_unicode_has_tiktokens_ids(
        ours: GPT2Tokenizer, reference: tiktoken.Encoding) -> None:
    every = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    assert ours.encode(every) == reference.encode_ordinary(every)


def test_every_id_decodes_to_tiktokens_bytes(ours: GPT2Tokenizer, reference: tiktoken.Encoding) -> None:
    assert all(ours.decode_bytes([i]) == reference.decode_single_token_bytes(i) for i in range(50_257))


def test_both_sources_are_one_tokenizer_with_gpt2s_sizes(ours: GPT2Tokenizer, openai: BPETokenizer) -> None:
    assert ours.sha256 == openai.sha256
    assert (ours.n_vocab, ours.eot_token, len(ours.merges)) == (50_257, 50_256, 50_000)


def test_the_book_s_call_gives_the_book_s_ids(ours: GPT2Tokenizer) -> None:
    text = "Hello, do you like tea? <|endoftext|> In the sunlit terracesof someunknownPlace."
    # Printed in chapter 2, section 2.5.
    assert ours.encode(text, allowed_special={"<|endoftext|>"}) == [
        15496, 11, 466, 345, 588, 8887, 30, 220, 50256, 554, 262, 4252, 18250, 8812, 2114, 1659, 617, 34680,
        27271, 13]


def test_training_and_loading_from_the_subclass_give_a_plain_tokenizer(tmp_path: Path) -> None:
    trained = GPT2Tokenizer.train(["some text"], vocab_size=258)
    trained.save(tmp_path)
    assert (type(trained), trained.n_vocab) == (BPETokenizer, 258)
    assert type(GPT2Tokenizer.load(tmp_path)) is BPETokenizer


def test_pickle_of_gpt2_is_small_and_keeps_it(ours: GPT2Tokenizer) -> None:
    data = pickle.dumps(ours)
    assert len(data) < 200
    assert pickle.loads(data).encode("Every effort moves you") == [6109, 3626, 6100, 345]


def test_get_tokenizer_takes_the_name_a_file_and_a_folder(
        ours: GPT2Tokenizer, tokenizer: BPETokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert isinstance(get_tokenizer("gpt2"), GPT2Tokenizer)
    assert get_tokenizer(tmp_path).sha256 == tokenizer.sha256
    assert get_tokenizer(str(tmp_path / "tokenizer.json")).sha256 == tokenizer.sha256


@pytest.mark.parametrize(("name", "message"), [
    ("gtp2", r"'gtp2': did you mean 'gpt2'\? accepted are 'gpt2', a tokenizer.json file, or a folder"),
    ("cl100k_base", "no tokenizer is called 'cl100k_base': accepted are"),
    ("", r"folder '\.' holds no tokenizer\.json"),
])
def test_get_tokenizer_refuses_other_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_tokenizer(name)


def test_get_tokenizer_refuses_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json; accepted are"):
        get_tokenizer(tmp_path)


@pytest.mark.parametrize("cache", ["", "folder"])
def test_a_download_that_is_not_gpt2s_is_refused_with_and_without_cache(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", cache and str(tmp_path / cache))
    monkeypatch.setattr("tiktoken.load.read_file", lambda address: b"<html>sign in</html>")
    gpt2._gpt2_vocabulary.cache_clear()
    with pytest.raises(ConnectionError, match=r"encoder\.json has another sha256 .*from_openai\("):
        GPT2Tokenizer()


def test_without_network_and_cache_the_error_names_the_way_out(tmp_path: Path) -> None:
    environment = os.environ | {"TIKTOKEN_CACHE_DIR": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}
    run = subprocess.run(
        [sys.executable, "-c", "import gpt_tokenizer; gpt_tokenizer.GPT2Tokenizer()"],
        env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1
    assert last.startswith("ConnectionError: GPT-2's vocabulary is not in tiktoken's cache")
    assert "TIKTOKEN_CACHE_DIR" in last
    assert "BPETokenizer.from_openai(" in last
