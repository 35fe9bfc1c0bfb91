"""Reading an adapter's folder: its tensors by our names, all of them checked against the model.

Shapes: M inputs, N outputs, R rank.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from gpt_finetune.peft_config import PeftConfig, read_config
from gpt_finetune.peft_layout import Adapter, PeftLayout, linear_of, take_apart
from gpt_train import DataError

CONFIG, WEIGHTS, _PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
RANKS = "gpt_finetune.ranks"  # in the header: those of queries, keys and values in an adapter of c_attn
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter's folder holds, under our names."""

    adapters: dict[str, Adapter]
    """Of our layers."""
    saved: dict[str, Tensor]
    """New values of our parameters."""
    dropout: float


def read_adapter(folder: Path, model: nn.Module, layout: PeftLayout) -> AdapterFile:
    """Return what the folder holds for the base model; DataError if anything is missing, unknown or misshapen."""
    config, path = read_config(folder / CONFIG), folder / WEIGHTS
    tensors, ranks = _read_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            raise DataError(f"{path}: {name:.80} is {tensor.dtype}, but adapters are floats of 16 to 64 bits")
        adapted = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
        if adapted and adapted[1] in layout.linears:
            parts.setdefault(adapted[1], {})[adapted[2]] = tensor
        elif name in layout.saved:
            _check_shape(path, name, tensor, model.get_parameter(layout.saved[name]).shape)
            saved[layout.saved[name]] = tensor
        elif name == f"{layout.head}.base_layer.weight":  # PEFT adds it where the head is adapted
            if not torch.equal(tensor, linear_of(model, "out_head").weight.detach().cpu().to(tensor.dtype)):
                raise DataError(f"{path}: {name} differs from the model's head; give the base it was trained on")
        else:
            raise DataError(f"{path}: {name!r:.120} {_why_unknown(name, layout)}")
    modules = {ours.rpartition(".")[0] for ours in saved}
    for theirs, ours in layout.saved.items():
        if ours.rpartition(".")[0] in modules and ours not in saved:
            raise DataError(f"{path}: {theirs} is missing, but the module's other half is there")
    adapters: dict[str, Adapter] = {}
    for theirs, pair in parts.items():
        adapters |= _adapters(path, model, layout, config, theirs, pair, ranks.get(theirs))
    if "out_head" in adapters and "out_head.weight" in saved:
        raise DataError(f"{path}: {layout.head} is there whole and as an adapter; keep one of the two")
    if not adapters:
        raise DataError(f"{path} holds no adapter of a linear layer")
    return AdapterFile(adapters, saved, config.dropout)


def _adapters(
    path: Path,
    model: nn.Module,
    layout: PeftLayout,
    config: PeftConfig,
    theirs: str,
    pair: Mapping[str, Tensor],
    ranks: Sequence[int] | None,
) -> dict[str, Adapter]:
    """Return the adapters of our layers that their layer is, in the order of its name's table."""
    ours = layout.linears[theirs]
    linears = [linear_of(model, name) for name in ours]
    widths = [linear.out_features for linear in linears]
    rank = config.rank_of(theirs)
    for part, shape in (("A", (rank, linears[0].in_features)), ("B", (sum(widths), rank))):
        name = f"{theirs}.lora_{part}.weight"
        if part not in pair:
            raise DataError(f"{path}: {name} is missing, but its other half is there")
        _check_shape(path, name, pair[part], shape)
    split = take_apart(Adapter(pair["A"], pair["B"], config.alpha_of(theirs)), widths, ranks)
    return {name: adapter for name, adapter in zip(ours, split, strict=True) if adapter is not None}


def _check_shape(path: Path, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise DataError(
            f"{path}: {name} has shape {tuple(tensor.shape)}, but model and {CONFIG} ask for {tuple(shape)}"
        )


def _why_unknown(name: str, layout: PeftLayout) -> str:
    if name == "lm_head.weight" and layout.head == "lm_head":
        return "does not fit, because the model's head is the embedding's matrix; build it with tie_weights=False"
    known = [*layout.saved, *(f"{linear}.lora_{part}.weight" for linear in layout.linears for part in "AB")]
    nearest = difflib.get_close_matches(name[:200], known, n=1, cutoff=0.8)
    hint = f"; nearest is {nearest[0]}" if nearest else ""
    return f"is no tensor of an adapter for this model, which may hold linear layers, norms and the head{hint}"


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Return the tensors under transformers' names, and the ranks of what ``save_adapter`` has put together."""
    pickled = path.with_name(_PICKLED)
    if not path.exists() and pickled.exists():
        raise DataError(
            f"{pickled} is not opened, because a pickle can run any code; load it with peft where that may happen, and "
            "save_pretrained writes safetensors"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: give the folder of an adapter that PEFT or save_adapter wrote") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    found: dict[str, Tensor] = {}
    for raw, tensor in tensors.items():
        if not raw.startswith(PREFIX):
            raise DataError(f"{path}: {raw!r:.120} does not begin with {PREFIX}, as PEFT's names do")
        name = raw.removeprefix(PREFIX)
        # Adapters of transformers' GPT2Model, which has no head, lack the model's own name.
        name = f"transformer.{name}" if name.startswith(("h.", "ln_f.")) else name
        if name in found:
            raise DataError(f"{path}: {name} is there twice, with and without 'transformer.'")
        found[name] = tensor
    return found, _ranks(metadata.get(RANKS, "{}"))


def _ranks(text: str) -> dict[str, list[int]]:
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(text)
        if isinstance(content, dict):
            return {
                name: ranks for name, ranks in content.items()
                if isinstance(ranks, list) and all(type(rank) is int for rank in ranks)
            }
    return {}
