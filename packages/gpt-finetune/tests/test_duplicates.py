from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune.duplicates import DuplicateCounts, count_duplicates, duplicate_groups, normalised


def shingles(text):
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def groups_by_comparing_all(texts, similarity):
    """The definition: link every similar pair, then number the connected parts by their first member."""
    sets = [shingles(normalised(text)) for text in texts]
    groups = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= similarity:
            old, new = max(groups[i], groups[j]), min(groups[i], groups[j])
            groups = [new if group == old else group for group in groups]
    return groups


@given(
    st.lists(st.text("abcdefg ", max_size=40), max_size=25), st.sampled_from([0.05, 0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0])
)
def test_groups_of_any_texts_are_those_of_comparing_every_pair(texts, similarity):
    assert duplicate_groups(texts, similarity=similarity) == groups_by_comparing_all(texts, similarity)


@given(
    st.text("abc", min_size=20, max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8), st.text("abcd", max_size=8)), max_size=20),
    st.floats(0.05, 1.0),
)
def test_groups_of_edited_copies_are_those_of_comparing_every_pair(text, edits, similarity):
    texts = [text] + [text[:at] + new + text[at + n :] for at, n, new in edits]
    assert duplicate_groups(texts, similarity=similarity) == groups_by_comparing_all(texts, similarity)


def test_a_similarity_on_the_threshold_links():
    """Shingles of 8 and 9 letters: 4 shared of 5 in all; 4 / 5 is 0.8, also as floats."""
    assert duplicate_groups(["abcdefgh", "abcdefghi"], similarity=0.8) == [0, 0]
    assert duplicate_groups(["abcdefgh", "abcdefghi"], similarity=0.801) == [0, 1]


def test_links_are_passed_on():
    texts = ["abcdefghijklmn", "abcdefghijklmnop", "abcdefghijklmnopqr"]
    assert duplicate_groups([texts[0], texts[2]]) == [0, 1]
    assert duplicate_groups(texts) == [0, 0, 0]


@pytest.mark.parametrize(("one", "other"), [
    ("Call 07123 NOW!!", "call 99999 now"),
    ("FREE   entry", "free-entry"),
    ("\uff26\uff32\uff25\uff25", "free"),
    ("Stra\u00dfe", "STRASSE"),
    ("cafe\u0301", "caf\u00e9"),
    ("win \u0661\u0662", "win 12"),
])  # fmt: skip
def test_case_numbers_punctuation_and_width_make_no_difference(one, other):
    assert normalised(one) == normalised(other)
    assert duplicate_groups([one, "else", other]) == [0, 1, 0]


@pytest.mark.parametrize(("one", "other"), [
    (":-)", ":-("),
    ("\U0001f600", "\U0001f4a9"),
    ("", "!"),
    ("\u0915\u0940", "\u0915\u093e"),  # Hindi: another vowel sign, which is a mark
    ("call 1", "call 12"),
])  # fmt: skip
def test_what_differs_otherwise_is_not_normalised_away(one, other):
    assert normalised(one) != normalised(other)
    assert duplicate_groups([one, other]) == [0, 1]


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalised(normalised(text)) == normalised(text)


def test_each_duplicate_counts_once_for_what_it_shares():
    texts = ["Call me now please", "Call me now please", "call me NOW, please!", "call me now pleased", "other"]
    groups = duplicate_groups(texts, similarity=0.8)
    assert groups == [0, 0, 0, 0, 4]
    assert count_duplicates(texts, groups) == DuplicateCounts(n_exact=1, n_normalised=1, n_near=1)


@pytest.mark.parametrize("similarity", [0, -0.1, 1.1, float("nan")])
def test_a_similarity_outside_its_range_is_refused(similarity):
    with pytest.raises(ValueError, match="similarity must lie above 0"):
        duplicate_groups(["a"], similarity=similarity)


def test_no_texts_have_no_groups():
    assert duplicate_groups([]) == []
    assert count_duplicates([], []) == DuplicateCounts(0, 0, 0)
