"""BPE-dropout: the same text in other tokens, so that a model in training sees a word in many forms.

Provilkov et al. 2020: each time two tokens could be merged, that is left out with some probability. Rare spellings are
then less of a surprise. Only for training texts: answers are given on the one encoding that ``encode`` returns.
"""

import random
from collections.abc import Mapping
from heapq import heappop, heappush


def merge_with_dropout(word: bytes, ranks: Mapping[bytes, int], *, rate: float, draw: random.Random) -> list[int]:
    """Return the ids of one word, its merges taken in the order of ``ranks``, each left out with probability ``rate``.

    A merge that was left out may come in the next round, as in the paper. With ``rate`` 0 it is ordinary BPE, with 1
    one id a byte. For n bytes the time grows as n log n, and as 1 / (1 - ``rate``).
    """
    n = len(word)
    ends = [*range(1, n + 1), 0]    # where the token that begins at a byte ends; n at a byte within a token
    previous = list(range(-1, n))   # where the token before the one that begins at a byte begins
    pairs: list[tuple[int, int, int]] = []  # a heap of (rank, begin, end); the leftmost of equal rank comes first

    def offer(begin: int, end: int) -> None:
        rank = ranks.get(word[begin:end])
        if rank is not None:
            heappush(pairs, (rank, begin, end))

    for i in range(n - 1):
        offer(i, i + 2)
    left_out = []  # in this round
    while pairs:
        pair = heappop(pairs)
        _, begin, end = pair
        middle = ends[begin]
        if ends[middle] != end:  # one of the two has been merged with another token
            continue
        # Drawn only up to the merge that is taken: the draws of those behind it could not change the choice.
        if draw.random() < rate:
            left_out.append(pair)
            continue
        ends[begin], ends[middle] = end, n
        if end < n:
            previous[end] = begin
            offer(begin, ends[end])
        if begin > 0:
            offer(previous[begin], end)
        for pair in left_out:
            heappush(pairs, pair)
        left_out.clear()
    ids, begin = [], 0
    while begin < n:
        ids.append(ranks[word[begin:ends[begin]]])
        begin = ends[begin]
    return ids
