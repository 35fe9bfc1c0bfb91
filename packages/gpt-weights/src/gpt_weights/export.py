"""What every export does: our tensors in another layout, a place that is there whole or not at all, the reading back.

Values pass through a few at a time: no export takes more memory than the model, most of it for the largest tensor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt_core import GPTConfig, force_to_disk, parameter_shapes, remove_abandoned
from gpt_weights.errors import WeightsError
from gpt_weights.mapping import Link
from gpt_weights.weights import Weights

_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_PIECE = 2**20


@dataclass(frozen=True)
class Export:
    """What was written, read back and compared."""

    path: Path
    """The folder or the file."""
    largest_difference: float
    """The largest absolute difference between a value of the source and the value that is read back."""
    notes: tuple[str, ...]
    """What a person should know of it: what was left out, rounded, or put elsewhere."""


def exported_config(config: GPTConfig) -> GPTConfig:
    """Return the config of the model that is written: the other layouts always have biases for query, key and value."""
    return dataclasses.replace(config, qkv_bias=True)


def tensors_to_export(weights: Weights, changed: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield our tensors of ``exported_config``, the largest first, zeros where the weights have none; some changed."""
    missing = parameter_shapes(exported_config(weights.config))
    for name, tensor in weights.tensors():
        del missing[name]
        yield name, changed.get(name, tensor)
        del tensor
    for name, shape in missing.items():
        yield name, torch.zeros(shape, dtype=weights.dtype)


def in_layout(tensors: Iterable[tuple[str, Tensor]], links: Sequence[Link]) -> Iterator[tuple[Link, Tensor]]:
    """Yield each tensor of theirs as soon as the last of ours that it is made of has come."""
    links_of: dict[str, list[Link]] = {}
    for link in links:
        for name in link.ours:
            links_of.setdefault(name, []).append(link)
    parts: dict[str, dict[str, Tensor]] = {link.theirs: {} for link in links}
    for name, tensor in tensors:
        for link in links_of.get(name, ()):
            parts[link.theirs][name] = tensor
            if len(parts[link.theirs]) == len(link.ours):
                found = parts.pop(link.theirs)
                yield link, link.to_theirs([found.pop(part) for part in link.ours])
        del tensor
    assert not parts  # the links are those of exported_config


def source_dtypes(weights: Weights) -> dict[str, torch.dtype]:
    """Return the type of each of our tensors as ``weights.tensors()`` gives them, without reading one."""
    found = dict.fromkeys(parameter_shapes(exported_config(weights.config)), weights.dtype)
    for link in weights.contents.links:
        if raws := weights.contents.names.get(link.theirs):
            dtype = weights.files.tensors[raws[0]].dtype
            assert isinstance(dtype, torch.dtype)  # recognize has compared it
            found |= dict.fromkeys(link.ours, dtype)
    return found


def compare(
    expected: Iterable[tuple[str, Tensor]], found: Iterable[tuple[str, Tensor]], stored: Callable[[str, Tensor], Tensor]
) -> float:
    """Return the largest absolute difference between tensors of one name.

    Raises OSError (EIO) if a found one is not, value for value, what ``stored`` makes of the expected one.
    """
    largest = 0.0
    for name, first, second in _paired(expected, found):
        for part, found_part in zip(row_pieces(first), row_pieces(second), strict=True):
            as_stored = stored(name, part)
            if found_part.dtype != as_stored.dtype or not torch.equal(as_stored, found_part):
                raise OSError(errno.EIO, f"{name} reads back otherwise than it was written; check the disk")
            largest = max(largest, float((part.double() - found_part.double()).abs().max()))
        del first, second, part, found_part
    return largest


def row_pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensor in pieces of a million values, or of one row: what is made of one at a time stays small."""
    return tensor.split(max(1, _PIECE // math.prod(tensor.shape[1:])))


@contextmanager
def publishing(target: Path, *, needed: int) -> Iterator[Path]:
    """Yield a place beside ``target`` for a file or a folder, which is then forced to the disk and renamed to it.

    Whatever fails, nothing of it is left, nor of the folders above that it needed. ``needed`` is the least number of
    bytes it takes, for the message when the disk is full. Raises WeightsError if ``target`` is there and no empty
    folder, or is the current one; OSError with the system's ``errno``.
    """
    target = target.resolve()  # "." and ".." are names of nothing
    _check_new(target)
    created = [folder for folder in target.parents if not folder.exists()]
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent, re.compile(re.escape(target.name)))  # an export that was killed
        yield temporary
        for path in (temporary, *temporary.rglob("*")):
            force_to_disk(path)
        _check_new(target)
        if target.is_dir():
            target.rmdir()
        temporary.rename(target)
        force_to_disk(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NO_ROOM:
            free = "an unknown number"
            with contextlib.suppress(OSError):
                free = f"{shutil.disk_usage(target.parent).free:,}"
            reason += f": it needs at least {needed:,} bytes and {free} are free; free some or choose another disk"
        raise OSError(error.errno or errno.EIO, f"cannot write {target}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):  # it would hide what went wrong
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: the export succeeded, or another lies there
            for folder in created:
                folder.rmdir()


def _check_new(target: Path) -> None:
    if re.fullmatch(r".+\.tmp-[0-9]+", target.name):
        raise WeightsError(f"{target} cannot be written: names like *.tmp-1 mark leftovers; choose another name")
    if target.is_dir() and any(target.iterdir()):
        raise WeightsError(f"{target} is not replaced, because it is a folder with files in it; choose a new name")
    if target.exists() and not target.is_dir():
        raise WeightsError(f"{target} is not replaced, because there is a file of that name; choose a new name")
    if target == Path.cwd():
        raise WeightsError(f"{target} is not replaced, because it is the current folder; choose a new name")


def _paired(
    first: Iterable[tuple[str, Tensor]], second: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name and both tensors. Both sides begin with the largest, so that few ever wait for their partner."""
    waiting: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for pair in itertools.zip_longest(first, second):
        for side, named in enumerate(pair):
            if named is not None:
                waiting[side][named[0]] = named[1]
        del pair, named
        for name in waiting[0].keys() & waiting[1].keys():
            yield name, waiting[0].pop(name), waiting[1].pop(name)
    if left := sorted(waiting[0].keys() | waiting[1].keys()):
        raise OSError(errno.EIO, f"{left[0]} is missing or too much in what was written; check the disk")

