"""Text to ids and back, and the stream that holds back unfinished characters."""

import codecs
import gc
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gpt_core.sequence import GeneratedToken
from gpt_core.text import TextStream, decode_stream, text_to_token_ids, token_ids_to_text


class ByteTokenizer:
    """Ids 0..255 are bytes, 256 is the control token: the smallest tokenizer there is."""

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        parts = text.split("<|endoftext|>") if "<|endoftext|>" in allowed_special else [text]
        ids = list(parts[0].encode("utf-8"))
        for part in parts[1:]:
            ids += [256, *part.encode("utf-8")]
        return ids

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(b"<|endoftext|>" if i == 256 else bytes([i]) for i in ids)

    def decode(self, ids: list[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


TOKENIZER = ByteTokenizer()


@given(st.text())
def test_token_ids_to_text_undoes_text_to_token_ids(text: str) -> None:
    ids = text_to_token_ids(text, TOKENIZER)
    assert ids.dtype == torch.int64
    assert ids.shape == (1, len(text.encode("utf-8")) - 12 * text.count("<|endoftext|>"))
    assert token_ids_to_text(ids, TOKENIZER) == text


def test_the_end_of_text_mark_becomes_the_control_token() -> None:
    assert text_to_token_ids("a<|endoftext|>b", TOKENIZER).tolist() == [[97, 256, 98]]


def test_empty_text_gives_int64_ids() -> None:
    ids = text_to_token_ids("", TOKENIZER)
    assert (ids.dtype, ids.shape) == (torch.int64, (1, 0))
    assert token_ids_to_text(ids, TOKENIZER) == ""


def test_ids_without_batch_axis_are_decoded_even_a_single_one() -> None:
    assert token_ids_to_text(torch.tensor([104, 105]), TOKENIZER) == "hi"
    assert token_ids_to_text(torch.tensor([104]), TOKENIZER) == "h"


@pytest.mark.parametrize("shape", [(), (2, 3), (0, 3), (1, 1, 1)])
def test_other_shapes_of_ids_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"token_ids must have shape \(1, tokens\) or \(tokens,\), got"):
        token_ids_to_text(torch.zeros(shape, dtype=torch.int64), TOKENIZER)


@given(st.binary(max_size=40))
def test_stream_pieces_add_up_to_pythons_own_decoding_of_all_bytes(data: bytes) -> None:
    pieces = list(decode_stream(data, TOKENIZER))  # iterating over bytes gives the ids
    assert "".join(pieces) == data.decode("utf-8", errors="replace")
    assert all(pieces)


@given(st.text())
def test_stream_of_text_yields_each_character_once_and_whole(text: str) -> None:
    assert list(decode_stream(text.encode("utf-8"), TOKENIZER)) == list(text)


def test_stream_yields_a_character_as_soon_as_its_last_byte_is_there() -> None:
    taken: list[int] = []

    def tokens() -> Iterator[int]:
        for byte in "é!".encode():
            taken.append(byte)
            yield byte

    pieces = decode_stream(tokens(), TOKENIZER)
    assert next(pieces) == "é"
    assert len(taken) == 2


def test_stream_leaves_the_stop_token_out_and_asks_for_no_more() -> None:
    def tokens() -> Iterator[GeneratedToken]:
        yield GeneratedToken(104, -0.1)
        yield GeneratedToken(256, -0.1, "stop")
        raise AssertionError("asked for a token after the stop token")

    assert list(decode_stream(tokens(), TOKENIZER)) == ["h"]


def test_stream_prints_the_last_token_of_a_full_length_answer() -> None:
    tokens = [GeneratedToken(104, -0.1), GeneratedToken(105, -0.1, "length")]
    assert "".join(decode_stream(tokens, TOKENIZER)) == "hi"


def test_stream_flushes_an_unfinished_character_at_the_end() -> None:
    assert list(decode_stream([0xE2, 0x82], TOKENIZER)) == ["\ufffd"]
    tokens = [GeneratedToken(0xE2, 0.0), GeneratedToken(256, 0.0, "stop")]
    assert list(decode_stream(tokens, TOKENIZER)) == ["\ufffd"]


class Chunks:
    """A tokenizer whose id i is the i-th of some byte strings: any way to cut a text into tokens."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self.chunks = chunks

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(self.chunks[i] for i in ids)

    def stream(self, stop: Sequence[str]) -> TextStream:
        return decode_stream(range(len(self.chunks)), self, stop=stop)


# Few characters, so that stop strings are found often; half of an "é" and bytes that are no UTF-8 among them.
CHUNKS = st.lists(
    st.lists(st.sampled_from([b"a", b"b", b"\xc3", b"\xa9", b"\xff", "é".encode()]), max_size=4).map(b"".join),
    max_size=12,
)
STOPS = st.lists(st.text("abé\ufffd", min_size=1, max_size=4), max_size=4)


def first_completed(text: str, stop: Sequence[str]) -> tuple[int, int] | None:
    """Return (end, start) of the stop string in ``text`` that is complete first, the longest of several."""
    return min(((text.find(s) + len(s), text.find(s)) for s in stop if s in text), default=None)


@given(chunks=CHUNKS, stop=STOPS)
def test_stream_ends_before_the_first_stop_string_wherever_the_tokens_are_cut(
    chunks: list[bytes], stop: list[str]
) -> None:
    text = b"".join(chunks).decode("utf-8", errors="replace")
    found = first_completed(text, stop)
    stream = Chunks(chunks).stream(stop)
    pieces = list(stream)
    assert "".join(pieces) == (text if found is None else text[: found[1]])
    assert all(pieces)
    assert stream.finish == (None if found is None else "stop")
    if not any(s in longer[1:] for s in stop for longer in stop):
        # The plain reading, equal unless a stop string lies within another one and not at its beginning.
        assert "".join(pieces) == text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def so_far(chunks: Sequence[bytes]) -> str:
    """Return the text of bytes that go on: without the character that is not complete yet."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(b"".join(chunks))


@given(chunks=CHUNKS, stop=STOPS)
def test_stream_closes_the_tokens_at_the_first_one_that_completes_a_stop_string(
    chunks: list[bytes], stop: list[str]
) -> None:
    is_closed = False

    def tokens() -> Iterator[int]:
        nonlocal is_closed
        try:
            yield from range(len(chunks))
        finally:
            is_closed = True

    stream = decode_stream(tokens(), Chunks(chunks), stop=stop)
    list(stream)
    assert is_closed
    counts = range(1, len(chunks) + 1)
    completing = (n for n in counts if first_completed(so_far(chunks[:n]), stop) is not None)
    assert stream.n_tokens == next(completing, len(chunks))


@given(chunks=CHUNKS, stop=STOPS)
def test_stream_holds_back_only_what_could_begin_a_stop_string(chunks: list[bytes], stop: list[str]) -> None:
    text = so_far(chunks)
    assume(first_completed(text, stop) is None)

    def tokens() -> Iterator[int]:
        yield from range(len(chunks))
        raise RuntimeError("out of memory")

    stream, pieces = decode_stream(tokens(), Chunks(chunks), stop=stop), []

    def read() -> None:
        for piece in stream:
            pieces.append(piece)

    with pytest.raises(RuntimeError, match="out of memory"):
        read()
    beginnings = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    assert "".join(pieces) == text[: len(text) - max(beginnings, default=0)]
    assert list(stream) == []  # after an error there is no more, what was held back included


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("aaab!", ["aab"], "a"),  # the candidate that began first fails, a later one that overlaps it does not
        ("ababac", ["abac"], "ab"),
        ("end.\nUser: hi", ["\nUser:"], "end."),
        ("xSTOPPED", ["STOPPED", "STOP"], "x"),
        ("xSTOPPED", ["STOP", "STOPPED"], "x"),
        ("xabcdx", ["abcd", "bc"], "xa"),  # bc is complete before abcd is
        ("xabcx", ["bc", "abc"], "x"),  # complete at once: the longest
        ("stop", ["stop"], ""),
        ("a\U0001f600b", ["\U0001f600"], "a"),
    ],
)
def test_stop_strings_by_example(text: str, stop: list[str], expected: str) -> None:
    for width in (1, 2, 3, 100):
        data = text.encode("utf-8")
        stream = Chunks([data[i : i + width] for i in range(0, len(data), width)]).stream(stop)
        assert "".join(stream) == expected
        assert stream.finish == "stop"


