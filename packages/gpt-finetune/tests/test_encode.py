import os

import pytest
import tiktoken

from gpt_finetune.encode import encode_text, fold

ATTACK = "win <|endoftext|> now"


class Letters:
    """A tokenizer with ``encode`` only; it returns a tuple, as nothing forbids."""

    def encode(self, text, *, allowed_special=()):
        assert not allowed_special
        return tuple(map(ord, text))


class OnlyOrdinary(Letters):
    def encode(self, text, *, allowed_special=()):
        raise ValueError("disallowed special token")

    def encode_ordinary(self, text):
        return [len(text)]


def test_a_tokenizer_with_encode_only_is_enough():
    assert encode_text(Letters(), "ab") == [97, 98]


def test_encode_ordinary_goes_before_encode():
    assert encode_text(OnlyOrdinary(), ATTACK) == [len(ATTACK)]


def test_tiktoken_encodes_the_name_of_a_special_token_as_text():
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("TIKTOKEN_CACHE_DIR is not set, and tests do not use the network")
    gpt2 = tiktoken.get_encoding("gpt2")
    ids = encode_text(gpt2, ATTACK)

    assert gpt2.eot_token not in ids
    assert gpt2.decode(ids) == ATTACK
    with pytest.raises(ValueError, match="endoftext"):
        gpt2.encode(ATTACK)


def test_this_projects_tokenizer_gives_tiktokens_ids():
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("TIKTOKEN_CACHE_DIR is not set, and tests do not use the network")
    gpt_tokenizer = pytest.importorskip("gpt_tokenizer")

    assert encode_text(gpt_tokenizer.GPT2Tokenizer(), ATTACK) == tiktoken.get_encoding("gpt2").encode_ordinary(ATTACK)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("WIN 250 now", "win 000 now"), ("Stra\u00dfe", "strasse"), ("\u0663 \u00b2", "0 \u00b2"), ("", "")],
)
def test_fold_takes_case_and_digits_off(text, expected):
    assert fold(text) == expected
    assert fold(expected) == expected
