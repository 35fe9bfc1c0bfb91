"""BPE-dropout: the same text in other tokens, so that a model in training sees a word in many forms.

Provilkov et al. 2020: each time two tokens could be merged, that is left out with some probability. Rare spellings are
then less of a surprise. Only for training texts: answers are given on the one encoding that ``encode`` returns.
"""

import random
from collections.abc import Mapping


def merge_with_dropout(word: bytes, ranks: Mapping[bytes, int], *, rate: float, draw: random.Random) -> list[int]:
    """Return the ids of one word, its merges taken in the order of ``ranks``, each left out with probability ``rate``.

    A merge that was left out may come in the next round, as in the paper. With ``rate`` 0 it is ordinary BPE, with 1
    one id a byte.
    """
    parts = [word[i : i + 1] for i in range(len(word))]
    while True:
        best, at = None, 0
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1])
            # Drawn only for what would be taken: the others' draws could not change the choice.
            if rank is not None and (best is None or rank < best) and draw.random() >= rate:
                best, at = rank, i
        if best is None:
            return [ranks[part] for part in parts]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
