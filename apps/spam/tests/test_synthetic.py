import re
from collections import Counter

import numpy as np
import pytest

from gpt_spam.synthetic import SPAM_SHARE, SYNTHETIC_NOTE, synthetic_messages


def test_the_same_seed_gives_the_same_messages_and_another_seed_others() -> None:
    assert synthetic_messages(seed=3) == synthetic_messages(seed=3)
    assert synthetic_messages(seed=3) != synthetic_messages(seed=4)


@pytest.mark.parametrize("n", [2, 7, 600, 5000])
def test_the_share_of_spam_is_the_promised_one(n: int) -> None:
    counts = Counter(label for label, _ in synthetic_messages(n=n))
    assert counts["spam"] == max(1, round(n * SPAM_SHARE))
    assert counts["ham"] == n - counts["spam"]


@pytest.mark.parametrize("n", [1, 0, -5])
def test_less_than_one_message_of_each_label_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"got {n}"):
        synthetic_messages(n=n)


def test_messages_are_filled_in_short_and_seldom_the_same() -> None:
    texts = [text for _, text in synthetic_messages(n=2000)]
    assert len(set(texts)) > 0.97 * len(texts)
    assert not [text for text in texts if re.search(r"[{}|\n]", text) or not 5 < len(text) < 200]


def test_numbers_and_addresses_belong_to_nobody() -> None:
    for _, text in synthetic_messages(n=2000):
        assert all(number.startswith("07700 900") for number in re.findall(r"\b0\d{4} \d{6}", text))
        assert all(site in ("com", "net", "org") for site in re.findall(r"example\.(\w+)", text.lower()))
        assert not re.search(r"https?:|www\.|\w\.(com|net|org)\b(?<!example\.\1)", text.lower())


def test_no_single_sign_gives_spam_away_but_all_words_together_nearly_do() -> None:
    messages = synthetic_messages(n=2000)
    is_spam = np.array([label == "spam" for label, _ in messages])
    for sign in ("£", "07700", "example", r"\bfree\b|\bwin\b|\bwon\b|claim|urgent"):
        found = np.array([bool(re.search(sign, text.lower())) for _, text in messages])
        assert f1(found, is_spam) < 0.5
    assert 0.7 < f1(naive_bayes([text for _, text in messages], is_spam, n_train=1400), is_spam[1400:]) < 0.97


def test_the_note_says_that_figures_mean_nothing() -> None:
    assert "synthetic" in SYNTHETIC_NOTE
    assert "say nothing about real messages" in SYNTHETIC_NOTE


def f1(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def naive_bayes(texts: list[str], is_spam: np.ndarray, *, n_train: int) -> np.ndarray:
    """Return whether each text after the first ``n_train`` is spam to naive Bayes with add-one smoothing."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    scores = np.log([(~is_spam[:n_train]).mean(), is_spam[:n_train].mean()])
    counts = [Counter(), Counter()]
    for k in range(n_train):
        counts[int(is_spam[k])].update(words[k])
    n_words = len(counts[0] | counts[1])
    totals = [sum(count.values()) + n_words for count in counts]
    found = []
    for message in words[n_train:]:
        both = [scores[c] + sum(np.log((counts[c][word] + 1) / totals[c]) for word in message) for c in (0, 1)]
        found.append(both[1] > both[0])
    return np.array(found)
