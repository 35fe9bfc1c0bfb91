"""The one exception of this app: a sentence for people, and the exit code that goes with it."""

FAILURE, USAGE, BAD_DATA, NETWORK, RESOURCE = 1, 2, 3, 4, 5


class SpamError(ValueError):
    """A fault that ends the command: ``str(error)`` is one sentence that names value, rule and way out.

    ``exit_code``: 1 failure (the default), 2 usage, 3 bad input data, 4 network, 5 resource (disk, memory).
    """

    def __init__(self, message: str, *, exit_code: int = FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code
