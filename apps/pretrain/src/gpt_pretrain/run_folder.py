"""A run's folder: what it holds, what makes two runs the same, and what may be done with it.

RUN/run.json  data/  step-NNNNNNNN/ ...  metrics.jsonl     and at the end  loss.png  README.md
"""

import json
import platform
from collections.abc import Mapping
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt_pretrain.data_folder import SUMMARY, UNFINISHED, foreign, write_json
from gpt_pretrain.errors import PretrainError
from gpt_pretrain.lock import is_lock_file

FORMAT = "gpt-pretrain/run-1"
RECORD, DATA, METRICS, PLOT, README = "run.json", "data", "metrics.jsonl", "loss.png", "README.md"


class Found(Enum):
    """What a run's folder was found to hold."""

    NOTHING = "nothing"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after ``step`` steps."""
    return run / f"step-{step:08d}"


def versions() -> dict[str, str]:
    """Return the versions that a run's result depends on."""
    packages = (
        "gpt-pretrain",
        "gpt-train",
        "gpt-core",
        "gpt-attention",
        "gpt-tokenizer",
        "torch",
        "numpy",
        "tiktoken",
    )
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def look_into(run: Path, settings: Mapping[str, Any], *, resume: bool) -> Found:
    """Return what ``run`` holds of the run with these ``settings``; nothing is changed.

    Raises PretrainError if going on would lose or mix something: the folder holds another configuration (with
    what differs), other files, or a run that nobody asked to resume.
    """
    if not run.exists():
        return Found.NOTHING
    if not run.is_dir():
        raise PretrainError(f"{run} is a file, but a run needs a folder; choose another by --out")
    if not (run / RECORD).exists():
        others = sorted(path.name for path in run.iterdir() if not _is_left_by_a_run(path))
        if others:
            raise PretrainError(
                f"{run} holds files of something else ({', '.join(others[:3])}), not of a run; "
                f"choose another folder by --out"
            )
        return Found.NOTHING
    record = read_record(run)
    if differences := _differences(record["settings"], settings):
        raise PretrainError(
            f"{run} holds a run with another configuration, and nothing in it was changed: "
            f"{'; '.join(differences)}; choose another folder by --out, or give the same settings"
        )
    if not resume:
        raise PretrainError(
            f"{run} holds this run already; add --resume to go on with it, or choose another folder by --out"
        )
    return Found.FINISHED if (run / README).exists() else Found.UNFINISHED


def read_record(run: Path) -> dict[str, Any]:
    """Return run.json; PretrainError if it is missing, damaged or of another version."""
    try:
        record = json.loads((run / RECORD).read_text(encoding="utf-8"))
        if record["format"] == FORMAT and isinstance(record["settings"], dict):
            return dict(record)
        problem = f"has format {record['format']!r}, this version reads {FORMAT!r}"
    except FileNotFoundError:
        problem = "is missing"
    except (ValueError, KeyError, TypeError) as error:
        problem = f"is damaged ({error!r})"
    raise PretrainError(f"{run / RECORD} {problem}, so {run} is no run to go on with; choose another by --out")


def write_record(run: Path, settings: Mapping[str, Any], *, recipe: str) -> None:
    """Write run.json, which from now on says which run the folder is."""
    record = {"format": FORMAT, "recipe": recipe, "settings": dict(settings), "versions": versions()}
    write_json(run / RECORD, record)


def _is_left_by_a_run(path: Path) -> bool:
    """Return whether a run that was killed before it wrote its record may have left ``path``."""
    if path.name == DATA and path.is_dir():
        return (path / SUMMARY).is_file() or not foreign(path)  # prepared text is read, never changed
    return path.name == RECORD + UNFINISHED or is_lock_file(path)


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return one phrase for each setting that differs."""
    names = [*there, *(name for name in asked if name not in there)]
    return [
        f"{name} is {there.get(name, 'not set')!s} there, asked for {asked.get(name, 'not set')!s}"
        for name in names
        if there.get(name) != asked.get(name)
    ]
