"""Merges are compared with a plain recount of everything and with Hugging Face's trainer."""

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from gpt_tokenizer import BPETokenizer, split
from gpt_tokenizer.files import token_name
from gpt_tokenizer.train import BYTE_ORDER, learn_merges


def merges_by_recounting(words: dict[str, int], *, n: int) -> list[tuple[bytes, bytes]]:
    """The definition: count all pairs, merge the most frequent, the smallest ids among equals; again."""
    order = {bytes([b]): i for i, b in enumerate(BYTE_ORDER)}
    corpus = [([bytes([b]) for b in word.encode()], count) for word, count in words.items()]
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(n):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for tokens, count in corpus:
            for pair in pairwise(tokens):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], order[pair[0]], order[pair[1]]))
        merges.append(best)
        order[b"".join(best)] = len(order)
        for tokens, _count in corpus:
            i = 0
            while i < len(tokens) - 1:
                if (tokens[i], tokens[i + 1]) == best:
                    tokens[i:i + 2] = [b"".join(best)]
                i += 1
    return merges


def merges_of_hugging_face(texts: Iterable[str], *, vocab_size: int) -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def names(tokenizer: BPETokenizer) -> list[tuple[str, str]]:
    return [(token_name(left), token_name(right)) for left, right in tokenizer.merges]


@given(st.dictionaries(st.text(alphabet="abcé", min_size=1, max_size=12), st.integers(1, 4), max_size=8))
def test_merges_equal_those_of_recounting_everything(words: dict[str, int]) -> None:
    assert learn_merges(words, n_tokens=286) == merges_by_recounting(words, n=30)


@pytest.mark.parametrize("seed", range(8))
def test_merges_with_many_ties_equal_hugging_faces(seed: int) -> None:
    draw = random.Random(seed)
    text = " ".join("".join(draw.choices("abA1!", k=draw.randint(1, 30))) for _ in range(60))
    ours = BPETokenizer.train([text], vocab_size=330, special_tokens=())
    assert names(ours) == merges_of_hugging_face([text], vocab_size=330)


@pytest.mark.parametrize("as_lines", [False, True])
def test_merges_on_tinyshakespeare_equal_hugging_faces(data: Path, as_lines: bool) -> None:
    text = (data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    texts = text.splitlines(keepends=True) if as_lines else [text]
    ours = BPETokenizer.train(texts, vocab_size=4096, special_tokens=())
    assert names(ours) == merges_of_hugging_face(texts, vocab_size=4096)


def test_lines_of_an_open_file_are_texts(data: Path) -> None:
    path = data / "the-verdict.txt"
    with path.open(encoding="utf-8") as lines:
        ours = BPETokenizer.train(lines, vocab_size=600, special_tokens=())
    assert names(ours) == merges_of_hugging_face(
        path.read_text(encoding="utf-8").splitlines(keepends=True), vocab_size=600)


def test_order_of_texts_does_not_matter(english: list[str]) -> None:
    a = BPETokenizer.train(english, vocab_size=320)
    b = BPETokenizer.train(english[::-1], vocab_size=320)
    assert (a.sha256, a.merges) == (b.sha256, b.merges)


def test_layout_is_gpt2s_bytes_then_merges_then_special_tokens(english: list[str]) -> None:
    tokenizer = BPETokenizer.train(english, vocab_size=300, special_tokens=("<|user|>", "<|endoftext|>"))
    assert tokenizer.n_vocab == 300
    assert tokenizer.special_tokens == {"<|user|>": 298, "<|endoftext|>": 299}
    assert len(tokenizer.merges) == 300 - 256 - 2
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())      # its places are Hugging Face's ids
    assert [token_name(tokenizer.decode_bytes([i])) for i in range(256)] == alphabet


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_of_special_tokens_is_taken_in_sorted_order(english: list[str], kind: type) -> None:
    names = [f"<|{c}|>" for c in "abcdefgh"]    # one order of 40,320: a set's own depends on PYTHONHASHSEED
    tokenizer = BPETokenizer.train(english, vocab_size=300, special_tokens=kind(names))
    assert tokenizer.special_tokens == {name: 292 + i for i, name in enumerate(names)}


