"""Text that a model wrote, on the way to a terminal."""

import re

# C0 and C1 control characters and DEL, but for newline and tab: a terminal obeys them (colours, cursor,
# clipboard).
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return ``text`` without the control characters that a terminal obeys; newlines and tabs stay."""
    return _CONTROL.sub("", text)
