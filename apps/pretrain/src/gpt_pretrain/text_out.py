"""Text on its way to a terminal: what a model wrote, and commands to type."""

import os
import re
import shlex
import subprocess

# C0 and C1 control characters and DEL, but for newline and tab: a terminal obeys them (colours, cursor,
# clipboard).
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return ``text`` without the control characters that a terminal obeys; newlines and tabs stay."""
    return _CONTROL.sub("", text)


def command_line(program: str, *arguments: str) -> str:
    """Return a command that can be pasted into a shell: of POSIX, or Windows' own."""
    quoted = subprocess.list2cmdline(arguments) if os.name == "nt" else shlex.join(arguments)
    return f"{program} {quoted}".rstrip()
