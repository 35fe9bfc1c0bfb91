"""Between text and token ids, for a tokenizer that this package does not know (chapter 5)."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gpt_core.sequence import GeneratedToken

_END_OF_TEXT = "<|endoftext|>"
_MOST_STOP_STRINGS = 16


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


def decode_stream(
    tokens: Iterable[GeneratedToken | int], tokenizer: SupportsDecodeBytes, *, stop: Sequence[str] = ()
) -> TextStream:
    """Return an iterator over the text of ``tokens``, piece by piece; no piece is empty.

    A piece comes as soon as it is certain. A character may be spread over several tokens: its bytes are held
    back until it is complete. Bytes that are no UTF-8, an unfinished character at the end among them, become
    U+FFFD, as ``bytes.decode(errors="replace")`` does, so the pieces add up to the text of all bytes. A token
    with ``finish == "stop"`` ends the text and is not part of it.

    So does each string of ``stop``, wherever the borders of its tokens are: the text ends before the first one
    that is complete (the longest, if one character completes several), no further token is asked for, and
    ``tokens`` is closed if it can be. What could be the beginning of a stop string is held back until it is
    one, is none, or the tokens end.

    Raises ValueError at once unless ``stop`` is a list or tuple of at most 16 strings, none of them empty. If
    ``tokens`` raises, what was held back is lost with it.
    """
    return TextStream(tokens, tokenizer, stop=stop)


class TextStream(Iterator[str]):
    """What ``decode_stream`` returns: iterate over it for the text, then ask it how the text ended."""

    finish: Literal["stop", "length"] | None
    """"stop": a stop string or a stop token ended the text. "length": the last token says so. None: there is
    more to come, or the tokens ended without a reason."""

    n_tokens: int
    """How many tokens were read so far, a stop token and those of a stop string included."""

    def __init__(
        self, tokens: Iterable[GeneratedToken | int], tokenizer: SupportsDecodeBytes, *, stop: Sequence[str]
    ) -> None:
        self.finish, self.n_tokens = None, 0
        self._stops = [_StopString(text) for text in _checked_stop(stop)]
        self._tokens, self._tokenizer = iter(tokens), tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # the end of the text so far that could begin a stop string
        self._is_over = False

    def __next__(self) -> str:
        while not self._is_over:
            self._is_over = True  # unless this token turns out to be neither the last one nor an error
            if piece := self._read():
                return piece
        raise StopIteration

    def _read(self) -> str:
        """Take one token and return the text that is certain now, which may be none."""
        data, is_last = b"", True
        token = next(self._tokens, None)
        if token is not None:
            self.n_tokens += 1
            if isinstance(token, GeneratedToken):
                self.finish = token.finish
                token = token.id
            if self.finish != "stop":
                data = self._tokenizer.decode_bytes([token])
            is_last = self.finish is not None
        text = self._held + self._decoder.decode(data, final=is_last)
        for end in range(len(self._held) + 1, len(text) + 1):
            # A list: each stop string has to see each character.
            if completed := [len(stop.text) for stop in self._stops if stop.is_completed_by(text[end - 1])]:
                self.finish = "stop"
                if callable(close := getattr(self._tokens, "close", None)):
                    close()
                return text[: end - max(completed)]
        n_held = 0 if is_last else max((stop.n_matched for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        self._is_over = is_last
        return text[: len(text) - n_held]


class _StopString:
    """Finds a string in a text that comes character by character (Knuth, Morris and Pratt 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.n_matched = 0  # the longest beginning of the string that the text so far ends in
        # Of each beginning of the string: how long the longest shorter one is that it ends in.
        self._shorter = [0]
        for character in text[1:]:
            self._shorter.append(self._extended(self._shorter[-1], character))

    def is_completed_by(self, character: str) -> bool:
        """Take the text's next character; not to be called again after it returned True."""
        self.n_matched = self._extended(self.n_matched, character)
        return self.n_matched == len(self.text)

    def _extended(self, n: int, character: str) -> int:
        """Return how long the beginning is that the first ``n`` characters and this one end in."""
        while n and self.text[n] != character:
            n = self._shorter[n - 1]
        return n + (self.text[n] == character)


def _checked_stop(stop: Any) -> Sequence[str]:
    """Return the stop strings, or raise ValueError."""
    if not isinstance(stop, list | tuple):
        raise ValueError(f"stop must be a list of strings, got {stop!r}")
    if len(stop) > _MOST_STOP_STRINGS:
        raise ValueError(f"stop may hold {_MOST_STOP_STRINGS} strings, got {len(stop)}; leave some out")
    for text in stop:
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop must hold strings of at least one character, got {text!r}")
    return stop
