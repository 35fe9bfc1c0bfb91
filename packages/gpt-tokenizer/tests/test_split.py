"""Words are compared with Hugging Face's ByteLevel pre-tokenizer, which holds GPT-2's own pattern."""

import unicodedata
from collections import Counter

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from gpt_tokenizer import split

BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
# Texts of the characters that decide where GPT-2 splits, and of any others.
TEXTS = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    st.text(alphabet=" \n\t\r\x0b\x1c\x85\xa0\u2028\u3000aZé日09٣'\u2019.!sdmtrevl\u0301\U0001f600"),
)


def matched_by_tiktoken(pattern: str, text: str) -> str:
    """tiktoken gives no ids for what its pattern leaves out; with bytes for ids the rest comes back whole."""
    engine = tiktoken.Encoding(
        "matched", pat_str=pattern, special_tokens={}, mergeable_ranks={bytes([b]): b for b in range(256)})
    return bytes(engine.encode_ordinary(text)).decode()


def words_of(text: str) -> list[str]:
    return [text[a:b] for _, (a, b) in BYTE_LEVEL.pre_tokenize_str(text)]


@given(TEXTS)
def test_counted_words_are_those_of_gpt2s_splitting(text: str) -> None:
    assert split.count_words([text]) == Counter(words_of(text))


@pytest.mark.parametrize(
    ("neighbour", "kind"), [("a", r"\p{L}+"), ("1", r"\p{N}+"), ("!", r"[^\s\p{L}\p{N}]+")])
def test_each_character_of_unicode_joins_the_kind_that_tiktoken_sees(neighbour: str, kind: str) -> None:
    every = [chr(c) for c in range(0x40000) if not 0xD800 <= c < 0xE000]
    words = set(split.unicode_word_pattern().findall("".join(f" {neighbour}{c}" for c in every)))
    of_this_kind = "".join(c for c in every if f" {neighbour}{c}" in words)
    assert of_this_kind == matched_by_tiktoken(kind, "".join(every))


def test_planes_4_to_16_hold_marks_alone() -> None:
    rest = "".join(map(chr, range(0x40000, 0x110000)))
    assert split.count_words([rest]) == {rest: 1}
    assert matched_by_tiktoken(r"[^\s\p{L}\p{N}]+", rest) == rest


def test_a_long_text_is_counted_as_a_short_one() -> None:
    text = "It's 12  o'clock\n\n" * 120_000        # longer than two slices, with a border in any phase
    one = Counter(words_of("It's 12  o'clock\n\n" * 10))
    assert split.count_words([text])["'s"] == 120_000
    assert split.count_words([text]).keys() == one.keys()


def test_a_long_text_without_a_border_is_one_word() -> None:
    assert split.count_words(["a" * 1_500_000]) == {"a" * 1_500_000: 1}


@pytest.mark.parametrize("text", ["".join(f" {i},x" for i in range(1000)), "a-b.c," * 1000])
def test_chunks_are_broken_into_words_when_they_hold_much(
        monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    texts = [text[i:i + 100] for i in range(0, len(text), 100)]
    monkeypatch.setattr(split, "_MAX_CHARACTERS", 250)
    assert split.count_words(texts) == Counter(w for text in texts for w in words_of(text))


def test_special_tokens_part_a_text_and_the_longest_wins() -> None:
    words = split.count_words(["one<|a|><|ab|>two <|a|>b"], special_tokens=["<|a|>", "<|a|>b"])
    assert words == Counter(["one", "<|", "ab", "|>", "two", " "])


def test_bytes_and_lone_surrogates_are_refused() -> None:
    with pytest.raises(TypeError, match="got bytes; decode"):
        split.count_words([b"abc"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"lone surrogate U\+DC80 at position 2"):
        split.count_words(["ab\udc80"])


@given(st.lists(st.sampled_from([" " * 11, "\n" * 9, "\u3000" * 20, "ab", " ", "x.", "  "]), max_size=12))
def test_pieces_of_a_text_with_long_runs_give_its_words(parts: list[str]) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "_LONG_RUN", 8)
        pieces = split.split_long_runs(text)
    assert "".join(pieces) == text
    assert [w for piece in pieces for w in words_of(piece)] == words_of(text)
    assert all(len(w) <= 8 or not w.isspace() or p.endswith(w) for p in pieces for w in words_of(p))


def test_pattern_gives_gpt2s_words_in_tiktokens_engine() -> None:
    every = "".join(chr(c) + unicodedata.normalize("NFD", chr(c)) for c in range(0x250))
    text = every + "  I'll  'S 3x\n \n"
    words = words_of(text)
    ranks = {bytes([b]): b for b in range(256)}
    # With a token for each word tiktoken gives one id a word, whatever its bytes.
    ranks |= {w.encode(): 256 + i for i, w in enumerate(sorted({w for w in words if len(w.encode()) > 1}))}
    engine = tiktoken.Encoding("words", pat_str=split.PATTERN, special_tokens={}, mergeable_ranks=ranks)
    assert [engine.decode_single_token_bytes(i).decode() for i in engine.encode_ordinary(text)] == words
