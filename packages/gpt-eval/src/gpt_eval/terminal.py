"""What reaches a person's terminal: no control character of a stranger's text does."""

import re
import sys

# C0 and C1 control characters and DEL, but for newline and tab: a terminal obeys them (colours, cursor, clipboard).
# Then lone surrogates, which no file takes, and what turns the direction of writing.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return ``text`` without what a terminal obeys; newlines and tabs stay."""
    return _OBEYED.sub("", text)


def say(text: str) -> None:
    """Print a line to stderr, where progress goes."""
    print(printable(text), file=sys.stderr, flush=True)
