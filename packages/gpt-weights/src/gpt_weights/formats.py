"""Which format a path has, told by what lies there and by a file's first bytes, not by its name's ending."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_core import CheckpointError, list_checkpoints, load_checkpoint, read_checkpoint
from gpt_weights import huggingface
from gpt_weights.errors import WeightsError
from gpt_weights.files import SafetensorsFiles, TensorFiles, check_beginning
from gpt_weights.infer import Contents, recognize
from gpt_weights.mapping import OURS, links
from gpt_weights.tokenizer import TokenizerFile, find_tokenizer
from gpt_weights.torch_file import TorchFile
from gpt_weights.weights import Weights

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
    """Return the weights at ``path``, recognised and checked by names, shapes and types; values are not read yet.

    Known are our checkpoint directory (or a run folder of them), a Hugging Face directory, OpenAI's TensorFlow
    checkpoint (with the extra ``tensorflow``), a safetensors file, what ``torch.save`` wrote of the book's models,
    nanoGPT's or Hugging Face's, and GGUF (with the extra ``gguf``). What shapes do not tell is given: ``n_heads``, if
    no file names it and no GPT-2 has that width; ``lora_scale``, if layers are wrapped in LoRA. ``vocab_size`` crops
    a padded vocabulary to its first ids (nanoGPT's 50304 rows become 50257 without being told).

    Raises WeightsError naming the file, what was expected and what was found; ImportError naming a missing extra.
    """
    path = Path(path)
    if path.is_dir() and ((path / "manifest.json").is_file() or list_checkpoints(path)):
        given = {"n_heads": n_heads, "vocab_size": vocab_size, "lora_scale": lora_scale}
        if stated := [name for name, value in given.items() if value is not None]:
            raise WeightsError(f"{path} is a checkpoint directory, which says all that; leave out {', '.join(stated)}")
        return _own(path)
    if not path.exists():
        raise WeightsError(f"there is no file or folder {path}")
    files, about = _open_folder(path) if path.is_dir() else _open_file(path)
    if n_heads is not None and about.hints.setdefault("n_heads", n_heads) != n_heads:
        raise WeightsError(f"{path} says that it has {about.hints['n_heads']} heads, but n_heads={n_heads} was given")
    contents = recognize(files, about.hints, vocab_size=vocab_size, has_lora_scale=lora_scale is not None)
    return Weights(files, contents, lora_scale=lora_scale, tokenizer=about.tokenizer, labels=about.labels)


@dataclass
class _About:
    """What lies beside the tensors."""

    hints: dict[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerFile | None = None
    labels: list[str] | None = None


def _own(folder: Path) -> Weights:
    try:
        checkpoint = read_checkpoint(folder)
        files = SafetensorsFiles(checkpoint.weights_file)
        expected = links(OURS, checkpoint.config)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    shapes = {name: info.shape for name, info in files.tensors.items()}
    if shapes != {link.theirs: link.shape for link in expected}:
        load_checkpoint(checkpoint.folder)  # its error names what differs
    contents = Contents(OURS, checkpoint.config, expected, {name: (name,) for name in shapes}, ())
    tokenizer = None if checkpoint.tokenizer_file is None else find_tokenizer(checkpoint.tokenizer_file)
    labels = checkpoint.provenance.get("labels")
    return Weights(files, contents, tokenizer=tokenizer, labels=labels)


def _open_folder(folder: Path) -> tuple[TensorFiles, _About]:
    if any((folder / name).is_file() for name in huggingface.FILES):
        hints, labels = huggingface.read_hints(folder)
        return huggingface.open_files(folder), _About(hints, find_tokenizer(folder), labels)
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
    model_args = torch_file.beside.get("model_args")
    return torch_file, _About(_renamed(model_args) if isinstance(model_args, Mapping) else {})


def _renamed(model_args: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: model_args[theirs] for theirs, ours in _NANOGPT_FIELDS.items() if theirs in model_args}
