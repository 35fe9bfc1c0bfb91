"""Entries of a data set that say nearly the same (the book's bonus to chapter 7).

Two texts are alike as far as the same runs of one to three characters make them up: each text is a vector of TF-IDF
weights (Salton and Buckley 1988), and the cosine of two vectors, from 0 to 1, is their similarity.

Shapes: M texts that are not empty.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from gpt_eval.scikit_learn import require_scikit_learn

Entry = TypeVar("Entry", bound=Mapping[str, Any])

_BLOCK_MIB = 64  # of similarities at a time: all at once, those of 52,000 entries are 21 GB


def find_near_duplicates(
    json_data: Sequence[Entry], threshold: float = 0.75, key: str = "instruction"
) -> tuple[list[Entry], list[tuple[Entry, Entry, float]]]:
    """Return the entries without those that nearly repeat an earlier one, and the pairs that are alike.

    Compared are the texts under ``key``; upper and lower case are the same. A pair is (earlier entry, later entry,
    similarity) with a similarity above ``threshold``; pairs come in the order of the entries. The later entry of each
    pair is left out, so no two of those returned are alike. An empty text repeats nothing: its entry stays.

    Entries of the same instruction may differ in their input: look at the pairs, or compare by another key, before
    training on what is left. The time grows with the square of the number of entries: 5,000 take 2 s.

    Raises ValueError for a threshold outside 0 and 1 and for an entry without a text under ``key``, and ImportError
    without scikit-learn.
    """
    require_scikit_learn("finding near duplicates")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be at least 0 and below 1, got {threshold}; 0.75 is the book's")
    for place, entry in enumerate(json_data):
        if not isinstance(entry.get(key), str):
            raise ValueError(
                f"json_data[{place}] has {entry.get(key)!r:.50} under {key!r}, but texts are compared; name a key "
                "that has a text in each entry"
            )
    places = [place for place, entry in enumerate(json_data) if entry[key].strip()]
    alike = [
        (places[first], places[second], similarity)
        for first, second, similarity in _pairs_alike([json_data[place][key] for place in places], threshold)
    ]
    repeats = {second for _, second, _ in alike}
    return (
        [entry for place, entry in enumerate(json_data) if place not in repeats],
        [(json_data[first], json_data[second], similarity) for first, second, similarity in alike],
    )


def _pairs_alike(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Yield (first, second, similarity) for the pairs of places whose texts are alike."""
    from sklearn.feature_extraction.text import (  # type: ignore[import-untyped,unused-ignore]
        TfidfVectorizer,
    )
    from sklearn.metrics import pairwise_distances_chunked  # type: ignore[import-untyped,unused-ignore]

    if not texts:
        return  # the vectorizer takes no empty vocabulary
    weights = TfidfVectorizer(analyzer="char", ngram_range=(1, 3)).fit_transform(texts)      # (M, n-grams), sparse
    start = 0
    for distances in pairwise_distances_chunked(weights, metric="cosine", working_memory=_BLOCK_MIB):
        similarities = 1 - distances                                                         # (rows, M)
        for row, column in np.argwhere(similarities > threshold).tolist():
            if start + row < column:
                yield start + row, column, float(similarities[row, column])
        start += len(distances)
