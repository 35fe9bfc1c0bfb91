"""BPE-dropout: the same text in other tokens."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_tokenizer import BPETokenizer

TEXTS = ["the cat sat on the mat", "the hat that the cat ate", "attention, attention!"]
TOKENIZER = BPETokenizer.train(TEXTS, vocab_size=280)


@given(st.text(), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_it_is_the_same_text(text: str, rate: float) -> None:
    ids = TOKENIZER.encode_with_dropout(text, rate=rate, draw=random.Random(1))
    assert TOKENIZER.decode(ids) == text


@given(st.text(alphabet="aehnot cs,!é"))
def test_nothing_left_out_is_the_ordinary_encoding(text: str) -> None:
    assert TOKENIZER.encode_with_dropout(text, rate=0, draw=random.Random(1)) == TOKENIZER.encode(text)


def test_everything_left_out_is_a_token_for_each_byte() -> None:
    ids = TOKENIZER.encode_with_dropout("the café", rate=1, draw=random.Random(1))
    assert TOKENIZER.decode_bytes(ids[:1]) == b"t"
    assert len(ids) == len("the café".encode())


def test_a_merge_is_left_out_as_often_as_the_rate_says() -> None:
    """One word with one merge: taken with probability 1 - rate, and then nothing is left to draw for."""
    tokenizer = BPETokenizer.train(["ab ab ab"], vocab_size=258)
    draw = random.Random(7)
    lengths = Counter(len(tokenizer.encode_with_dropout("ab", rate=0.3, draw=draw)) for _ in range(20_000))
    assert lengths[2] / 20_000 == pytest.approx(0.3, abs=0.015)


def test_the_same_draws_give_the_same_tokens_and_others_give_others() -> None:
    text = " ".join(TEXTS)
    one, again, other = (
        TOKENIZER.encode_with_dropout(text, rate=0.3, draw=random.Random(seed)) for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_special_tokens_name_is_ordinary_text() -> None:
    ids = TOKENIZER.encode_with_dropout("<|endoftext|>", rate=0.2, draw=random.Random(1))
    assert TOKENIZER.eot_token not in ids


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), True, "0.1"])
def test_a_rate_that_is_no_probability_is_refused(rate: object) -> None:
    with pytest.raises(ValueError, match="rate must lie between 0 and 1"):
        TOKENIZER.encode_with_dropout("a", rate=rate, draw=random.Random(1))
