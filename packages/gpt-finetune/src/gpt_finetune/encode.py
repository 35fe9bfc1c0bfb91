"""Token ids of a text in which nothing is special, from whichever tokenizer there is."""

import re
from typing import Protocol

_DIGIT = re.compile(r"\d")


class SupportsEncode(Protocol):
    """What is needed of a tokenizer; this project's and tiktoken's encodings have it."""

    def encode(self, text: str, /) -> list[int]:
        """Return the ids of a text."""
        ...


def encode_text(tokenizer: SupportsEncode, text: str) -> list[int]:
    """Return the ids of ``text``, in which a special token's name, such as ``<|endoftext|>``, is ordinary text.

    tiktoken's ``encode`` raises on such a text; its ``encode_ordinary`` does not, and goes first where there is one.
    """
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    return list(encode(text))


def fold(text: str) -> str:
    """Return ``text`` without case (Unicode's case folding) and with every digit as 0."""
    return _DIGIT.sub("0", text.casefold())