def test_special_tokens_of_a_dict_keep_their_order(english: list[str]) -> None:
    first = BPETokenizer.train(english, vocab_size=300, special_tokens=["<|b|>", "<|a|>"])
    again = BPETokenizer.train(english, vocab_size=300, special_tokens=first.special_tokens.keys())
    assert again.sha256 == first.sha256


def test_special_tokens_in_the_text_are_not_learned() -> None:
    plain = BPETokenizer.train(["ab ab", "cd"], vocab_size=260)
    parted = BPETokenizer.train(["ab ab<|endoftext|>cd" + "<|endoftext|>" * 50], vocab_size=260)
    assert parted.sha256 == plain.sha256


def test_a_word_of_many_thousand_letters_is_learned_and_checked_in_no_time() -> None:
    with pytest.warns(UserWarning, match="pairs for"):      # minutes, where each occurrence costs a pass
        tokenizer = BPETokenizer.train(["a" * 300_000], vocab_size=300)
    assert max(len(left + right) for left, right in tokenizer.merges) > 100_000


def test_too_small_text_warns_and_gives_a_smaller_tokenizer() -> None:
    with pytest.warns(UserWarning, match="pairs for 259 tokens only, vocab_size asked for 1000"):
        tokenizer = BPETokenizer.train(["abc"], vocab_size=1000)
    assert tokenizer.n_vocab == 259
    assert tokenizer.decode(tokenizer.encode("any text")) == "any text"


@pytest.mark.parametrize(("texts", "options", "error", "message"), [
    ("abc", {"vocab_size": 300}, TypeError, r"not one string; pass \[text\]"),
    ([b"abc"], {"vocab_size": 300}, TypeError, "got bytes"),
    ([], {"vocab_size": 300}, ValueError, "no text to learn from"),
    (["", ""], {"vocab_size": 300}, ValueError, "no text to learn from"),
    (["abc"], {"vocab_size": 256}, ValueError, "is 256, but 256 bytes and 1 special tokens need 257"),
    (["abc"], {"vocab_size": -1}, ValueError, "vocab_size is -1"),
    (["abc"], {"vocab_size": 300.5}, TypeError, "float"),
    (["a\ud800"], {"vocab_size": 300}, ValueError, r"lone surrogate U\+D800 at position 1"),
    (["abc"], {"vocab_size": 300, "special_tokens": ("x",)}, ValueError, "'x' is an ordinary token too"),
    (["abc"], {"vocab_size": 300, "special_tokens": ("",)}, ValueError, "special token is empty"),
    (["abc"], {"vocab_size": 300, "special_tokens": ("<|a|>", "<|a|>")}, ValueError, "different names"),
    (["abc"], {"vocab_size": 300, "special_tokens": "<|a|>"}, ValueError, "different names"),
])
def test_bad_input_is_refused_with_its_reason(
        texts: list[str], options: dict[str, int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BPETokenizer.train(texts, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("separator", [" ", ","], ids=["spaces", "no spaces"])
def test_memory_grows_with_distinct_words_not_with_text(
        monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    monkeypatch.setattr(split, "_MAX_CHARACTERS", 100_000)

    def peak(n_texts: int) -> int:
        draw = random.Random(0)
        words = ["".join(draw.choices("abcdefgh", k=6)) for _ in range(2_000)]
        texts: Iterator[str] = (separator.join(draw.choices(words, k=1_000)) for _ in range(n_texts))
        tracemalloc.start()
        BPETokenizer.train(texts, vocab_size=270)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)     # what is cached for the process is not counted
    assert peak(200) < 1.2 * peak(20)
