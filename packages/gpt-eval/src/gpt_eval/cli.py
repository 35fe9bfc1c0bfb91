"""The command line: ``gpt-eval judge``, ``compare``, ``perplexity`` and ``harness``."""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import NoReturn

from gpt_eval.commands.report_options import NO_ROOM
from gpt_eval.terminal import say

FAILURE, USAGE, BAD_DATA, NETWORK, RESOURCE = 1, 2, 3, 4, 5
COMMANDS = {
    "judge": "let a judge score a model's answers",
    "compare": "compare two models' answers to the same instructions",
    "perplexity": "measure how well a model predicts a text",
    "harness": "run tasks of lm-eval on a model",
}
"""Each is a module of ``gpt_eval.commands`` with SUMMARY, ``add_arguments(parser)`` and ``run(options) -> int``."""
_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory")  # torch's words: of Linux, Windows, a GPU


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (None: this process's) and return its exit code.

    0 done; 1 failure; 2 usage; 3 bad input data; 4 network; 5 no room on disk or in memory; 130 and 143 after Ctrl-C
    and SIGTERM; 141 where nobody reads stdout any more. Results go to stdout, progress and the one sentence of an error
    to stderr. Of a command's errors ValueError is bad input data, argparse.ArgumentTypeError usage.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal of another encoding
    try:
        with _ended_by_sigterm(), warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning, module=r"gpt_\w+")
            warnings.showwarning = lambda message, *_, **__: say(f"gpt-eval: warning: {message}")
            return _run(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as stop:  # argparse has printed its help or what was wrong; or SIGTERM came
        return stop.code if isinstance(stop.code, int) else USAGE
    except KeyboardInterrupt:
        say("gpt-eval: stopped")
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        say(f"gpt-eval: {_sentence(error)}")
        return code


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gpt-eval",
        description="Judge a model honestly: each number with its count and its interval.",
        epilog="gpt-eval COMMAND --help shows the settings of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("gpt-eval"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name in arguments[:1]:  # the others stay unread: a judge need not wait for torch
            module = importlib.import_module(f"gpt_eval.commands.{name}")
            command.description = module.SUMMARY
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    return int(options.run(options))


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within it SIGTERM ends the command as Ctrl-C does, so that what is unfinished is cleaned up."""

    def stop(number: int, frame: object) -> NoReturn:
        say("gpt-eval: stopped")
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers nowhere else
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of an error that a person can do something about, None for a fault of our own."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return RESOURCE
    if isinstance(error, ConnectionError):
        return NETWORK
    if isinstance(error, OSError):
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            return BAD_DATA
        return RESOURCE if error.errno in NO_ROOM else FAILURE
    if isinstance(error, argparse.ArgumentTypeError):
        return USAGE
    names = {kind.__name__ for kind in type(error).__mro__}  # by name: importing the class would import torch
    if names & {"CheckpointError", "ImportError"}:
        return FAILURE
    return BAD_DATA if isinstance(error, ValueError) else None


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"no room on disk: {error.strerror}; make room and start again"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    if isinstance(error, MemoryError) and not str(error):
        return "not enough memory; free some, or give a smaller model or file"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
