from pathlib import Path

import pytest

from gpt_tokenizer import SimpleTokenizerV1, SimpleTokenizerV2, build_vocab

SPECIAL = ("<|endoftext|>", "<|unk|>")
LAST_WORDS = '"It\'s the last he painted, you know," Mrs. Gisburn said with pardonable pride.'


@pytest.fixture(scope="module")
def verdict(data: Path) -> str:
    return (data / "the-verdict.txt").read_text(encoding="utf-8")


def test_vocabulary_of_the_verdict_has_the_books_1130_items(verdict: str) -> None:
    vocab = build_vocab(verdict)
    assert len(vocab) == 1130
    assert list(vocab) == sorted(vocab)
    assert list(vocab.values()) == list(range(1130))
    assert len(SimpleTokenizerV1(vocab).encode(verdict)) == 4690


def test_special_tokens_follow_the_words_as_in_the_book(verdict: str) -> None:
    vocab = build_vocab(verdict, special_tokens=SPECIAL)
    assert (vocab["<|endoftext|>"], vocab["<|unk|>"], len(vocab)) == (1130, 1131, 1132)


def test_v1_gives_the_books_ids_for_the_books_sentence(verdict: str) -> None:
    ids = SimpleTokenizerV1(build_vocab(verdict)).encode(LAST_WORDS)
    # Printed in chapter 2, section 2.3.
    assert ids == [1, 56, 2, 850, 988, 602, 533, 746, 5, 1126, 596, 5, 1, 67, 7, 38, 851, 1108, 754, 793, 7]


def test_v1_decode_closes_up_marks_but_leaves_the_book_s_two_losses(verdict: str) -> None:
    tokenizer = SimpleTokenizerV1(build_vocab(verdict))
    decoded = tokenizer.decode(tokenizer.encode(LAST_WORDS))
    assert decoded == '" It\' s the last he painted, you know," Mrs. Gisburn said with pardonable pride.'


def test_v1_refuses_an_unknown_word_by_name(verdict: str) -> None:
    with pytest.raises(KeyError, match=r"'Hello'.*SimpleTokenizerV2"):
        SimpleTokenizerV1(build_vocab(verdict)).encode("Hello, do you like tea?")


def test_v2_gives_the_books_ids_for_unknown_words_and_end_of_text(verdict: str) -> None:
    tokenizer = SimpleTokenizerV2(build_vocab(verdict, special_tokens=SPECIAL))
    text = "Hello, do you like tea? <|endoftext|> In the sunlit terraces of the palace."
    ids = tokenizer.encode(text)
    # Printed in chapter 2, section 2.4.
    assert ids == [1131, 5, 355, 1126, 628, 975, 10, 1130, 55, 988, 956, 984, 722, 988, 1131, 7]
    assert tokenizer.decode(ids) == text.replace("Hello", "<|unk|>").replace("palace", "<|unk|>")


def test_v2_alone_closes_up_colons_and_semicolons() -> None:
    vocab = build_vocab("a b : ;")
    assert SimpleTokenizerV1(vocab).decode(SimpleTokenizerV1(vocab).encode("a: b;")) == "a : b ;"
    assert SimpleTokenizerV2(vocab).decode(SimpleTokenizerV2(vocab).encode("a: b;")) == "a: b;"


def test_v2_without_unk_takes_known_words_and_names_the_unknown_one() -> None:
    tokenizer = SimpleTokenizerV2(build_vocab("a b"))
    assert tokenizer.encode("b a") == [1, 0]
    with pytest.raises(KeyError, match=r"'c' is unknown.*<\|unk\|>"):
        tokenizer.encode("a c")


@pytest.mark.parametrize(("text", "items"), [
    ("", []),
    (" \n\t ", []),
    ("a--b", ["a", "--", "b"]),
    ("a---b", ["a", "--", "-b"]),
    ("well-known", ["well-known"]),
    ("don't(do)_it", ["don", "'", "t", "(", "do", ")", "_", "it"]),
    ("<|endoftext|> x", ["<|endoftext|>", "x"]),
])
def test_items_are_words_single_marks_and_double_hyphens(text: str, items: list[str]) -> None:
    tokenizer = SimpleTokenizerV1(build_vocab(text))
    assert [tokenizer.int_to_str[i] for i in tokenizer.encode(text)] == items


def test_unknown_id_is_named_by_decode() -> None:
    with pytest.raises(KeyError, match="id 7 is not in the vocabulary of 2 items"):
        SimpleTokenizerV1(build_vocab("a b")).decode([0, 7])


def test_special_token_that_is_a_word_of_the_text_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' is in the vocabulary already"):
        build_vocab("a b", special_tokens=["a"])
