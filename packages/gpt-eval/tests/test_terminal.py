import unicodedata

import pytest

from gpt_eval.terminal import printable

KEPT = "a\tb\n\u65e5\u672c \u05d0 \u0639 \u200b e\u0301 \U0001f600"


def test_plain_text_of_any_script_stays():
    assert printable(KEPT) == KEPT


@pytest.mark.parametrize(
    "of_stranger",
    [
        "\x1b", "\r", "\x00", "\x7f", "\x9b", "\ud800", "\u061c", "\u200e", "\u200f", "\u2028", "\u2029", "\u202e",
        "\u2066", "\U000e0001", "\U000e0020", "\U000e0041", "\U000e007f",
    ],
)  # fmt: skip
def test_what_is_obeyed_or_hidden_is_dropped(of_stranger):
    assert printable(f"a{of_stranger}b") == "ab"


def test_all_that_turns_the_direction_of_writing_is_dropped():
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    found = [chr(code) for code in range(0x110000) if unicodedata.bidirectional(chr(code)) in turning]
    assert len(found) == 9
    assert printable("".join(found)) == ""
