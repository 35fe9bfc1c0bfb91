"""BPE-dropout: the same text in other tokens."""

import random
from collections import Counter, defaultdict
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_tokenizer import BPETokenizer
from gpt_tokenizer.dropout import merge_with_dropout

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


def chances(parts: tuple[str, ...], merges: list[str], rate: float) -> dict[tuple[str, ...], float]:
    """Return how probable each form is by the paper's rule: in a round every pair is left out or not by itself."""
    places = [i for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in merges]
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for is_kept in product([False, True], repeat=len(places)):
        kept = [i for i, keep in zip(places, is_kept, strict=True) if keep]
        chance = (1 - rate) ** len(kept) * rate ** (len(places) - len(kept))
        if not kept:
            found[parts] += chance
            continue
        i = min(kept, key=lambda i: (merges.index(parts[i] + parts[i + 1]), i))
        rest = (*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :])
        for form, of_rest in chances(rest, merges, rate).items():
            found[form] += chance * of_rest
    return found


@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_each_form_of_a_word_is_as_frequent_as_the_papers_rule_says(rate: float) -> None:
    merges = ["ab", "bc", "abc", "ca", "aba", "abab"]
    ranks = {token.encode(): i for i, token in enumerate([*"abc", *merges])}
    names = dict(enumerate([*"abc", *merges]))
    expected = chances(tuple("ababca"), merges, rate)
    draw = random.Random(3)
    found = Counter(
        tuple(names[i] for i in merge_with_dropout(b"ababca", ranks, rate=rate, draw=draw)) for _ in range(20_000)
    )
    assert sum(expected.values()) == pytest.approx(1)
    assert found.keys() <= expected.keys()
    for form, chance in expected.items():
        assert found[form] / 20_000 == pytest.approx(chance, abs=0.016)  # 4.5 standard deviations at 0.5


class Counted(dict[bytes, int]):
    """Ranks that count how often they are asked."""

    n_asked = 0

    def get(self, *args: object) -> int | None:
        self.n_asked += 1
        return super().get(*args)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_work_for_an_unbroken_run_grows_no_faster_than_the_run(rate: float) -> None:
    asked = []
    for n in (1_000, 4_000):
        ranks = Counted((token, i) for i, token in enumerate([b"a", b"b", b"ab", b"abab", b"abababab"]))
        ids = merge_with_dropout(b"ab" * n, ranks, rate=rate, draw=random.Random(1))
        assert b"".join(list(ranks)[i] for i in ids) == b"ab" * n
        asked.append(ranks.n_asked)
    assert asked[1] < 5 * asked[0]


def test_a_long_run_with_nothing_left_out_is_the_ordinary_encoding() -> None:
    text = "".join(random.Random(5).choices("thecats", k=5_000))
    assert TOKENIZER.encode_with_dropout(text, rate=0, draw=random.Random(1)) == TOKENIZER.encode(text)


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
