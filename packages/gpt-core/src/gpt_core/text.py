"""Between text and token ids, for a tokenizer that this package does not know (chapter 5)."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from gpt_core.engine import GeneratedToken

_END_OF_TEXT = "<|endoftext|>"


class SupportsEncode(Protocol):
    """What ``text_to_token_ids`` needs of a tokenizer; tiktoken's encodings have it too."""

    def encode(self, text: str, /, *, allowed_special: set[str]) -> list[int]:
        """Return the ids of a text, in which the named special tokens count as such."""
        ...


class SupportsDecode(Protocol):
    """What ``token_ids_to_text`` needs of a tokenizer."""

    def decode(self, ids: list[int], /) -> str:
        """Return the text of some ids."""
        ...


class SupportsDecodeBytes(Protocol):
    """What ``decode_stream`` needs of a tokenizer; tiktoken's encodings have it too."""

    def decode_bytes(self, ids: list[int], /) -> bytes:
        """Return the bytes of some ids: those of each id, one after the other."""
        ...


def text_to_token_ids(text: str, tokenizer: SupportsEncode) -> Tensor:
    """Return the ids of ``text`` as a batch of one row, int64 (1, T), ``<|endoftext|>`` as the control token.

    That is the book's contract, meant for prompts that a programmer writes. For text that somebody typed call
    ``tokenizer.encode(text)``, which never makes a control token of it. An empty text gives (1, 0).
    """
    return torch.tensor([tokenizer.encode(text, allowed_special={_END_OF_TEXT})], dtype=torch.int64)


def token_ids_to_text(token_ids: Tensor, tokenizer: SupportsDecode) -> str:
    """Return the text of ids (1, T) or (T,). Raises ValueError for any other shape: decode row by row."""
    if token_ids.ndim not in (1, 2) or (token_ids.ndim == 2 and len(token_ids) != 1):
        raise ValueError(
            f"token_ids must have shape (1, tokens) or (tokens,), got {tuple(token_ids.shape)}; "
            "decode the rows of a batch one by one"
        )
    return tokenizer.decode(token_ids.flatten().tolist())


def decode_stream(tokens: Iterable[GeneratedToken | int], tokenizer: SupportsDecodeBytes) -> Iterator[str]:
    """Yield the text of ``tokens`` piece by piece, as soon as whole characters are there; no piece is empty.

    A character may be spread over several tokens: its bytes are held back until it is complete. Bytes that
    are no UTF-8, an unfinished character at the end among them, become U+FFFD, as
    ``bytes.decode(errors="replace")`` does, so the pieces add up to the text of all bytes. A token with
    ``finish == "stop"`` ends the text and is not part of it. If ``tokens`` raises, what it held back is
    lost with it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if isinstance(token, GeneratedToken):
            if token.finish == "stop":
                break
            token = token.id
        if piece := decoder.decode(tokenizer.decode_bytes([token])):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece
