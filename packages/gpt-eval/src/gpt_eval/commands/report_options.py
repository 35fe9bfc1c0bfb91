"""What all commands share: a report that is printed, and saved where --out says, a place tried before the work."""

import argparse
import errno
import json
import tempfile
from pathlib import Path

from gpt_eval.figures import EvalReport
from gpt_eval.terminal import printable

NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
"""The numbers of an OSError that tells of a full disk."""


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --out and --json, which ``prepare_out`` and ``give_report`` read."""
    parser.add_argument("--out", type=Path, metavar="PATH", help="save it: a folder, or a file that ends in .json")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def prepare_out(options: argparse.Namespace) -> None:
    """Make the folder that --out needs and write there, as a report after hours of work will be.

    Raises ArgumentTypeError if that cannot be, or if another file than an older report would be replaced; OSError where
    there is no room.
    """
    if options.out is None:
        return
    target = options.out if options.out.suffix == ".json" else options.out / "report.json"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as file:
            file.write(b"report")
        if taken := [path for path in (target, target.with_suffix(".md")) if path.is_dir()]:
            raise IsADirectoryError(errno.EISDIR, f"{taken[0].name} is a folder there")
        if not _may_replace(target):
            raise FileExistsError(errno.EEXIST, "a file that is no report stands there")
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise argparse.ArgumentTypeError(
            f"--out {options.out} cannot be written ({error.strerror}); give a folder, or a file that ends in .json"
        ) from error


def _may_replace(target: Path) -> bool:
    """Whether nothing stands there but an older report: its JSON file and, beside that, its Markdown."""
    if not target.exists():
        return not target.with_suffix(".md").exists()
    try:
        found = json.loads(target.read_bytes())
    except ValueError:
        return False
    return isinstance(found, dict) and {"title", "figures", "facts"} <= set(found)


def give_report(report: EvalReport, options: argparse.Namespace) -> None:
    """Print the report and save it where --out says; where one of the two fails, the other is still done."""
    try:
        print(json.dumps(report.to_dict()) if options.json else printable(report.to_markdown()), flush=True)
    finally:
        if options.out is not None:
            report.save(options.out)
