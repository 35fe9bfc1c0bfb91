import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_eval import markdown_cell

PIECES = [
    "a", " ", "\n", "\r\n", "\t", "\x00", "\x1b[31m", "\u202e", "\ud800", "|", "\\", "`", "``", "*", "**", "_", "~~",
    "~", "$", "$$", "^", "[", "]", "(x)", "![", "[^1]", "<b>", "</td>", "<!--", "-->", "<https://x.y>", "&", "&amp;",
    "&#124;", "<img src=https://x.y/z>", "https://x.y", "www.x.y", "WWW.x.y", "a@x.y", "@name", "mailto:a@x.y", "- ",
    "# ", "日本", "\u200e", "\u061c", "\u2028", "\U000e0041",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("ham", "ham"),
        ("日本 2+2=4, 50 %!", "日本 2+2=4, 50 %!"),
        ("<b>&lt;", "&lt;b&gt;&amp;lt;"),
        ("**bold** `c` ~~x~~", r"\*\*bold\*\* \`c\` \~\~x\~\~"),
        ("$x$", "&#36;x&#36;"),
        (r"a|b\|", r"a\|b\\\|"),
        ("![x](y)", r"!\[x\](y)"),
        ("https://x.y", "https:&#8203;//x.y"),
        ("WWW.x.y www", "WWW&#8203;.x.y www"),
        ("a@x.y", "a@&#8203;x.y"),
        (" two\r\n\tlines\u2028end ", "two lines end"),
        ("a\x00\x1b\x7f\x9b\u202e\u2066\ud800b", "ab"),
        ("a\u061c\u200e\u200f\U000e0001\U000e0041\U000e007fb", "ab"),
        ("a \x00 b\rc\u2029d", "a b c d"),
        ("w\x00ww.x", "www&#8203;.x"),
        ("", ""),
    ],
)
def test_text_becomes_an_inert_cell(text, cell):
    assert markdown_cell(text) == cell


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=8).map("".join)))
def test_a_table_shows_any_text_as_it_is_in_a_cell_of_its_own(text):
    markdown_it = pytest.importorskip("markdown_it", reason="needs markdown-it-py")
    reader = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    page = reader.render(f"| a | b |\n| --- | --- |\n| {markdown_cell(text)} | left |\n| below | right |\n")

    shown, *others = re.findall("<td>(.*?)</td>", page, re.DOTALL)
    assert others == ["left", "below", "right"]
    assert "<" not in shown
    dropped = re.compile(
        "[\0-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]"
    )
    plain = "".join(c for c in text if c.isspace() or not dropped.match(c))
    seen = html.unescape(shown).replace("\u200b", "")
    assert seen.split() == plain.replace("\u200b", "").split()
    assert not re.search(r"(?i)://|www\.|@\w", html.unescape(shown))