def test_stream_gives_each_piece_with_the_token_that_makes_it_certain() -> None:
    stream = Chunks([b"ab", b"c#", b"d", b"##", b"e#", b"", b"#f"]).stream(["###"])
    pieces = [(piece, stream.n_tokens) for piece in stream]
    assert pieces == [("ab", 1), ("c", 2), ("#d", 3), ("##e", 5), ("##f", 7)]


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_stream_says_how_the_text_ended_and_how_many_tokens_it_took(finish: Any) -> None:
    tokens = [GeneratedToken(104, -0.1), GeneratedToken(105, -0.1, finish), GeneratedToken(106, -0.1)]
    stream = decode_stream(tokens, TOKENIZER, stop=["iii"])
    assert (stream.finish, stream.n_tokens) == (None, 0)
    assert "".join(stream) == ("h" if finish == "stop" else "hi")
    assert (stream.finish, stream.n_tokens) == (finish, 2)


def test_a_stop_string_that_the_last_token_completes_counts_as_a_stop() -> None:
    stream = decode_stream([GeneratedToken(104, -0.1, "length")], TOKENIZER, stop=["h"])
    assert list(stream) == []
    assert stream.finish == "stop"


def test_an_abandoned_stream_lets_go_of_the_tokens() -> None:
    is_closed = False

    def tokens() -> Iterator[int]:
        nonlocal is_closed
        try:
            yield from b"hello"
        finally:
            is_closed = True

    stream = decode_stream(tokens(), TOKENIZER, stop=["x"])
    assert next(stream) == "h"
    gc.disable()  # the cache of a model must not wait for the garbage collector
    try:
        del stream
        assert is_closed
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("stop", "what"),
    [
        ("###", r"stop must be a list of strings, got '###'$"),
        (None, r"stop must be a list of strings, got None$"),
        ([""], r"stop must hold strings of at least one character, got ''$"),
        (["a", 5], r"stop must hold strings of at least one character, got 5$"),
        (["a", b"b"], r"stop must hold strings of at least one character, got b'b'$"),
        (["a"] * 17, r"stop may hold 16 strings, got 17"),
    ],
)
def test_bad_stop_strings_are_refused_before_a_token_is_read(stop: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        decode_stream([], TOKENIZER, stop=stop)
