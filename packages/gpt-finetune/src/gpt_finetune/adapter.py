"""LoRA in PEFT's layout, ``adapter_config.json`` and ``adapter_model.safetensors``: for transformers' GPT-2 and ours.

The base is the folder that gpt-weights exports for transformers, or any GPT-2 with the same weights. Beside adapters
the file holds what was trained in full: norms and the head, under ``modules_to_save``. A classifier's head of theirs
has no bias; ours is moved into the last norm, which is then saved too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from gpt_core import force_to_disk, remove_abandoned
from gpt_finetune.adapter_file import CONFIG, PREFIX, RANKS, WEIGHTS, AdapterFile, read_adapter
from gpt_finetune.head_bias import shift_with_bias
from gpt_finetune.lora import LinearWithLoRA, refuse_lora, wrapped_places
from gpt_finetune.peft_config import config_json
from gpt_finetune.peft_layout import FINAL_NORM, Adapter, PeftLayout, linear_of, peft_layout, put_together
from gpt_train import DataError

_LEFTOVER = re.compile(r".+\.tmp-[0-9]{1,19}", re.DOTALL)  # what remove_abandoned takes for one


def save_adapter(folder: Path | str, model: nn.Module, *, base: str | Path | None = None) -> None:
    """Write the model's adapters, and what else ``requires_grad``, as a new folder for PEFT, whole or not at all.

    ``base`` is the name or the path of the model that they belong to, for PEFT's ``AutoPeftModel``. A classifier's head
    is saved together with final_norm, which takes up its bias.

    Raises ValueError if the model is no ``GPTModel`` of GPT-2's form or holds no LoRA (or is merged), if anything
    requires a gradient beside adapters, norms and an untied head, if a bias cannot be moved, if ``folder`` holds
    something already or has a name like ``adapter.tmp-1``, which marks a leftover; OSError if it cannot be written.
    """
    layout = peft_layout(model)
    wrapped: dict[str, LinearWithLoRA] = {place.dotted: place.layer for place in wrapped_places(model)}
    known = {name for ours in layout.linears.values() for name in ours}
    if strangers := [name for name in wrapped if name not in known]:
        raise ValueError(f"{strangers[0]} has LoRA, but Hugging Face's GPT-2 has no such layer; leave it as it was")
    modules = _trained_in_full(model, layout)
    if linear_of(model, "out_head").bias is not None and ("out_head" in wrapped or layout.head in modules):
        modules = sorted({*modules, FINAL_NORM})  # the base's may have taken up the bias of another head
    tensors: dict[str, Tensor] = {}
    layers: dict[str, tuple[int, float]] = {}
    ranks: dict[str, list[int]] = {}
    for theirs, ours in layout.linears.items():
        parts = [wrapped[name].lora if name in wrapped else None for name in ours]
        if any(parts):
            adapter = put_together(parts, [linear_of(model, name).out_features for name in ours])
            tensors |= {f"{theirs}.lora_A.weight": adapter.A, f"{theirs}.lora_B.weight": adapter.B}
            layers[theirs] = len(adapter.A), adapter.alpha
            if len(parts) > 1:
                ranks[theirs] = [part.rank if part is not None else 0 for part in parts]
    tensors |= _saved_tensors(model, layout, modules)
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    config = config_json(
        layers,
        dropout=next(iter(wrapped.values())).lora.dropout.p,
        modules_to_save=modules,
        task_type="CAUSAL_LM" if layout.head == "lm_head" else "SEQ_CLS" if layout.head in modules else None,
        base=None if base is None else os.fspath(base),
        is_conv1d=any(name != layout.head for name in layers),
    )
    # Without {"format": "pt"} transformers refuses the file.
    metadata = {"format": "pt"} | ({RANKS: json.dumps(ranks)} if ranks else {})
    _publish(Path(folder), {CONFIG: config, WEIGHTS: _safetensors(tensors, metadata)})


def load_adapter(folder: Path | str, model: nn.Module) -> list[str]:
    """Put the adapters of a folder that PEFT or ``save_adapter`` wrote into the base model; return the wrapped layers.

    What the file holds is then trainable, and nothing else. Adapters of ``c_attn`` that PEFT made become three that
    share A's values. Where the file changes a classifier's head or its norm, the head's bias becomes 0 as in
    transformers, moved into final_norm. Values take the model's dtype and device.

    Raises DataError, before anything changes, if a file is missing, damaged, does not fit the model or tells of more
    than plain LoRA, or if the bias cannot be moved because the rows of the head's weight depend on one another;
    ValueError if the model is no ``GPTModel`` of GPT-2's form or holds LoRA already.
    """
    layout = peft_layout(model)
    refuse_lora(model)
    found = read_adapter(Path(folder), model, layout)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():  # what is drawn here is overwritten
        wrapped = {name: _wrapped(model, name, adapter, found.dropout) for name, adapter in found.adapters.items()}
    values = _with_bias_moved(Path(folder), model, found)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in values.items():
            parameters[name].copy_(tensor)
    model.requires_grad_(False)
    for name, layer in wrapped.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
        layer.lora.requires_grad_(True)
    for name in found.saved:
        model.get_submodule(name.rpartition(".")[0]).requires_grad_(True)
    return list(wrapped)


def _trained_in_full(model: nn.Module, layout: PeftLayout) -> list[str]:
    """Return their names of the modules beside the adapters that require a gradient; ValueError for one of no name."""
    theirs_of = {ours: theirs.rpartition(".")[0] for theirs, ours in layout.saved.items()}
    if "out_head.weight" in theirs_of:
        theirs_of["out_head.bias"] = layout.head
    modules = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or re.search(r"\.lora\.[AB]$", name):
            continue
        if name not in theirs_of:
            raise ValueError(
                f"{name} requires a gradient, but beside adapters the file can hold norms and an untied head only; "
                "freeze it (requires_grad_(False)), or save the whole model with save_checkpoint"
            )
        modules.add(theirs_of[name])
    return sorted(modules)


def _saved_tensors(model: nn.Module, layout: PeftLayout, modules: Sequence[str]) -> dict[str, Tensor]:
    """Return their parameters of the modules, the head's bias moved into the last norm."""
    parameters = dict(model.named_parameters())
    values: dict[str, Tensor] = {
        theirs: parameters[ours] for theirs, ours in layout.saved.items() if theirs.rpartition(".")[0] in modules
    }
    head = linear_of(model, "out_head")
    if head.bias is not None and (FINAL_NORM in modules or layout.head in modules):
        wrapped = model.get_submodule("out_head")
        weight = wrapped.merged_weight() if isinstance(wrapped, LinearWithLoRA) else head.weight
        norm = parameters["final_norm.scale"], parameters["final_norm.shift"]
        values[f"{FINAL_NORM}.bias"] = shift_with_bias(weight, head.bias, *norm)
    return values


