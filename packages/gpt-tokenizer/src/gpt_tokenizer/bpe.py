"""Byte-level BPE: learned here, encoded by tiktoken's engine (Radford et al. 2019, section 2.2).

    tokenizer = BPETokenizer.train(["the cat sat on the mat"], vocab_size=260)
    tokenizer.encode("the cat")             # [258, 220, 66, 256]: "the", " ", "c", "at"
    tokenizer.decode([258, 220, 66, 256])   # "the cat"
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import random
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import tiktoken

from gpt_tokenizer.dropout import merge_with_dropout
from gpt_tokenizer.files import Vocabulary, read_openai, read_tokenizer_json, write_tokenizer_json
from gpt_tokenizer.split import (
    PATTERN,
    check_unicode,
    count_words,
    special_pattern,
    split_long_runs,
    unicode_word_pattern,
)
from gpt_tokenizer.train import BYTE_ORDER, learn_merges

_END_OF_TEXT = "<|endoftext|>"
_BATCH_CHARACTERS = 65_536      # a thread's share at a time: handing over single lines costs too much


class BPETokenizer:
    """A byte-level BPE tokenizer: ``train`` one, ``load`` a ``tokenizer.json``, or read OpenAI's files.

    Any text made of characters round-trips: ``decode(encode(text)) == text``. A special token's name inside a
    text is ordinary text, so what a person typed never becomes a control token, unless the caller allows it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._encoding = tiktoken.Encoding(
            "gpt-tokenizer", pat_str=PATTERN, mergeable_ranks=dict(vocabulary.ranks),
            special_tokens=dict(vocabulary.special_tokens))

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int,
              special_tokens: Collection[str] = (_END_OF_TEXT,)) -> BPETokenizer:
        """Learn a vocabulary of ``vocab_size`` ids: the 256 bytes in GPT-2's order, merges, special tokens.

        ``texts`` is any iterable of strings, read once: each is a document, split by itself, and so is each
        line of an open text file (a run of blank lines is then never one word, as it is in a whole text). A
        special token's name in a text parts it and is not learned. The same texts in any order give the same
        tokenizer. ``special_tokens`` get their ids in the order given, those of a set in sorted order.

        Raises ValueError if ``vocab_size`` does not hold the bytes and special tokens, if there is no text,
        or if a text holds a lone surrogate. If the text has fewer pairs than merges are wanted, it warns and
        the tokenizer is smaller: see ``n_vocab``.
        """
        _refuse_one_string(texts)
        if isinstance(special_tokens, str) or len(set(special_tokens)) != len(special_tokens):
            raise ValueError(f"special_tokens must be a sequence of different names, got {special_tokens!r}")
        # The order of a set of strings changes from one process to the next.
        special_tokens = sorted(special_tokens) if isinstance(special_tokens, set | frozenset) else list(special_tokens)
        n_tokens = operator.index(vocab_size) - len(special_tokens)
        if n_tokens < 256:
            raise ValueError(
                f"vocab_size is {vocab_size}, but 256 bytes and {len(special_tokens)} special tokens need "
                f"{256 + len(special_tokens)}; raise vocab_size")
        _vocabulary([], special_tokens)     # refuses a bad special token before the work, not after it
        words = count_words(texts, special_tokens=special_tokens)
        if not words:
            raise ValueError("texts holds no text to learn from; pass at least one string that is not empty")
        vocabulary = _vocabulary(learn_merges(words, n_tokens=n_tokens), special_tokens)
        found = len(vocabulary.ranks) + len(special_tokens)
        if found < vocab_size:
            warnings.warn(
                f"the text has pairs for {found} tokens only, vocab_size asked for {vocab_size}; "
                "use n_vocab or train on more text", stacklevel=2)
        return BPETokenizer(vocabulary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BPETokenizer:
        """Read a ``tokenizer.json``, or the one in the folder ``path``: ours or any of GPT-2's kind.

        Raises ValueError, naming the file and the reason, for one that is broken or of another kind.
        """
        return BPETokenizer(read_tokenizer_json(_file(path)))

    @classmethod
    def from_openai(cls, encoder_json: str | os.PathLike[str],
                    vocab_bpe: str | os.PathLike[str]) -> BPETokenizer:
        """Read OpenAI's two files (Hugging Face's ``vocab.json`` and ``merges.txt``).

        Tokens written ``<|...|>`` are special. Raises ValueError for files that are broken or do not fit.
        """
        try:
            return BPETokenizer(read_openai(Path(encoder_json).read_bytes(), Path(vocab_bpe).read_bytes()))
        except ValueError as error:
            raise ValueError(f"{encoder_json} and {vocab_bpe}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``tokenizer.json``, into ``path`` if that is a folder; Hugging Face's tokenizers opens it.

        There ``encode(text)`` finds special tokens in text: it equals our ``encode(text,
        allowed_special="all")``, and our default once ``encode_special_tokens`` is set. The file appears
        whole or not at all.
        """
        write_tokenizer_json(_file(path), self._vocabulary)

    @property
    def n_vocab(self) -> int:
        """Return the largest id plus one: the width of an embedding that takes every id."""
        return self._encoding.max_token_value + 1

    @property
    def special_tokens(self) -> dict[str, int]:
        """Return the id of each special token."""
        return dict(self._vocabulary.special_tokens)

    @property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """Return the pairs in the order in which they were learned."""
        return list(self._vocabulary.merges)

    @property
    def eot_token(self) -> int:
        """Return the id of ``<|endoftext|>``. Raises ValueError if there is no such token."""
        if _END_OF_TEXT not in self._vocabulary.special_tokens:
            raise ValueError(
                f"this tokenizer has no {_END_OF_TEXT}, its special tokens are {list(self.special_tokens)}")
        return self._vocabulary.special_tokens[_END_OF_TEXT]

    @cached_property
    def sha256(self) -> str:
        """Return 64 hexadecimal digits, the same for two tokenizers if and only if they have the same ids."""
        ranks = sorted((i, token.hex()) for token, i in self._vocabulary.ranks.items())
        special = sorted((i, name) for name, i in self._vocabulary.special_tokens.items())
        return hashlib.sha256(json.dumps(["gpt2 split", ranks, special]).encode()).hexdigest()

    def with_special_tokens(self, names: Sequence[str]) -> BPETokenizer:
        """Return a tokenizer with these special tokens, too: those that are new get the next ids, in their order.

        All other ids stay, so a model needs no more than rows for the new ones. Raises ValueError for one string in
        place of a list, an empty name, and one that is an ordinary token.
        """
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"names must be a list of special tokens, got {names!r:.60}; pass [name]")
        known = self._vocabulary.special_tokens
        new = [name for name in dict.fromkeys(names) if name not in known]
        special = {**known, **{name: self.n_vocab + place for place, name in enumerate(new)}}
        return BPETokenizer(replace(self._vocabulary, special_tokens=special)) if new else self

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        """Return the ids of ``text``.

        ``allowed_special`` names the special tokens that ``text`` may hold, or is "all"; where names overlap
        the longest wins. Raises ValueError for a name that is no special token and for a lone surrogate in
        ``text``.
        """
        check_unicode(text)
        special = self._allowed_pattern(allowed_special)
        if special is None:
            return self._encode_ordinary(text)
        ids: list[int] = []
        for i, part in enumerate(special.split(text)):      # text, name, text, name, ..., text
            ids += [self._vocabulary.special_tokens[part]] if i % 2 else self._encode_ordinary(part)
        return ids

    def encode_batch(self, texts: Iterable[str], *, allowed_special: Collection[str] = (),
                     n_threads: int | None = None) -> list[list[int]]:
        """Return the ids of each text, encoded by ``n_threads`` threads (by default one a processor)."""
        _refuse_one_string(texts)
        batches: list[list[str]] = []
        room = 0
        for text in texts:
            if room <= 0:
                batches.append([])
                room = _BATCH_CHARACTERS
            batches[-1].append(text)
            room -= len(text)

        def encode(batch: list[str]) -> list[list[int]]:
            return [self.encode(text, allowed_special=allowed_special) for text in batch]

        with ThreadPoolExecutor(n_threads or os.cpu_count()) as pool:
            return list(chain.from_iterable(pool.map(encode, batches)))

    def encode_with_dropout(self, text: str, *, rate: float, draw: random.Random) -> list[int]:
        """Return ids of ``text`` in which each merge was left out with probability ``rate``, drawn from ``draw``.

        For training texts (Provilkov et al. 2020): ``decode`` gives the same text, the tokens are others each time. No
        special token is found in ``text``. Raises ValueError if ``rate`` lies outside 0..1, and for a lone surrogate.
        """
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ValueError(f"rate must lie between 0 and 1, got {rate!r}")
        check_unicode(text)
        ranks = self._vocabulary.ranks
        words = unicode_word_pattern().findall(text)
        return [i for word in words for i in merge_with_dropout(word.encode(), ranks, rate=rate, draw=draw)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; bytes that are not valid UTF-8 become U+FFFD (``errors="replace"``).

        Ids that end within a character lose it here: while a text is still growing use ``decode_bytes`` with
        ``codecs.getincrementaldecoder("utf-8")``. Raises ValueError for an unknown id.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ``ids``, of a special token its name's. Raises ValueError for an unknown id."""
        ids = [operator.index(i) for i in ids]
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            known = {*self._vocabulary.ranks.values(), *self._vocabulary.special_tokens.values()}
            unknown = next(i for i in ids if i not in known)
            raise ValueError(f"id {unknown} is unknown: this tokenizer has n_vocab {self.n_vocab}; "
                             "decode with the tokenizer that encoded") from None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_vocab={self.n_vocab}, sha256={self.sha256[:12]})"

    def __reduce__(self) -> tuple[type[BPETokenizer], tuple[Vocabulary]]:
        return BPETokenizer, (self._vocabulary,)

    def _encode_ordinary(self, text: str) -> list[int]:
        pieces = split_long_runs(text)
        if len(pieces) == 1:
            return self._encoding.encode_ordinary(text)
        return list(chain.from_iterable(map(self._encoding.encode_ordinary, pieces)))

    def _allowed_pattern(self, allowed: Collection[str]) -> re.Pattern[str] | None:
        known = self._vocabulary.special_tokens
        if isinstance(allowed, str):
            if allowed != "all":
                raise ValueError(
                    f"allowed_special must be a set of names or 'all', got {allowed!r}; pass {{{allowed!r}}}")
            allowed = known.keys()
        for name in allowed:
            if name not in known:
                raise ValueError(f"{name!r} is not a special token of this tokenizer; it has {list(known)}")
        return special_pattern(allowed)


def _refuse_one_string(texts: Iterable[str]) -> None:
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of strings, not one string; pass [text]")


def _vocabulary(merges: Sequence[tuple[bytes, bytes]], special_tokens: Sequence[str]) -> Vocabulary:
    """Return the vocabulary in GPT-2's layout: bytes, merges, special tokens last."""
    ranks = {bytes([b]): i for i, b in enumerate(BYTE_ORDER)}
    ranks |= {left + right: 256 + i for i, (left, right) in enumerate(merges)}
    return Vocabulary(ranks, merges, {name: len(ranks) + i for i, name in enumerate(special_tokens)})


def _file(path: str | os.PathLike[str]) -> Path:
    return Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
