"""Token ids of a text in which nothing is special, from whichever tokenizer there is."""

from typing import Protocol


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
