"""The command line: `gpt-spam train`, `classify`, `evaluate` and `serve`."""

import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import NoReturn

from gpt_spam.errors import BAD_DATA, FAILURE, NETWORK, RESOURCE, USAGE, SpamError
from gpt_spam.terminal import say

COMMANDS = {
    "train": "train a classifier on labelled texts and judge it on texts held out",
    "classify": "say of texts which class they belong to",
    "evaluate": "judge a classifier on labelled texts, each figure with its interval",
    "serve": "answer over HTTP, with a page to paste texts into",
}
"""Each is a module of this package with a class of that name, its settings, and a function ``run``."""
_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory")  # torch's words: of Linux, Windows, a GPU


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (None: this process's) and return its exit code.

    0 done; 1 failure; 2 usage; 3 bad input data; 4 network; 5 no room on disk or in memory; 130 and 143 after Ctrl-C
    and SIGTERM; 141 where nobody reads stdout any more. Results go to stdout, progress and the one sentence of an
    error to stderr.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal of another encoding
    try:
        with _ended_by_sigterm(), warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning, module=r"gpt_\w+")
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
            return _run(arguments)
    except SystemExit as stop:  # tyro has printed its help or what was wrong
        return stop.code if isinstance(stop.code, int) else USAGE
    except KeyboardInterrupt:
        say("gpt-spam: stopped")
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        say(f"gpt-spam: {_sentence(error, code)}")
        return code


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within it SIGTERM ends the command as Ctrl-C does, so that what is unfinished is cleaned up."""

    def stop(number: int, frame: object) -> NoReturn:
        say("gpt-spam: stopped")
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers nowhere else
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:9} {text}" for name, text in COMMANDS.items())
        print(
            f"usage: gpt-spam COMMAND ...\n\nA text classifier on your own machine.\n\n{lines}\n\n"
            "gpt-spam COMMAND --help shows the settings of each."
        )
        return 0 if arguments else USAGE
    name = arguments[0]
    if name == "--version":
        print(version("gpt-spam"))
        return 0
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise SpamError(f"unknown command {name!r}{hint}; there are {', '.join(COMMANDS)}", exit_code=USAGE)
    import tyro

    module = importlib.import_module(f"gpt_spam.{name}")  # here: a typo need not wait for torch
    settings = tyro.cli(getattr(module, name.capitalize()), args=arguments[1:], prog=f"gpt-spam {name}")
    return int(module.run(settings))


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of an error that a person can do something about, None for a fault of our own."""
    if isinstance(error, SpamError):
        return error.exit_code
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return RESOURCE
    if isinstance(error, ConnectionError):
        return NETWORK
    if isinstance(error, OSError):
        return RESOURCE if error.errno in _NO_ROOM else FAILURE
    names = {kind.__name__ for kind in type(error).__mro__}  # by name: importing the classes would import torch
    if names & {"DataError", "WeightsError"}:
        return BAD_DATA
    if names & {"CheckpointError", "FloatingPointError", "ImportError"}:
        return FAILURE
    return USAGE if isinstance(error, ValueError) else None  # our packages raise it for a value that a person gave


def _sentence(error: Exception, code: int) -> str:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return f"no room on disk: {error.strerror}; make room and start again"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    if code == RESOURCE and not isinstance(error, SpamError):
        reason = (str(error) or "MemoryError").partition("\n")[0]
        return f"not enough memory ({reason}); try a smaller --batch-size or model"
    return str(error)
