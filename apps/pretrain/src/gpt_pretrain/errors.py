"""The one exception of this app: a sentence for people, and the exit code that goes with it."""

import difflib
from collections.abc import Sequence

FAILURE, USAGE, BAD_DATA, NETWORK, RESOURCE = 1, 2, 3, 4, 5


class PretrainError(ValueError):
    """A fault that ends the command: ``str(error)`` is one sentence that names value, rule and way out.

    ``exit_code``: 1 failure (the default), 2 usage, 3 bad input data, 4 network,
    5 resource (disk, memory).
    """

    def __init__(self, message: str, *, exit_code: int = FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(value: str, known: Sequence[str]) -> str:
    """Return the part of a sentence that names what of ``known`` was probably meant, "" if nothing is near."""
    found = difflib.get_close_matches(value, known, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
