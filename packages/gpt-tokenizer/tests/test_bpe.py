import codecs
import pickle
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer

from gpt_tokenizer import BPETokenizer, Tokenizer

CHARACTERS = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


@given(text=CHARACTERS)
def test_any_text_comes_back(tokenizer: BPETokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


def test_each_of_unicodes_characters_comes_back(tokenizer: BPETokenizer) -> None:
    every = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    assert tokenizer.decode(tokenizer.encode(every)) == every


@given(pieces=st.lists(st.one_of(CHARACTERS, st.sampled_from(["<|endoftext|>", "<|", "|>", "endoftext"]))))
def test_text_alone_never_becomes_a_special_token(tokenizer: BPETokenizer, pieces: list[str]) -> None:
    ids = tokenizer.encode("".join(pieces))
    assert tokenizer.eot_token not in ids
    assert tokenizer.decode(ids) == "".join(pieces)


@pytest.fixture
def with_three() -> BPETokenizer:
    return BPETokenizer.train(
        ["some words to learn"], vocab_size=262, special_tokens=("<|a|>", "<|a|><|b|>", "<|endoftext|>"))


@pytest.mark.parametrize(("allowed", "special_ids"), [
    ((), []),
    ({"<|a|>"}, [259, 259]),
    ({"<|endoftext|>"}, [261]),
    (["<|a|>", "<|a|><|b|>"], [260, 259]),       # the longest name wins
    ("all", [260, 261, 259]),
])
def test_only_named_special_tokens_are_found(
        with_three: BPETokenizer, allowed: str | set[str], special_ids: list[int]) -> None:
    text = "x<|a|><|b|> y<|endoftext|><|a|>z"
    ids = with_three.encode(text, allowed_special=allowed)
    assert [i for i in ids if i >= 259] == special_ids
    assert with_three.decode(ids) == text


@pytest.mark.parametrize(("allowed", "message"), [
    ("<|endoftext|>", "must be a set of names or 'all'"),
    ({"<|pad|>"}, r"'<\|pad\|>' is not a special token of this tokenizer; it has"),
])
def test_unknown_special_tokens_are_refused(tokenizer: BPETokenizer, allowed: set[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer.encode("x", allowed_special=allowed)


def test_lone_surrogates_are_refused_with_their_place(tokenizer: BPETokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate U\+D83D at position 3") as caught:
        tokenizer.encode("é. \ud83d\ude00")
    assert "'surrogatepass'" in str(caught.value)
    repaired = "é. \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(tokenizer.encode(repaired)) == "é. \U0001f600"


def test_invalid_utf8_is_replaced_in_text_and_whole_in_bytes(tokenizer: BPETokenizer) -> None:
    euro = tokenizer.encode("\u20ac")
    assert len(euro) == 3
    assert tokenizer.decode(euro[:2]) == "\ufffd"
    assert tokenizer.decode_bytes(euro[:2]) == "\u20ac".encode()[:2]
    assert tokenizer.decode([*euro[:2], *tokenizer.encode("x")]) == "\ufffdx"


def test_decode_bytes_serves_incremental_decoding(tokenizer: BPETokenizer) -> None:
    text = "a\u20ac\U0001f600 z"
    decoder = codecs.getincrementaldecoder("utf-8")()
    steps = [decoder.decode(tokenizer.decode_bytes([i])) for i in tokenizer.encode(text)]
    assert "".join(steps) == text
    assert "\ufffd" not in "".join(steps)


@pytest.mark.parametrize("unknown", [300, 10**9, 2**40, -1])
def test_unknown_ids_are_named_together_with_n_vocab(tokenizer: BPETokenizer, unknown: int) -> None:
    with pytest.raises(ValueError, match=f"id {unknown} is unknown: this tokenizer has n_vocab 300"):
        tokenizer.decode([0, 1, unknown])


def test_ids_must_be_integers(tokenizer: BPETokenizer) -> None:
    with pytest.raises(TypeError, match="float"):
        tokenizer.decode([1.0])  # type: ignore[list-item]


@pytest.mark.parametrize("text", ["", "\x00", "\ufeffabc", "\r\n\r\n", "<|endoftext|>"])
def test_empty_and_odd_texts_come_back(tokenizer: BPETokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.encode(text) == []) is (text == "")


def test_a_batch_equals_its_texts_one_by_one(tokenizer: BPETokenizer, english: list[str]) -> None:
    texts = [*english, "", "<|endoftext|>", "x" * 200_000] * 3
    expected = [tokenizer.encode(text, allowed_special="all") for text in texts]
    assert tokenizer.encode_batch(iter(texts), allowed_special="all", n_threads=3) == expected
    assert tokenizer.encode_batch([]) == []


def test_a_batch_is_not_one_string(tokenizer: BPETokenizer) -> None:
    with pytest.raises(TypeError, match=r"not one string; pass \[text\]"):
        tokenizer.encode_batch("abc")


@pytest.mark.parametrize("run", [" ", "\n", "\u3000", " \n"])
@pytest.mark.parametrize("after", ["", "x", "\x1c", "'s"])
def test_runs_of_whitespace_that_overflow_tiktokens_stack_are_encoded(
        tokenizer: BPETokenizer, run: str, after: str) -> None:
    long, short = run * 1_100_000, run * 1_000
    ids = tokenizer.encode("a" + long + after)
    assert tokenizer.decode(ids) == "a" + long + after
    tail = tokenizer.encode("a" + short + after)[-8:]
    assert ids[-8:] == tail


def test_a_word_of_a_million_letters_is_encoded(tokenizer: BPETokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a" * 1_000_000)) == "a" * 1_000_000


def test_a_text_encoded_in_parts_keeps_every_byte(tokenizer: BPETokenizer) -> None:
    draw = random.Random(0)
    text = "".join(draw.choices("it was the  worst\n.é\u20ac", k=2000))
    cuts = [0, *sorted(draw.sample(range(1, 2000), 50)), 2000]
    parts = [tokenizer.encode(text[a:b]) for a, b in pairwise(cuts)]
    assert tokenizer.decode([i for part in parts for i in part]) == text


def test_digest_is_that_of_the_ids(english: list[str]) -> None:
    base = BPETokenizer.train(english, vocab_size=300)
    assert base.sha256 == BPETokenizer.train(english, vocab_size=300).sha256
    others = [
        BPETokenizer.train(english, vocab_size=299),
        BPETokenizer.train(english, vocab_size=300, special_tokens=("<|eot|>",)),
        BPETokenizer.train(english[:1], vocab_size=300),
    ]
    assert len({base.sha256, *(t.sha256 for t in others)}) == 4
    assert len(base.sha256) == 64


def test_pickle_keeps_the_tokenizer(tokenizer: BPETokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.sha256 == tokenizer.sha256
    assert again.encode("It was the best") == tokenizer.encode("It was the best")


def test_it_is_a_tokenizer_as_the_protocol_says(tokenizer: BPETokenizer) -> None:
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.eot_token == tokenizer.n_vocab - 1


def test_tokenizer_without_end_of_text_says_what_it_has(english: list[str]) -> None:
    tokenizer = BPETokenizer.train(english, vocab_size=300, special_tokens=("<|stop|>",))
    with pytest.raises(ValueError, match=r"has no <\|endoftext\|>, its special tokens are \['<\|stop\|>'\]"):
        _ = tokenizer.eot_token


@given(text=st.one_of(CHARACTERS, st.text(alphabet="it was\n  aeé'\u2019")))
def test_ids_equal_hugging_faces(
        tokenizer: BPETokenizer, hugging_face: HuggingFaceTokenizer, text: str) -> None:
    assert tokenizer.encode(text) == hugging_face.encode(text).ids


@pytest.fixture(scope="module")
def hugging_face(tokenizer: BPETokenizer, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    path: Path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    tokenizer.save(path)
    opened = HuggingFaceTokenizer.from_file(str(path))
    opened.encode_special_tokens = True     # names of special tokens in text are text, as ours are by default
    return opened


def test_further_special_tokens_get_the_next_ids_and_change_no_other():
    tokenizer = BPETokenizer.train(["the cat sat on the mat"], vocab_size=260)
    wider = tokenizer.with_special_tokens(["<|im_start|>", "<|endoftext|>", "<|im_end|>"])

    assert wider.special_tokens == {
        "<|endoftext|>": tokenizer.eot_token, "<|im_start|>": tokenizer.n_vocab, "<|im_end|>": tokenizer.n_vocab + 1}
    assert wider.encode("the cat <|im_end|>") == tokenizer.encode("the cat <|im_end|>")
    assert wider.encode("<|im_end|>", allowed_special={"<|im_end|>"}) == [wider.n_vocab - 1]
    assert wider.sha256 != tokenizer.sha256
    assert tokenizer.with_special_tokens(["<|endoftext|>"]) is tokenizer


@pytest.mark.parametrize("names", ["<|x|>", {"<|x|>"}, [""], ["the"], [1]])
def test_bad_names_of_special_tokens_are_refused(names):
    tokenizer = BPETokenizer.train(["the the the the"], vocab_size=259)
    with pytest.raises(ValueError, match=r"names must be a list|is empty|ordinary token"):
        tokenizer.with_special_tokens(names)
