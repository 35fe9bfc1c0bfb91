"""The checkpoint directory: a model, its tokenizer's file and where they came from, durable and verified.

    config.json          {"format": "gpt-core/1", "requires": ..., "model": {...}, "provenance": {...}}
    model.safetensors    the parameters under the book's names; the output head left out if it is tied
    tokenizer.json       if a tokenizer was given; opaque here
    manifest.json        size and sha256 of every other file
    ...                  what the caller added, such as trainer/

``docs/checkpoint-format.md`` is the format's description, ``gpt_core.durable`` how it is written.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gpt_core.config import GPTConfig
from gpt_core.durable import (
    MANIFEST,
    CheckpointError,
    existing_folder,
    publish_folder,
    remove_abandoned,
    remove_folder,
    verify_folder,
)
from gpt_core.model import GPTModel
from gpt_core.weights import load_weights, save_weights, tensors_to_save

FORMAT = "gpt-core/1"
_REQUIRES = "gpt-core>=0.1"  # the oldest release that reads FORMAT; named to readers that are older
_CONFIG, _WEIGHTS, _TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
_STEP = re.compile(r"step-([0-9]+)(\.old-[0-9]+)?")


class SupportsSave(Protocol):
    """What ``save_checkpoint`` needs of a tokenizer."""

    def save(self, path: Path, /) -> object:
        """Write the tokenizer to a file."""
        ...


@dataclass(frozen=True)
class CheckpointFiles:
    """A verified checkpoint directory, its weights not read yet."""

    folder: Path
    """The directory it was read from; of a run folder, the checkpoint in it that was chosen."""

    config: GPTConfig
    """The model's configuration."""

    weights_file: Path
    """The parameters under the book's names, as safetensors."""

    tokenizer_file: Path | None
    """The tokenizer's file, or None if the checkpoint has none."""

    provenance: dict[str, Any]
    """What the writer recorded: data, settings, versions."""


@dataclass(frozen=True)
class Checkpoint(CheckpointFiles):
    """A loaded checkpoint directory."""

    model: GPTModel
    """The model, in eval mode, its parameters trainable."""


