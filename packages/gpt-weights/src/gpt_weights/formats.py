"""Which format a path has, told by what lies there and by a file's first bytes, not by its name's ending."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_core import CheckpointError, GPTConfig, list_checkpoints, load_checkpoint, read_checkpoint
from gpt_weights import huggingface
from gpt_weights.errors import WeightsError
from gpt_weights.files import DTYPES, SafetensorsFiles, TensorFiles, check_beginning
from gpt_weights.infer import Contents, recognize
from gpt_weights.json_file import read_json
from gpt_weights.mapping import OURS, links
from gpt_weights.tokenizer import TokenizerFile, find_tokenizer
from gpt_weights.torch_file import TorchFile
from gpt_weights.weights import Weights

_DESCRIPTION = {".safetensors": "config.json", ".json": "config.json", ".bin": "config.json", ".index": "hparams.json"}
_NANOGPT_FIELDS = {
    "n_embd": "emb_dim", "n_head": "n_heads", "n_layer": "n_layers", "block_size": "context_length",
    "vocab_size": "vocab_size",
}


def open_weights(
    path: Path | str,
    *,
    n_heads: int | None = None,
    vocab_size: int | None = None,
    lora_scale: float | None = None,
) -> Weights:
    """Return the weights at ``path``, recognised and checked by names, shapes and types.

    Known are our checkpoint directory (or a run folder of them), a Hugging Face directory, OpenAI's TensorFlow
    checkpoint (values with the extra ``tensorflow``), a safetensors file, what ``torch.save`` wrote of the book's
    models, nanoGPT's or Hugging Face's, and GGUF (quantized with the extra ``gguf``). What shapes do not tell is given:
    ``n_heads``, if no file names it and no GPT-2 has that width; ``lora_scale``, if layers are wrapped in LoRA.
    ``vocab_size`` crops a padded vocabulary to its first ids (nanoGPT's 50304 rows become 50257 without being told).

    Raises WeightsError naming the file, what was expected and what was found; ImportError naming a missing extra.
    """
    path = Path(path)
    if lora_scale is not None:
        is_number = isinstance(lora_scale, (int, float)) and not isinstance(lora_scale, bool)
        if not is_number or not math.isfinite(lora_scale):
            raise WeightsError(f"lora_scale must be a finite number, alpha / rank, got {lora_scale!r}")
    if path.name in (*huggingface.FILES, "model.ckpt.index") and (path.parent / _DESCRIPTION[path.suffix]).is_file():
        path = path.parent  # the folder says more: its config, its tokenizer
    if not path.exists():
        raise WeightsError(f"there is no file or folder {path}")
    if path.is_dir() and _is_own(path):
        given = {"n_heads": n_heads, "vocab_size": vocab_size, "lora_scale": lora_scale}
        if stated := [name for name, value in given.items() if value is not None]:
            raise WeightsError(f"{path} is a checkpoint directory, which says all that; leave out {', '.join(stated)}")
        return _own(path)
    files, about = _open_folder(path) if path.is_dir() else _open_file(path)
    if n_heads is not None and about.hints.setdefault("n_heads", n_heads) != n_heads:
        raise WeightsError(f"{path} says that it has {about.hints['n_heads']} heads, but n_heads={n_heads} was given")
    contents = recognize(files, about.hints, vocab_size=vocab_size, has_lora_scale=lora_scale is not None)
    labels = _fitting(about.labels, contents.config)
    return Weights(files, contents, lora_scale=lora_scale, tokenizer=about.tokenizer, labels=labels)


@dataclass
class _About:
    """What lies beside the tensors."""

    hints: dict[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerFile | None = None
    labels: list[str] | None = None


def _is_own(folder: Path) -> bool:
    """Whether it is a checkpoint directory of ours, or a run folder, and not one of Hugging Face's."""
    if not (folder / "manifest.json").is_file() and not list_checkpoints(folder):
        return False
    return not ((folder / "config.json").is_file() and "model_type" in read_json(folder / "config.json"))


def _own(folder: Path) -> Weights:
    try:
        checkpoint = read_checkpoint(folder)
        files = SafetensorsFiles(checkpoint.weights_file)
        expected = links(OURS, checkpoint.config)
        shapes = {name: info.shape for name, info in files.tensors.items()}
        types = {info.dtype for info in files.tensors.values()}
        if shapes != {link.theirs: link.shape for link in expected} or not types <= set(DTYPES.values()):
            load_checkpoint(checkpoint.folder)  # its error names what differs
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    contents = Contents(OURS, checkpoint.config, expected, {name: (name,) for name in shapes}, ())
    tokenizer = None if checkpoint.tokenizer_file is None else find_tokenizer(checkpoint.tokenizer_file)
    labels = _fitting(checkpoint.provenance.get("labels"), checkpoint.config)
    return Weights(files, contents, tokenizer=tokenizer, labels=labels, provenance=checkpoint.provenance)


def _fitting(labels: object, config: GPTConfig) -> list[str] | None:
    """Return the labels if they are as many different texts as the model has classes."""
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return None
    return labels if len(set(labels)) == len(labels) == config.n_classes else None


def _open_folder(folder: Path) -> tuple[TensorFiles, _About]:
    if any((folder / name).is_file() for name in huggingface.FILES):
        hints, labels = huggingface.read_hints(folder)
        return huggingface.open_files(folder), _About(hints, find_tokenizer(folder), labels)
    if (folder / f"{huggingface.PICKLE}.index.json").is_file():
        raise WeightsError(
            f"{folder} holds pickles in several parts, which are not read: open it with transformers and save it anew "
            "with save_pretrained, which writes safetensors"
        )
    if (folder / "hparams.json").is_file() or (folder / "checkpoint").is_file():
        from gpt_weights.openai_tf import open_checkpoint, read_hints

        return open_checkpoint(folder), _About(read_hints(folder), find_tokenizer(folder))
    raise WeightsError(
        f"{folder} holds no weights: expected manifest.json or step-N (a checkpoint directory), one of "
        f"{', '.join(huggingface.FILES)} (Hugging Face), or hparams.json (OpenAI); give another file in it by its name"
    )


def _open_file(path: Path) -> tuple[TensorFiles, _About]:
    check_beginning(path)
    with path.open("rb") as file:
        magic = file.read(9)
    if magic[:4] == b"GGUF":
        from gpt_weights.gguf_file import open_gguf

        files, hints, tokenizer = open_gguf(path)
        return files, _About(hints, tokenizer)
    if magic[8:] == b"{" or path.suffix == ".safetensors":  # a safetensors header, after its length
        return SafetensorsFiles(path), _About()
    torch_file = TorchFile(path)
    said = torch_file.model_args
    return torch_file, _About({ours: said[name] for name, ours in _NANOGPT_FIELDS.items() if name in said})
