"""The command line: `gpt-pretrain`, `gpt-pretrain prepare` and `gpt-pretrain sample`."""

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from typing import TypeVar

from gpt_pretrain.errors import BAD_DATA, FAILURE, RESOURCE, USAGE, PretrainError, nearest
from gpt_pretrain.progress import say
from gpt_pretrain.signals import Interrupted
from gpt_pretrain.text_out import command_line

Config = TypeVar("Config")

COMMANDS = ("prepare", "sample")
"""Words that a command line may begin with; without one it trains."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, the person's share of it, or what one file may take (``ulimit -f``) is full."""
NO_MEMORY = ("allocate memory", "not enough memory", "out of memory")
"""Words in torch's messages, whose type is RuntimeError: of Linux and macOS, of Windows, of a GPU."""


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
        with _warnings_as_lines():
            if _is_training(arguments):
                return _train(arguments)
            return {"prepare": _prepare, "sample": _sample}[arguments[0]](arguments[1:])
    except SystemExit as stop:  # tyro has printed its help or what was wrong
        return stop.code if isinstance(stop.code, int) else USAGE
    except Interrupted as interrupted:
        say(f"gpt-pretrain: {interrupted}; {_way_on(arguments)}")
        return interrupted.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        say(f"gpt-pretrain: {_sentence(error, way_on=_way_on(arguments))}")
        return code


def _is_training(arguments: list[str]) -> bool:
    return not (arguments and arguments[0] in COMMANDS)


def _train(arguments: list[str]) -> int:
    import tyro

    from gpt_pretrain.config import (
        PretrainConfig,  # brings torch, as the model's and the loop's settings live there
    )
    from gpt_pretrain.recipes import load_recipe, recipe_names

    defaults, notes = load_recipe(_recipe(arguments))
    lines = [f"  {name:12} {load_recipe(name)[1]['about']}" for name in recipe_names()]
    description = "\n".join(
        [
            "Train a GPT from raw text and let it write. Without arguments: the recipe quick.",
            "Further commands: gpt-pretrain prepare --help, gpt-pretrain sample --help.",
            "",
            "Recipes:",
            *lines,
        ]
    )
    prog = "gpt-pretrain"
    config = _parsed(
        lambda: tyro.cli(
            PretrainConfig,
            args=arguments,
            default=defaults,
            prog=prog,
            description=description,
            return_unknown_args=True,
        ),
        prog=prog,
    )
    from gpt_pretrain.run import train_command

    return train_command(config, needs_data=notes.get("needs_data"), command=_typed(arguments))


def _prepare(arguments: list[str]) -> int:
    import tyro

    from gpt_pretrain.prepare_command import PrepareConfig, prepare_command

    prog = "gpt-pretrain prepare"
    config = _parsed(lambda: tyro.cli(PrepareConfig, args=arguments, prog=prog, return_unknown_args=True), prog=prog)
    return prepare_command(config)


def _sample(arguments: list[str]) -> int:
    import tyro

    from gpt_pretrain.sample import SampleConfig, sample_command

    prog = "gpt-pretrain sample"
    config = _parsed(lambda: tyro.cli(SampleConfig, args=arguments, prog=prog, return_unknown_args=True), prog=prog)
    return sample_command(config)


def _parsed(parse: Callable[[], tuple[Config, list[str]]], *, prog: str) -> Config:
    """Return the config that ``parse`` returns; a value that breaks a rule, or what is left over, is a usage error."""
    try:
        config, unknown = parse()
    except ValueError as error:
        raise PretrainError(str(error), exit_code=USAGE) from None
    if unknown:
        raise PretrainError(f"{_unknown(unknown[0], config, prog=prog)}; see {prog} --help", exit_code=USAGE)
    return config


def _unknown(argument: str, config: object, *, prog: str) -> str:
    """Return what is wrong with an argument that no setting of ``config`` takes."""
    if argument.startswith("-"):
        settings = dict(vars(config))
        for value in vars(config).values():
            settings |= vars(value) if is_dataclass(value) else {}
        option = argument.partition("=")[0]
        return f"unknown option {option!r}{nearest(option, ['--' + name.replace('_', '-') for name in settings])}"
    if prog == "gpt-pretrain":
        commands = " and ".join(COMMANDS)
        return (
            f"unknown command {argument!r}{nearest(argument, COMMANDS)}: the commands are {commands}, "
            f"and without one it trains"
        )
    return f"unexpected argument {argument!r}"


def _recipe(arguments: list[str]) -> str:
    """Return the recipe named in ``arguments``: it gives the defaults of the others."""
    name = "quick"
    for at, argument in enumerate(arguments):
        if argument == "--recipe" and at + 1 < len(arguments):
            name = arguments[at + 1]
        elif argument.startswith("--recipe="):
            name = argument.removeprefix("--recipe=")
    return name


def _typed(arguments: list[str]) -> str:
    """Return the command line as the person typed it, without --resume."""
    program = "uv run gpt-pretrain" if "UV_RUN_RECURSION_DEPTH" in os.environ else "gpt-pretrain"
    return command_line(program, *(argument for argument in arguments if argument != "--resume"))


def _way_on(arguments: list[str]) -> str:
    """Return what to type to get what ``arguments`` asked for after all."""
    if _is_training(arguments):
        return f"go on with: {_typed(arguments)} --resume"
    return f"start again with: {_typed(arguments)}"


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of an error that a person can do something about, None for a fault of our own."""
    if isinstance(error, PretrainError):
        return error.exit_code
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return RESOURCE
    if isinstance(error, OSError):
        return RESOURCE if error.errno in NO_ROOM else FAILURE
    if isinstance(error, FloatingPointError):
        return FAILURE
    # By name: importing the classes would import torch, for a typo too.
    if type(error).__name__ == "CheckpointError":
        return FAILURE
    if type(error).__name__ == "DataError":
        return BAD_DATA
    return None


def _sentence(error: Exception, *, way_on: str) -> str:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"no room on disk: {error.strerror}; nothing saved before is lost: make room, then {way_on}"
    if isinstance(error, FloatingPointError):  # the same settings would lead there again
        return (
            f"{str(error).partition(';')[0]}; checkpoints saved before are kept: train again with a lower --lr "
            f"or more --warmup-steps, in another folder by --out"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    if _exit_code(error) == RESOURCE and not isinstance(error, PretrainError):
        reason = (str(error) or "MemoryError").partition("\n")[0]
        return f"not enough memory ({reason}); try a smaller --batch-size or model"
    return str(error)


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show our packages' warnings to the person, one line each, without the source line Python adds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"gpt_\w+")
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        yield
