"""How finetuned models are saved: a checkpoint directory with what it takes to use them, LoRA merged."""

import platform
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from gpt_core import GPTModel, save_checkpoint
from gpt_finetune.lora import lora_parameters
from gpt_finetune.merge import merge_lora


class SupportsSave(Protocol):
    """What is needed of a tokenizer to be saved beside a model."""

    def save(self, path: Path, /) -> object:
        """Write the tokenizer to a file."""
        ...


def save_finetuned(
    folder: Path | str,
    model: GPTModel,
    *,
    tokenizer: SupportsSave,
    known: Mapping[str, Any],
    provenance: Mapping[str, Any] | None,
    extra: Callable[[Path], None] | None,
) -> Path:
    """Write a checkpoint directory whose provenance holds what is ``known``, the versions and the caller's own.

    LoRA is merged into the weights that are written, and goes on unmerged. Raises ValueError if the caller's own has
    one of those names; arguments and errors are otherwise those of ``gpt_core.save_checkpoint``.
    """
    if taken := sorted({*known, "versions"} & set(provenance or {})):
        raise ValueError(f"provenance has {taken[0]!r}, which is written by itself; choose another name")
    everything = {**(provenance or {}), **known, "versions": _versions()}
    with merge_lora(model) if lora_parameters(model) else nullcontext():
        return save_checkpoint(folder, model, tokenizer=tokenizer, provenance=everything, extra=extra)


def _versions() -> dict[str, str]:
    names = ("gpt-finetune", "gpt-train", "gpt-core", "gpt-attention", "torch")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
