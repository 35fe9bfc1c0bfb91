"""What every tokenizer of this package can do."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from os import PathLike
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back; ``BPETokenizer`` and ``GPT2Tokenizer`` are ones."""

    @property
    def n_vocab(self) -> int:
        """Return the largest id plus one: the width of an embedding that takes every id."""

    @property
    def eot_token(self) -> int:
        """Return the id of ``<|endoftext|>``, which ends a document."""

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        """Return the ids of ``text``; a special token's name is ordinary text unless it is allowed."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``, with U+FFFD where the bytes are not valid UTF-8."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ``ids``, which may end within a character."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write a ``tokenizer.json`` to ``path``."""
