"""Which model was judged: the hashes of a checkpoint directory's files, read without torch.

``docs/checkpoint-format.md`` describes the directory and its manifest.
"""

import hashlib
import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpt_eval.figures import JSON

_MANIFEST, _WEIGHTS, _TOKENIZER = "manifest.json", "model.safetensors", "tokenizer.json"


def checkpoint_sha256(folder: Path | str) -> str:
    """Return the sha256 of the weights in a checkpoint directory, in hexadecimal.

    It is computed from the file and compared with the manifest. ``folder`` is the checkpoint itself: of a run folder
    give one of its ``step-N``. Raises ValueError if there is no checkpoint, or if its file is missing or damaged.
    """
    folder = Path(folder)
    return _verified(folder, _WEIGHTS, _manifest_files(folder))


def checkpoint_facts(folder: Path | str) -> dict[str, JSON]:
    """Return the facts of a report about a checkpoint: its folder's name, and the hashes of weights and tokenizer.

    The tokenizer's is None if the checkpoint has none. Errors are those of ``checkpoint_sha256``.
    """
    folder = Path(folder)
    files = _manifest_files(folder)
    return {
        "checkpoint": folder.resolve().name,
        "checkpoint_sha256": _verified(folder, _WEIGHTS, files),
        "tokenizer_sha256": _verified(folder, _TOKENIZER, files) if _TOKENIZER in files else None,
    }


def installed_versions(*distributions: str) -> dict[str, JSON]:
    """Return {name: version} of those of the distributions that are installed."""
    found: dict[str, JSON] = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _manifest_files(folder: Path) -> dict[str, str]:
    """Return {name: sha256} as the manifest has it."""
    path = folder / _MANIFEST
    if not path.is_file():
        steps = sorted(path.name for path in folder.glob("step-*")) if folder.is_dir() else []
        hint = f"; it is a run: give one of its folders, such as {steps[-1]}" if steps else ""
        raise ValueError(f"{folder} is no checkpoint: it holds no {_MANIFEST}{hint}")
    try:
        files = {name: entry["sha256"] for name, entry in json.loads(path.read_bytes())["files"].items()}
        is_sound = all(re.fullmatch("[0-9a-f]{64}", digest) for digest in files.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        is_sound = False
    if not is_sound:
        raise ValueError(f"{path} is damaged: it is not a manifest of files with their sha256; restore the checkpoint")
    return files


def _verified(folder: Path, name: str, files: dict[str, str]) -> str:
    path = folder / name
    if name not in files or not path.is_file():
        raise ValueError(f"{path} is missing: the checkpoint is incomplete; restore it")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != files[name]:
        raise ValueError(f"{path} is damaged: its sha256 is {found}, its manifest says {files[name]}; restore it")
    return found
