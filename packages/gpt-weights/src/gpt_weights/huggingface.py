"""A Hugging Face directory as it comes: ``config.json`` and safetensors, in one file or in shards.

Neither transformers nor the network is needed. The hub's own GPT-2 has names without ``transformer.`` and mask buffers
among its tensors; both are known to ``infer``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_weights.errors import WeightsError
from gpt_weights.files import SafetensorsFiles, TensorFiles
from gpt_weights.json_file import read_json
from gpt_weights.torch_file import TorchFile

FILES = WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
"""What a directory holds one of; in this order the first is taken."""
_FIELDS = {
    "n_embd": "emb_dim", "n_head": "n_heads", "n_layer": "n_layers", "n_positions": "context_length",
    "vocab_size": "vocab_size",
}
# What a GPT-2 may say of itself, with the value that transformers takes where it says nothing first.
_RULES: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def open_files(folder: Path) -> TensorFiles:
    """Return the weights in the folder, which holds one of ``FILES``."""
    name = next(name for name in FILES if (folder / name).is_file())
    if name == INDEX:
        return _sharded(folder / INDEX)
    return TorchFile(folder / PICKLE) if name == PICKLE else SafetensorsFiles(folder / WEIGHTS)


def read_hints(folder: Path) -> tuple[dict[str, Any], list[str] | None]:
    """Return the fields of ``GPTConfig`` that config.json names, and a classifier's labels in the order of their ids.

    Raises WeightsError if it describes another model than GPT-2, or a GPT-2 that computes otherwise.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}, None
    content = read_json(path)
    if content.get("model_type") != "gpt2":
        raise WeightsError(f"{path} describes a model of type {content.get('model_type')!r}; only 'gpt2' is read")
    for name, allowed in _RULES.items():
        value = content.get(name, allowed[0])
        if value not in allowed:
            raise WeightsError(f"{path}: {name} is {value!r}, but a GPT-2 computes with {allowed[0]!r}")
    hints = {ours: content[theirs] for theirs, ours in _FIELDS.items() if theirs in content}
    n_inner, E = content.get("n_inner"), content.get("n_embd")
    if n_inner is not None and isinstance(E, int) and n_inner != 4 * E:
        raise WeightsError(f"{path}: n_inner is {n_inner}, but a GPT-2 {E} wide has {4 * E}")
    hints["tie_weights"] = content.get("tie_word_embeddings", True)
    if not isinstance(hints["tie_weights"], bool):
        raise WeightsError(f"{path}: tie_word_embeddings must be true or false, got {hints['tie_weights']!r:.60}")
    return hints, _labels(content.get("id2label"))


def _labels(id2label: object) -> list[str] | None:
    if not isinstance(id2label, Mapping):
        return None
    labels = [id2label.get(str(i)) for i in range(len(id2label))]
    named = [label for label in labels if isinstance(label, str)]
    return named if len(named) == len(labels) else None


def shards_of(index: Path) -> dict[str, str]:
    """Return {tensor: the name of the file it lies in} as the index says; WeightsError if a name is no plain one."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"{index} must hold a 'weight_map' of tensors and the files they lie in")
    for name in places.values():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,200}\.safetensors", name, re.ASCII):
            raise WeightsError(f"{index} is refused: {name!r} is not the name of a safetensors file beside it")
    return places


def _sharded(index: Path) -> TensorFiles:
    places = shards_of(index)
    shards = sorted(set(places.values()))
    for name in shards:
        if not (index.parent / name).is_file():
            raise WeightsError(f"{index.parent / name} is missing: {index.name} lists it; download it again")
    files = SafetensorsFiles(index, [index.parent / name for name in shards])
    found = {name: files.shard_of(name).name for name in files.tensors}
    if wrong := sorted(name for name in {*places, *found} if places.get(name) != found.get(name)):
        raise WeightsError(
            f"{index} says {wrong[0]} lies in {places.get(wrong[0])}, found it in {found.get(wrong[0])}; "
            "download all again"
        )
    return files
