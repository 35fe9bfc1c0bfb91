"""Files of other programs' making, written out by hand: no package of ours and no transformers takes part."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

SIZES = {"vocab_size": 23, "n_positions": 8, "n_embd": 8, "n_head": 2, "n_layer": 2}
CONFIG = {"model_type": "gpt2", **SIZES, "tie_word_embeddings": False}
VOCABULARY = {**{chr(ord("a") + i): i for i in range(20)}, "Ġ": 20, "ab": 21, "<|endoftext|>": 22}


def huggingface_tensors(*, seed: int = 0, prefix: str = "transformer.") -> dict[str, Tensor]:
    """Return random weights under Hugging Face's names, matrices as (in, out)."""
    generator = torch.Generator().manual_seed(seed)
    V, C, E = SIZES["vocab_size"], SIZES["n_positions"], SIZES["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (V, E), "wpe.weight": (C, E)}
    shapes |= {"ln_f.weight": (E,), "ln_f.bias": (E,)}
    for n in range(SIZES["n_layer"]):
        for name, (M, N) in {"attn.c_attn": (E, 3 * E), "attn.c_proj": (E, E), "mlp.c_fc": (E, 4 * E),
                             "mlp.c_proj": (4 * E, E)}.items():
            shapes |= {f"h.{n}.{name}.weight": (M, N), f"h.{n}.{name}.bias": (N,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{n}.{name}.weight": (E,), f"h.{n}.{name}.bias": (E,)}
    tensors = {prefix + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**tensors, "lm_head.weight": torch.randn((V, E), generator=generator)}


def write_huggingface(folder: Path, *, tokenizer: bool = True, **config: Any) -> dict[str, Tensor]:
    """Write a Hugging Face directory and return its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = huggingface_tensors()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}), encoding="utf-8")
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer:
        (folder / "vocab.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    return tensors


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write the tensors as two shards and their index, in place of model.safetensors."""
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for n, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{n}-of-00002.safetensors"
        safetensors.torch.save_file({name: tensors[name] for name in part}, folder / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
