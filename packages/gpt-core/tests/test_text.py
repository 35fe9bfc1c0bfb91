"""Text to ids and back, and the stream that holds back unfinished characters."""

from collections.abc import Collection, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.generate import GeneratedToken
from gpt_core.text import decode_stream, text_to_token_ids, token_ids_to_text


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
