"""What is in a file of weights, told without reading its values."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch

from gpt_core import parameter_shapes
from gpt_weights.files import DTYPES
from gpt_weights.weights import Weights

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` tells."""

    path: str
    format: str
    """Whose layout the tensors have, and what kind of file they lie in."""
    config: dict[str, Any]
    """The model's configuration, as ``GPTConfig.to_dict`` gives it."""
    parameters: int
    """Numbers in the model, a tied head counted once."""
    bytes: int
    """Of those numbers, as they are stored."""
    dtypes: dict[str, int]
    """How many tensors there are of each type: {"F32": 148}."""
    tied: bool
    """Whether the output head is the token embedding."""
    tokens: int | None
    """Tokens of the tokenizer beside the weights; None if there is none."""
    labels: list[str] | None
    """A classifier's labels, if the files tell them."""
    notes: tuple[str, ...]
    """What reading the file will decide: buffers left out, rows cropped."""


def inspect(weights: Weights) -> Inspection:
    """Return what the weights are, from names, shapes and types alone."""
    infos = [weights.files.tensors[raw] for raws in weights.contents.names.values() for raw in raws]
    stored = [info.stored or (_NAMES[cast(torch.dtype, info.dtype)], info.nbytes) for info in infos]
    return Inspection(
        path=str(weights.path),
        format=f"{weights.contents.layout.name}, {weights.files.kind}",
        config=weights.config.to_dict(),
        parameters=sum(math.prod(shape) for shape in parameter_shapes(weights.config).values()),
        bytes=sum(nbytes for _, nbytes in stored),
        dtypes=dict(Counter(name for name, _ in stored)),
        tied=weights.config.tie_weights,
        tokens=None if weights.tokenizer is None else len(weights.tokenizer.vocabulary),
        labels=weights.labels,
        notes=weights.notes,
    )
