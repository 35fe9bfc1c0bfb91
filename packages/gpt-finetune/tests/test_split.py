import contextlib
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt_finetune.duplicates import count_duplicates, duplicate_groups, normalised
from gpt_finetune.labelled import LabelledTexts, read_labelled
from gpt_finetune.split import split_labelled
from gpt_train import DataError

SPAM = Path(__file__).resolve().parents[4] / "shared" / "data" / "SMSSpamCollection.tsv"
PARTS = ("train", "validation", "test")


def labelled(rows):
    rows = list(rows)
    return LabelledTexts(
        source="made.csv", texts=tuple(text for text, _ in rows), labels=tuple(label for _, label in rows),
        lines=tuple(range(1, len(rows) + 1)))


def words(n, label="ham", seed=0):
    """Texts that have nothing in common."""
    draws = random.Random(f"{seed}{label}")
    return [("".join(draws.choices("abcdefghijklmnopqrstuvwxyz", k=30)), label) for _ in range(n)]


def part_of(split):
    return {line: part for part in PARTS for line in getattr(split, part).lines}


def test_the_parts_have_the_fractions_of_each_label_and_every_row_once():
    data = labelled(words(100) + words(33, "spam"))
    split = split_labelled(data)

    assert split.test.counts == {"ham": 20, "spam": 7}
    assert split.validation.counts == {"ham": 10, "spam": 3}
    assert split.train.counts == {"ham": 70, "spam": 23}
    assert sorted(split.train.lines + split.validation.lines + split.test.lines) == list(data.lines)
    assert all(list(getattr(split, part).lines) == sorted(getattr(split, part).lines) for part in PARTS)
    assert (split.n_duplicates, split.n_moved, split.n_conflicting) == (0, 0, 0)


def test_the_same_seed_gives_the_same_parts_and_another_seed_others():
    data = labelled(words(50) + words(50, "spam"))
    random.seed(1)
    before = random.getstate()
    one = split_labelled(data, seed=5)
    assert random.getstate() == before
    random.seed(2)

    assert split_labelled(data, seed=5) == one
    assert split_labelled(data, seed=6) != one


def test_the_parts_of_a_seed_are_the_same_on_every_system():
    """By hand: ten draws of random.Random(0), of which the largest two are the test's, the next is validation's."""
    draws = random.Random(0)
    order = sorted(range(10), key=[draws.random() for _ in range(10)].__getitem__)
    split = split_labelled(labelled(words(10)), seed=0)

    assert {line - 1 for line in split.test.lines} == set(order[-2:])
    assert {line - 1 for line in split.validation.lines} == {order[-3]}
    assert split.test.lines == (1, 7)  # Random(0) begins 0.84, 0.76, 0.42, 0.26, 0.51, 0.40, 0.78, 0.30, 0.48, 0.58


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 30)), min_size=40, max_size=80),
    st.integers(0, 5), st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([0.1, 0.2, 0.3]),
)  # fmt: skip
def test_a_group_lies_in_one_part_and_none_is_lost(rows, seed, validation, test):
    data = labelled((f"text {i}", label) for i, (label, _) in enumerate(rows))
    groups = [group for _, group in rows]
    try:
        split = split_labelled(data, validation=validation, test=test, seed=seed, groups=groups)
    except DataError as error:
        assert "would have no text labelled" in str(error)  # noqa: PT017 - large groups may leave no other way
        return
    parts = part_of(split)

    assert sorted(parts) == list(data.lines)
    found = defaultdict(set)
    for line, group in enumerate(groups, 1):
        found[group].add(parts[line])
    assert all(len(where) == 1 for where in found.values())
    assert split.n_duplicates == len(rows) - len(set(groups))
    plain = part_of(split_labelled(data, validation=validation, test=test, seed=seed, groups=None))
    assert split.n_moved == sum(plain[line] != parts[line] for line in parts)


def test_groups_leave_the_fractions_as_they_are_while_single_texts_fill_up():
    copies = [("Sorry, I'll call later", "ham")] * 12 + [("WIN 1000 now", "spam"), ("win 2000 NOW!", "spam")] * 3
    data = labelled(words(60) + copies + words(60, "spam"))
    split = split_labelled(data, seed=3)
    plain = split_labelled(data, seed=3, groups=None)

    for part in PARTS:
        assert getattr(split, part).counts == getattr(plain, part).counts
        texts = {normalised(text) for text in getattr(split, part).texts}
        others = {normalised(text) for other in PARTS if other != part for text in getattr(split, other).texts}
        assert not texts & others
    assert split.n_duplicates == 11 + 5
    assert split.n_moved > 0


