"""Byte-pair merges learned from word counts (Sennrich et al. 2016), recounting only what a merge touched.

A word is a string with one character per token, ``chr(id)``: finding a pair, merging it and cutting a word at
it are then single calls into C.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

# GPT-2's order of the 256 bytes: the printable ones of Latin-1, then the rest; a byte's place is its id.
BYTE_ORDER = bytes([*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173])
_BYTE_TO_ID = bytes(BYTE_ORDER.index(b) for b in range(256))


def learn_merges(words: Mapping[str, int], *, n_tokens: int) -> list[tuple[bytes, bytes]]:
    """Return merges in the order learned until there are ``n_tokens`` tokens, the 256 bytes included.

    ``words`` maps a word to its count. Each step merges the most frequent pair of neighbours; of equally
    frequent ones the pair with the smaller left id, then the smaller right id, as Hugging Face's
    ``BpeTrainer`` does. The result depends on the counts alone, not on their order. It is shorter if no word
    has two tokens left.
    """
    corpus = [word.encode().translate(_BYTE_TO_ID).decode("latin-1") for word in words]
    frequencies = list(words.values())
    counts: dict[str, int] = defaultdict(int)           # pair of characters -> how often the texts hold it
    places: dict[str, list[int]] = defaultdict(list)    # pair -> words that hold it, or held it once
    for place, word in enumerate(corpus):
        frequency = frequencies[place]
        for pair in map("".join, pairwise(word)):
            counts[pair] += frequency
            places[pair].append(place)

    tokens = [bytes([b]) for b in BYTE_ORDER]
    merges: list[tuple[bytes, bytes]] = []
    heap = [(-n, pair) for pair, n in counts.items()]   # strings of ids compare as tuples of ids do
    heapq.heapify(heap)
    while len(tokens) < n_tokens and heap:
        n, pair = heapq.heappop(heap)
        if counts.get(pair, 0) != -n:                   # it fell since this entry was made: put it right
            if counts.get(pair, 0) > 0:
                heapq.heappush(heap, (-counts[pair], pair))
            continue
        merges.append((tokens[ord(pair[0])], tokens[ord(pair[1])]))
        # Always a new token: bytes that become one token were never crossed by another token on the way, so
        # they merged alike wherever they stand, and no second pair spells them.
        tokens.append(b"".join(merges[-1]))
        for new_pair in _merge(pair, chr(len(tokens) - 1), corpus, frequencies, counts, places):
            heapq.heappush(heap, (-counts[new_pair], new_pair))
    return merges


def _merge(pair: str, token: str, corpus: list[str], frequencies: list[int],
           counts: dict[str, int], places: dict[str, list[int]]) -> set[str]:
    """Replace ``pair`` by ``token`` in every word that holds it; return the pairs whose counts grew."""
    left, right = pair[0], pair[1]
    grown: set[str] = set()
    for place in set(places.pop(pair)):     # a word with many occurrences is named as often
        word = corpus[place]
        parts = word.split(pair)        # leftmost occurrences first, as the encoder merges
        if len(parts) == 1:
            continue
        corpus[place] = token.join(parts)
        frequency = frequencies[place]
        for i in range(1, len(parts)):
            before, after = parts[i - 1], parts[i]
            if before:
                counts[before[-1] + left] -= frequency
                new_pair = before[-1] + token
            elif i > 1:                                     # two occurrences side by side
                counts[right + left] -= frequency
                new_pair = token + token
            else:
                new_pair = ""
            if new_pair:
                counts[new_pair] += frequency
                places[new_pair].append(place)
                grown.add(new_pair)
            if after:
                counts[right + after[0]] -= frequency
                new_pair = token + after[0]
                counts[new_pair] += frequency
                places[new_pair].append(place)
                grown.add(new_pair)
    counts.pop(pair, None)
    return grown