def _with_bias_moved(folder: Path, model: nn.Module, found: AdapterFile) -> dict[str, Tensor]:
    """Return the parameters' new values; where head or last norm are among what changes, the head has no bias."""
    head, values = linear_of(model, "out_head"), dict(found.saved)
    is_touched = "out_head" in found.adapters or not values.keys().isdisjoint(("out_head.weight", "final_norm.shift"))
    if head.bias is None or not is_touched:
        return values
    if "final_norm.shift" not in values:
        norm = model.get_parameter("final_norm.scale"), model.get_parameter("final_norm.shift")
        try:
            values["final_norm.shift"] = shift_with_bias(head.weight, head.bias, *norm)
        except ValueError as error:
            raise DataError(
                f"{folder} changes the head, which has no bias there, but this model's cannot be moved into final_norm "
                "because the rows of its head's weight depend on one another, wholly or nearly; give the model that "
                "the adapter was trained on, or set out_head.bias to zero first"
            ) from error
    return values | {"out_head.bias": torch.zeros_like(head.bias)}


def _wrapped(model: nn.Module, name: str, adapter: Adapter, dropout: float) -> LinearWithLoRA:
    layer = LinearWithLoRA(linear_of(model, name), len(adapter.A), adapter.alpha, dropout=dropout)
    layer.lora.A.copy_(adapter.A.t())
    layer.lora.B.copy_(adapter.B.t())
    return layer


def _safetensors(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the file, the same bytes for the same tensors: the library writes metadata in an order of chance."""
    data = safetensors.torch.save(tensors)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": metadata, **json.loads(data[8:end])}, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _publish(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files beside ``folder``, force them to the disk and give them its name."""
    target = folder.resolve()
    if _LEFTOVER.fullmatch(target.name):
        raise ValueError(f"{folder} cannot be an adapter, because names like *.tmp-1 mark leftovers; choose another")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{folder} is there already and is not replaced; choose a new name")
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent, re.compile(re.escape(target.name)))
    temporary.mkdir()  # if another writer made it, it is not removed below
    try:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
            force_to_disk(temporary / name)
        force_to_disk(temporary)
        if target.is_dir():
            target.rmdir()
        temporary.rename(target)
        force_to_disk(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