def test_a_group_goes_where_its_first_text_goes_row_by_row_if_there_is_room():
    """So a group is in the test as often as a single text is, and large ones are not all in training."""
    data = labelled(words(88) + [("the same text again", "ham")] * 12)
    where = Counter()
    groups = duplicate_groups(data.texts)
    for seed in range(300):
        split = split_labelled(data, seed=seed, groups=groups)
        where["test" if "the same text again" in split.test.texts else "other"] += 1

    assert 30 < where["test"] < 95  # 60 expected of 300 at 0.2; the bounds are 5 standard deviations away


def test_a_group_too_large_for_the_test_goes_where_it_fits():
    data = labelled(words(60) + [("the same text again", "ham")] * 40)
    for seed in range(20):
        split = split_labelled(data, seed=seed)
        assert split.train.texts.count("the same text again") == 40
        assert split.test.counts == {"ham": 20}


def test_equal_texts_with_different_labels_are_counted_and_stay_together():
    same = [("Call 1 now", "ham"), ("call 2 NOW!", "spam"), ("Call 1 now", "ham")]
    data = labelled([*words(30), *words(30, "spam"), *same])
    split = split_labelled(data)

    assert split.n_conflicting == 3
    assert len({part for line, part in part_of(split).items() if line > 60}) == 1


def test_a_fraction_of_zero_leaves_its_part_empty():
    split = split_labelled(labelled(words(10)), validation=0, test=0)
    assert (len(split.train), len(split.validation), len(split.test)) == (10, 0, 0)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 4)), min_size=5, max_size=14),
    st.integers(0, 5), st.sampled_from([{"validation": 0.0, "test": 0.4}, {"validation": 0.4, "test": 0.0}]),
)  # fmt: skip
@example(
    list(zip("abbabaaaababaa", [2, 4, 4, 4, 0, 2, 0, 3, 0, 3, 2, 4, 2, 2], strict=True)), 0,
    {"validation": 0.4, "test": 0.0},
)  # fmt: skip
def test_a_fraction_of_zero_leaves_its_part_empty_whatever_the_groups(rows, seed, fractions):
    data = labelled((f"text {i}", label) for i, (label, _) in enumerate(rows))
    with contextlib.suppress(DataError):  # large groups may leave a part without a label
        split = split_labelled(data, seed=seed, groups=[group for _, group in rows], **fractions)
        assert len(split.test if fractions["test"] == 0 else split.validation) == 0


@pytest.mark.parametrize(("fractions", "part"), [({"validation": 0.1}, "validation"), ({"test": 0.01}, "test")])
def test_a_part_that_would_lack_a_label_is_an_error(fractions, part):
    with pytest.raises(DataError, match=rf"{part} would have no text labelled 'spam', of which made\.csv has 4"):
        split_labelled(labelled(words(50) + words(4, "spam")), **fractions)


def test_a_label_in_one_group_only_cannot_be_in_every_part():
    data = labelled(words(50) + [("win now", "spam")] * 20)
    with pytest.raises(DataError, match="would have no text labelled 'spam'"):
        split_labelled(data)


@pytest.mark.parametrize("wrong", [
    {"test": -0.1}, {"validation": -1}, {"test": float("nan")}, {"test": 0.9, "validation": 0.1}, {"test": 1.0},
    {"groups": [1, 2]}, {"groups": "near"},
])  # fmt: skip
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        split_labelled(labelled(words(10)), **wrong)


@pytest.mark.skipif(not SPAM.exists(), reason="the real SMSSpamCollection.tsv is not beside the repository")
def test_the_spam_collection_is_split_without_a_leak():
    data = read_labelled(SPAM, columns=["label", "text"])
    groups = duplicate_groups(data.texts)
    counts = count_duplicates(data.texts, groups)
    split = split_labelled(data, groups=groups)

    assert (counts.n_exact, counts.n_normalised, counts.n_near) == (403, 67, 108)
    assert counts.n_exact == len(data) - len(set(data.texts))
    assert split.train.counts == {"ham": 3379, "spam": 523}
    assert split.validation.counts == {"ham": 483, "spam": 75}
    assert split.test.counts == {"ham": 965, "spam": 149}
    assert (split.n_duplicates, split.n_moved, split.n_conflicting) == (578, 285, 0)
    parts = part_of(split)
    assert all(parts[line] == parts[group + 1] for line, group in enumerate(groups, 1))
