"""Any text as one cell of a Markdown table (CommonMark with GitHub's extensions)."""

import html
import re

from gpt_eval.terminal import printable

_MARKS = re.compile(r"[\\`*_~^\[\]|]")
# https://, www., name@host, @name: made clickable in the finished text, too, where no escape is left.
_CLICKABLE = re.compile(r":(?=//)|www(?=\.)|@", re.IGNORECASE)


def markdown_cell(text: str) -> str:
    """Return any text, a stranger's too, so that a Markdown table shows it as it is: one line, no markup, no link.

    White space becomes single spaces, control characters are dropped, marks and HTML are escaped, and a space of no
    width (U+200B) parts what GitHub would make clickable.
    """
    spaced = " ".join(text.split())  # first: some of what is dropped is white space, which parts words
    line = " ".join(printable(spaced).split())
    escaped = _MARKS.sub(r"\\\g<0>", html.escape(line, quote=False)).replace("$", "&#36;")  # \$ may be mathematics
    return _CLICKABLE.sub(r"\g<0>&#8203;", escaped)
