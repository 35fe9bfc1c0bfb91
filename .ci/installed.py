"""Check that packages are installed whole: installed.py SOURCE_FOLDER..., run by their environment's Python.

Each package is imported from the environment, not from its source; every file of the source is there, data
and py.typed included; each command of the package answers to --help.
"""

import importlib
import io
import sys
from contextlib import redirect_stdout
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path


def missing_files(source: Path) -> list[str]:
    """Return the files of a package's source folder that its installed copy lacks."""
    package = importlib.import_module(source.name)
    installed = Path(str(package.__file__)).parent
    if not installed.is_relative_to(sys.prefix):
        return [f"{source.name} comes from {installed}, not from the environment {sys.prefix}"]
    files = [file for file in source.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    absent = [file for file in files if not (installed / file.relative_to(source)).is_file()]
    return [f"{source.name} lacks {file.relative_to(source)}" for file in absent]


def exit_status_of_help(command: EntryPoint) -> object:
    """Return what ``command --help`` exits with, without showing the help."""
    try:
        with redirect_stdout(io.StringIO()):
            return command.load()(["--help"])
    except SystemExit as done:
        return done.code


if __name__ == "__main__":
    sources = [Path(argument) for argument in sys.argv[1:] if Path(argument, "__init__.py").is_file()]
    faults = [fault for source in sources for fault in missing_files(source)]
    for script in entry_points(group="console_scripts"):
        if script.module.split(".")[0] in {source.name for source in sources} and exit_status_of_help(script):
            faults.append(f"{script.name} --help fails")
    print("installed from their wheels:", *(source.name for source in sources))
    sys.exit("\n".join(faults) if faults or not sources else 0)
