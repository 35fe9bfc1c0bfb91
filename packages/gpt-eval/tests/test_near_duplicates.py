import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_eval.near_duplicates import find_near_duplicates


def entries(*texts, key="instruction"):
    return [{key: text, "number": number} for number, text in enumerate(texts)]


def numbers(data):
    return [entry["number"] for entry in data]


def similarity_by_hand(texts, one, other):
    """Return the cosine of two texts' TF-IDF weights (smoothed, natural logarithm) over runs of 1 to 3 characters."""
    counts = [Counter(text[k : k + n] for n in (1, 2, 3) for k in range(len(text) - n + 1)) for text in texts]
    rarity = {
        gram: math.log((1 + len(texts)) / (1 + sum(gram in count for count in counts))) + 1
        for gram in set().union(*counts)
    }
    a, b = ({gram: n * rarity[gram] for gram, n in counts[place].items()} for place in (one, other))
    lengths = math.hypot(*a.values()) * math.hypot(*b.values())
    return math.fsum(a[gram] * b[gram] for gram in a.keys() & b.keys()) / lengths


SPELL = "Edit the sentence to correct the spelling"
POEM = "Write a poem about the sea"


def test_a_reworded_text_is_left_out_and_told_with_its_first_one():
    data = entries(SPELL, POEM, SPELL + " mistakes.")
    kept, pairs = find_near_duplicates(data)

    assert numbers(kept) == [0, 1]
    assert [(first["number"], second["number"]) for first, second, _ in pairs] == [(0, 2)]
    lowered = [entry["instruction"].lower() for entry in data]
    assert pairs[0][2] == pytest.approx(similarity_by_hand(lowered, 0, 2))


def test_empty_texts_before_a_pair_do_not_shift_it():
    kept, pairs = find_near_duplicates(entries("", SPELL, " \n", POEM, SPELL, ""))

    assert numbers(kept) == [0, 1, 2, 3, 5]
    assert [(first["number"], second["number"]) for first, second, _ in pairs] == [(1, 4)]


@pytest.mark.parametrize("texts", [(), ("",), ("", ""), (" ", "\n")])
def test_data_without_any_text_are_returned_whole(texts):
    data = entries(*texts)

    assert find_near_duplicates(data) == (data, [])


def test_another_key_is_compared_where_asked():
    data = [{"instruction": SPELL, "input": "a cat"}, {"instruction": SPELL, "input": "the blue house"}]

    assert find_near_duplicates(data, key="input") == (data, [])
    assert find_near_duplicates(data)[0] == data[:1]


def test_upper_case_and_single_characters_are_texts_too():
    kept, pairs = find_near_duplicates(entries("A", "a", "b", POEM.upper(), POEM))

    assert numbers(kept) == [0, 2, 3]
    assert [similarity for *_, similarity in pairs] == pytest.approx([1, 1])


@given(st.lists(st.text("ab c", max_size=6), max_size=8), st.floats(0, 0.99))
def test_nothing_that_is_kept_is_alike_and_nothing_but_second_ones_is_lost(texts, threshold):
    data = entries(*texts)
    kept, pairs = find_near_duplicates(data, threshold)

    lost = {second["number"] for _, second, _ in pairs}
    assert numbers(kept) == [number for number in range(len(texts)) if number not in lost]
    assert not any({first["number"], second["number"]} <= set(numbers(kept)) for first, second, _ in pairs)
    assert all(first["number"] < second["number"] for first, second, _ in pairs)
    assert all(threshold < similarity <= 1 for *_, similarity in pairs)


def test_pairs_are_found_across_blocks(monkeypatch):
    monkeypatch.setattr("gpt_eval.near_duplicates._BLOCK_MIB", 0.02)     # eight rows of similarities
    texts = [f"{chr(97 + k // 26)}{chr(97 + k % 26)}" * 5 for k in range(150)]
    kept, pairs = find_near_duplicates(entries(*texts, *texts), 0.99)

    assert numbers(kept) == list(range(150))
    assert [(first["number"], second["number"]) for first, second, _ in pairs] == [(k, 150 + k) for k in range(150)]


@pytest.mark.parametrize("threshold", [-0.1, 1, 75, math.nan])
def test_a_threshold_outside_0_and_1_is_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold must be at least 0 and below 1, got {threshold}"):
        find_near_duplicates(entries(POEM), threshold)


def test_an_entry_without_a_text_is_named_with_its_place():
    with pytest.raises(ValueError, match=r"json_data\[1\] has None under 'instruction', but texts are compared"):
        find_near_duplicates([*entries(POEM), {"text": POEM}])
    with pytest.raises(ValueError, match=r"json_data\[0\] has 7 under 'instruction'"):
        find_near_duplicates(entries(7))
