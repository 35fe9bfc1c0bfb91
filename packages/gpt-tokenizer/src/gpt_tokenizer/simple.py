"""Chapter 2's word tokenizers: a dictionary of words, no subwords, a round trip that loses spacing.

They show what a tokenizer is. For a model use ``BPETokenizer``, which takes any text and gives it back whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_UNKNOWN = "<|unk|>"
_MARKS = r""",.:;?_!"()'"""
# A double hyphen, one of the marks, or a longest run without whitespace, marks and double hyphens.
_ITEM = re.compile(rf"--|[{_MARKS}]|(?:(?!--)[^\s{_MARKS}])+")


def build_vocab(text: str, *, special_tokens: Iterable[str] = ()) -> dict[str, int]:
    """Return an id for each word and mark of ``text``, from 0 in sorted order, then for ``special_tokens``.

    Chapter 2 calls it with ``special_tokens=("<|endoftext|>", "<|unk|>")`` for ``SimpleTokenizerV2``. Raises
    ValueError if a special token is already an item of the text or is given twice: it would have two ids.
    """
    vocab = {item: i for i, item in enumerate(sorted(set(_ITEM.findall(text))))}
    for token in special_tokens:
        if token in vocab:
            raise ValueError(f"special token {token!r} is in the vocabulary already; give it another name")
        vocab[token] = len(vocab)
    return vocab


class SimpleTokenizerV1:
    """Maps the words and marks of a text to ids and refuses what it does not know.

    ``vocab`` maps each item to its id, as ``build_vocab`` makes it; it is kept as ``str_to_int``, its inverse
    as ``int_to_str``.
    """

    _closing = re.compile(r"""\s+([,.?!"()'])""")

    def __init__(self, vocab: Mapping[str, int]) -> None:
        self.str_to_int = vocab
        self.int_to_str = {i: item for item, i in vocab.items()}

    def encode(self, text: str) -> list[int]:
        """Return the id of each word and mark. Raises KeyError for one that is not in the vocabulary."""
        try:
            return [self.str_to_int[item] for item in _ITEM.findall(text)]
        except KeyError as error:
            raise KeyError(
                f"{error.args[0]!r} is not among the {len(self.str_to_int)} items of the vocabulary; "
                f"SimpleTokenizerV2 maps such words to {_UNKNOWN}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Return the items joined by spaces, none before closing marks (``It's`` comes back as ``It' s``)."""
        try:
            text = " ".join([self.int_to_str[int(i)] for i in ids])
        except KeyError as error:
            raise KeyError(
                f"id {error.args[0]} is not in the vocabulary of {len(self.int_to_str)} items") from None
        return self._closing.sub(r"\1", text)


class SimpleTokenizerV2(SimpleTokenizerV1):
    """As ``SimpleTokenizerV1``, but an unknown item becomes ``<|unk|>``, and ``:`` and ``;`` close up too.

    The vocabulary needs ``<|unk|>`` as soon as a text holds an unknown item.
    """

    _closing = re.compile(r"""\s+([,.:;?!"()'])""")

    def encode(self, text: str) -> list[int]:
        """Return the id of each word and mark, of ``<|unk|>`` for unknown ones (KeyError if it has none)."""
        items = _ITEM.findall(text)
        if _UNKNOWN not in self.str_to_int:
            unknown = next((item for item in items if item not in self.str_to_int), None)
            if unknown is not None:
                raise KeyError(
                    f"{unknown!r} is unknown and the vocabulary has no {_UNKNOWN}; "
                    f"build it with build_vocab(text, special_tokens=('<|endoftext|>', '{_UNKNOWN}'))")
        return [self.str_to_int[item if item in self.str_to_int else _UNKNOWN] for item in items]