def save_checkpoint(
    folder: Path | str,
    model: GPTModel,
    *,
    tokenizer: SupportsSave | None = None,
    provenance: Mapping[str, Any] | None = None,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint directory and return ``folder``: whole, or not at all.

    An older checkpoint at ``folder`` is replaced, anything else refused. ``provenance`` is any JSON object.
    ``extra`` is called with the temporary folder and may write more files into it; the manifest covers them
    too. The same arguments give the same bytes.

    Raises CheckpointError if ``folder`` may not be replaced, ValueError if the model is no ``GPTModel`` of
    its configuration or ``provenance`` no JSON, OSError (with the system's ``errno``) if the disk is full
    or fails; in each case what was there before is unchanged.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    tensors = tensors_to_save(model)
    config = _config_bytes(model.config, provenance or {})

    def write(tmp: Path) -> None:
        (tmp / _CONFIG).write_bytes(config)
        save_weights(tensors, tmp / _WEIGHTS)
        if tokenizer is not None:
            tokenizer.save(tmp / _TOKENIZER)
        if extra is not None:
            extra(tmp)

    needed = len(config) + sum(tensor.nbytes for tensor in tensors.values())
    publish_folder(Path(folder), write, needed=needed)
    return Path(folder)


def load_checkpoint(folder: Path | str, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Return the checkpoint in ``folder``, its model on ``device`` in eval mode.

    Folders and errors are those of ``read_checkpoint``; besides CheckpointError if the tensors are not those of the
    configuration. No random number is drawn.
    """
    files = _verified(Path(folder))
    model = load_weights(files.weights_file, files.config, device=torch.device(device))
    return Checkpoint(**vars(files), model=model)


def read_checkpoint(folder: Path | str) -> CheckpointFiles:
    """Return what the checkpoint in ``folder`` holds, verified, without reading its weights into memory.

    ``folder`` is a checkpoint directory, or a run folder with checkpoints ``step-N`` of which the newest
    intact one is taken; each that had to be passed over is named in a warning. Every file's size and sha256
    are compared with the manifest before anything is used.

    Raises CheckpointError naming the file if there is no intact checkpoint or its format is another one (naming the
    version to install).
    """
    return _verified(Path(folder))


def verify_checkpoint(folder: Path | str) -> None:
    """Compare each file of a checkpoint directory with its manifest; CheckpointError names a bad one."""
    verify_folder(_existing(Path(folder)))


def list_checkpoints(run: Path | str) -> list[Path]:
    """Return the checkpoint directories ``step-N`` of a run folder, the oldest first.

    None if the folder does not exist. They are listed by name, intact or not. A ``step-N.old-PID`` stands
    for a ``step-N`` that a killed writer was about to replace.
    """
    run = Path(run)
    if not run.is_dir():
        return []
    steps: dict[int, Path] = {}
    for path in sorted(run.iterdir()):  # "step-1" sorts before "step-1.old-9"
        match = _STEP.fullmatch(path.name)
        if match and path.is_dir():
            steps.setdefault(int(match[1]), path)
    return [steps[step] for step in sorted(steps)]


def prune_checkpoints(run: Path | str, *, keep: int = 2) -> list[Path]:
    """Remove all checkpoints of a run folder but the ``keep`` newest complete ones, and return those removed.

    Complete means that every file has the size that the manifest names; checkpoints newer than the
    ``keep``-th complete one are left alone. What dead writers left of a checkpoint goes too. Raises ValueError
    if ``keep`` is below 2: the newest may prove to be damaged.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 2:
        raise ValueError(f"keep must be a whole number of at least 2, got {keep!r}")
    removed: list[Path] = []
    n_complete = 0
    for path in reversed(list_checkpoints(run)):
        if n_complete >= keep:
            remove_folder(path)
            removed.append(path)
        elif _is_complete(path):
            n_complete += 1
    remove_abandoned(Path(run), _STEP)
    return removed[::-1]


def _is_complete(folder: Path) -> bool:
    try:
        verify_folder(folder, digests=False)
    except CheckpointError:
        return False
    return True


def _verified(folder: Path) -> CheckpointFiles:
    found, files = _newest_intact(folder)
    for name in (_CONFIG, _WEIGHTS):
        if name not in files:
            raise CheckpointError(f"{found / name} is missing: the manifest does not name it")
    config, provenance = _read_config(found / _CONFIG)
    tokenizer_file = found / _TOKENIZER if _TOKENIZER in files else None
    return CheckpointFiles(found, config, found / _WEIGHTS, tokenizer_file, provenance)


def _existing(folder: Path) -> Path:
    found = existing_folder(folder)
    if found is None:
        why = "it is a file; give the folder that holds it" if folder.exists() else "no such folder"
        raise CheckpointError(f"there is no checkpoint at {folder}: {why}")
    return found


def _newest_intact(folder: Path) -> tuple[Path, frozenset[str]]:
    """Return the checkpoint directory to read and the names of its files, all verified."""
    found = _existing(folder)
    steps = list_checkpoints(found)
    if not steps or (found / MANIFEST).exists():
        if not (found / MANIFEST).exists():
            raise CheckpointError(f"{folder} holds no checkpoint: no {MANIFEST} and no folder step-N in it")
        return found, verify_folder(found)
    for path in reversed(steps):
        try:
            return path, verify_folder(path)
        except CheckpointError as error:
            warnings.warn(f"{path.name} is passed over for an earlier checkpoint: {error}", stacklevel=4)
    raise CheckpointError(f"none of the {len(steps)} checkpoints in {folder} is intact; see the warnings")


def _config_bytes(config: GPTConfig, provenance: Mapping[str, Any]) -> bytes:
    content = {"format": FORMAT, "requires": _REQUIRES, "model": config.to_dict()}
    try:
        content["provenance"] = dict(provenance)
        data = (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"provenance must be a JSON object: {error}") from error
    if json.loads(data) != content:
        raise ValueError("provenance must be JSON that reads back equal: keys are text, and no tuples")
    return data


def _read_config(path: Path) -> tuple[GPTConfig, dict[str, Any]]:
    """Return the model's config and the provenance."""
    try:
        content = json.loads(path.read_bytes())
        form = content["format"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is not the configuration of a checkpoint: {error!r}") from error
    if form != FORMAT:
        requires = str(content.get("requires"))
        is_plain = re.fullmatch(r"gpt-core[<>=!~0-9., ]+", requires)
        wanted = f"'{requires}'" if is_plain else "a newer gpt-core"
        raise CheckpointError(f"{path} has format {form!r}, this one reads {FORMAT!r}: install {wanted}")
    model, provenance = content.get("model"), content.get("provenance")
    if not isinstance(model, dict) or not isinstance(provenance, dict):
        raise CheckpointError(f"{path} must hold the objects 'model' and 'provenance'")
    try:
        return GPTConfig.from_dict(model), provenance
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
