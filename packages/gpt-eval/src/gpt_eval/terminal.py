"""What reaches a person, in a terminal or a report: no character of a stranger's text that is obeyed or hidden does."""

import re
import sys

# C0 and C1 control characters and DEL, but for newline and tab: a terminal obeys them (colours, cursor, clipboard).
# Then what turns the direction of writing; line and paragraph separators; lone surrogates, which no file takes; and
# tags, ASCII that nobody sees.
_DROPPED = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """Return ``text`` without what a terminal obeys and what nobody sees; newlines and tabs stay."""
    return _DROPPED.sub("", text)


def say(text: str) -> None:
    """Print a line to stderr, where progress goes."""
    print(printable(text), file=sys.stderr, flush=True)
