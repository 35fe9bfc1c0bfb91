"""Weights of any known format to our checkpoint directory."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

from gpt_core import save_checkpoint
from gpt_weights.tokenizer import TokenizerFile
from gpt_weights.weights import Weights


def convert(
    weights: Weights, target: Path | str, *, tokenizer: TokenizerFile | None = None, dtype: torch.dtype | None = None
) -> Path:
    """Write the weights as a checkpoint directory, whole or not at all, and return ``target``.

    The tokenizer is the one that lies beside the weights unless another is given. ``dtype`` converts the values; None
    leaves them as they are, or gives mixed ones the widest type among them. The provenance says what was read and what
    was decided on the way. At most the model and 32 MB besides are in memory. Raises WeightsError as
    ``Weights.tensors`` and if a token's id is not one of the model's, and the errors of ``save_checkpoint``.
    """
    tokenizer = tokenizer or weights.tokenizer
    notes = tokenizer.check_fits(weights.config.vocab_size) if tokenizer is not None else []
    provenance = {
        **(weights.provenance or {}),
        "source": f"{weights.path.parent.name}/{weights.path.name}",
        "layout": weights.contents.layout.name,
        "notes": [*weights.notes, *notes],
        "gpt_weights": version("gpt-weights"),
        **({"labels": weights.labels} if weights.labels else {}),
    }
    return save_checkpoint(target, weights.model(dtype=dtype), tokenizer=tokenizer, provenance=provenance)
