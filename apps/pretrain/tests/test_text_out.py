import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.text_out import printable


@given(text=st.text())
def test_no_control_character_but_newline_and_tab_reaches_a_terminal(text):
    shown = printable(text)
    assert all(unicodedata.category(c) != "Cc" or c in "\n\t" for c in shown)
    assert shown == "".join(c for c in text if unicodedata.category(c) != "Cc" or c in "\n\t")


def test_a_command_to_the_terminal_becomes_harmless_text():
    assert printable("\x1b]0;title\x07\x1b[31mred\x9b2J\r") == "]0;title[31mred2J"
