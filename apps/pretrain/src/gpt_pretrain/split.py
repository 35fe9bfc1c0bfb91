"""One rule that parts a corpus into training and validation text.

From 20 documents on, whole documents are held out: in an order drawn from the seed, each that still fits into
``val_fraction`` of the characters. Of fewer documents, the last ``val_fraction`` of the characters of each is
held out. Documents that are equal to the last character stay on one side.
"""

import hashlib
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from gpt_pretrain.corpus import Corpus

MANY_DOCUMENTS = 20
"""From here on whole documents are held out: a tenth of fewer says little about the rest."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A corpus measured and parted."""

    corpus: Corpus
    sha256: str
    """Digest of the documents' text and borders: the same text in other files has the same digest."""
    lengths: "array[int]"
    """Characters of each document."""
    n_train: "array[int]"
    """How many of these, from the document's start, are for training; what follows is held out."""

    def texts(self, *, held_out: bool) -> Iterator[tuple[int, str]]:
        """Yield (document number, piece of text) of one side, in order, no piece empty."""
        at, last = 0, -1
        for document, text in self.corpus.pieces():
            at = at if document == last else 0
            cut = min(max(self.n_train[document] - at, 0), len(text))
            at, last = at + len(text), document
            if part := text[cut:] if held_out else text[:cut]:
                yield document, part

    def n_characters(self, *, held_out: bool) -> int:
        """Return how many characters one side has."""
        return sum(self.lengths) - sum(self.n_train) if held_out else sum(self.n_train)

    def n_documents(self, *, held_out: bool) -> int:
        """Return how many documents one side has something of."""
        if held_out:
            return sum(n < length for n, length in zip(self.n_train, self.lengths, strict=True))
        return sum(n > 0 for n in self.n_train)


def split_corpus(corpus: Corpus, *, val_fraction: float, seed: int) -> Split:
    """Read the corpus once and part it by the rule at this module's head."""
    whole = hashlib.sha256()
    lengths, digests = array("q"), array("Q")
    one = hashlib.sha256()
    last = -1

    def close_document() -> None:
        digests.append(int.from_bytes(one.digest()[:8], "big"))
        whole.update(b"\xff")  # no UTF-8 text holds this byte, so the borders of documents are part of the digest

    for document, text in corpus.pieces():
        while last < document:  # an empty file has no piece, yet it is a document
            if last >= 0:
                close_document()
            one = hashlib.sha256()
            lengths.append(0)
            last += 1
        encoded = text.encode("utf-8")
        one.update(encoded)
        whole.update(encoded)
        lengths[document] += len(text)
    if last >= 0:
        close_document()
    n_train = _training_lengths(lengths, digests, val_fraction=val_fraction, seed=seed)
    return Split(corpus=corpus, sha256=whole.hexdigest(), lengths=lengths, n_train=n_train)


def _training_lengths(lengths: "array[int]", digests: "array[int]", *, val_fraction: float, seed: int) -> "array[int]":
    if len(lengths) < MANY_DOCUMENTS:
        return array("q", (int(length * (1 - val_fraction)) for length in lengths))
    room = val_fraction * sum(lengths)
    copies: dict[int, int] = {}
    for digest, length in zip(digests, lengths, strict=True):
        copies[digest] = copies.get(digest, 0) + length
    order = list(copies)
    random.Random(seed).shuffle(order)
    held_out: set[int] = set()
    for digest in order:
        if copies[digest] <= room:
            held_out.add(digest)
            room -= copies[digest]
    return array("q", (0 if digest in held_out else length for digest, length in zip(digests, lengths, strict=True)))
