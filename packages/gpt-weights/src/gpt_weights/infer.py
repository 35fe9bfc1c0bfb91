"""What a file's tensors are: the layout, by their names, and the model's configuration, by their shapes."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt_core import GPTConfig, gpt2_config
from gpt_weights.errors import WeightsError
from gpt_weights.files import DTYPES, TensorFiles, TensorInfo
from gpt_weights.mapping import FAST, GGUF, HUGGINGFACE, NANOGPT, OPENAI, OURS, Layout, Link, links, name_in
from gpt_weights.tensor_names import layout_names

_BLOCK = re.compile(r"(?:trf_blocks\.|h\.|h|blk\.)(\d{1,9})[./]")
_HEADS_OF_WIDTH = {config.emb_dim: config.n_heads for config in map(gpt2_config, ("124M", "355M", "774M", "1558M"))}
_PADDED, _GPT2_VOCABULARY = 50304, 50257
_MOST_LAYERS = 1000


@dataclass(frozen=True)
class Contents:
    """What was recognised in files."""

    layout: Layout
    config: GPTConfig
    links: Sequence[Link]
    names: Mapping[str, tuple[str, ...]]
    """The layout's name of a tensor to the file's: one, or the weight and its LoRA matrices A and B. Of those of
    ``links``, the ones that are not here are zeros."""
    notes: tuple[str, ...]
    """What was decided on the way, for people: buffers left out, rows cropped."""


def recognize(
    files: TensorFiles, hints: Mapping[str, Any], *, vocab_size: int | None, has_lora_scale: bool
) -> Contents:
    """Return what the files hold; of the values only a second output head is looked at.

    ``hints`` are fields of ``GPTConfig`` that stand beside the weights, or that the caller knows. Where shapes tell a
    field too, both must agree. ``vocab_size`` crops the vocabulary to its first ids. Raises WeightsError if the
    tensors are not those of a GPT-2, listing what was expected and found, or if they do not tell a field.
    """
    found = _Found(files, *layout_names(files, has_lora_scale=has_lora_scale))
    layout = _layout(found)
    config = _config(found, layout, hints)
    expected = links(layout, config)
    _compare(found, layout, expected)
    cropped = _cropped(config, layout, vocab_size)
    if cropped != config:
        found.notes.append(f"of {config.vocab_size} rows of the vocabulary the first {cropped.vocab_size} are kept")
    return Contents(layout, cropped, expected, found.names, tuple(found.notes))


def _layout(found: _Found) -> Layout:
    if "tok_emb.weight" in found.names:
        return FAST if any(name.endswith(".att.qkv.weight") for name in found.names) else OURS
    if "wte.weight" in found.names:
        E = found.shape("wte.weight")[-1:]
        return NANOGPT if found.shape("h.0.attn.c_attn.weight") == (*(3 * e for e in E), *E) else HUGGINGFACE
    if "wte" in found.names:
        return OPENAI
    if "token_embd.weight" in found.names:
        return GGUF
    raise WeightsError(
        f"{found.path} holds no GPT-2: expected a token embedding called tok_emb.weight (the book), wte.weight "
        f"(Hugging Face, nanoGPT), model/wte (OpenAI) or token_embd.weight (GGUF); found {_some(sorted(found.names))}"
    )


def _config(found: _Found, layout: Layout, hints: Mapping[str, Any]) -> GPTConfig:
    """Return the config by the shapes; what they do not tell, by the hints and, for heads, by GPT-2's widths."""
    embedding, positions, head = (
        name_in(layout, name) for name in ("tok_emb.weight", "pos_emb.weight", "out_head.weight")
    )
    for name in (embedding, positions):
        if len(found.shape(name)) != 2:
            raise WeightsError(f"{found.path}: {name} must be a matrix, found {found.shape(name) or 'no such tensor'}")
    (V, E), C = found.shape(embedding), found.shape(positions)[0]
    qkv_bias = name_in(layout, "trf_blocks.0.att.W_query.bias")
    by_shape = {
        "vocab_size": V,
        "context_length": C,
        "emb_dim": E,
        "n_layers": _n_layers(found),
        "qkv_bias": qkv_bias in found.names,
        **_head(found, head, embedding, V, hints),
    }
    for name, value in hints.items():
        if name != "tie_weights" and by_shape.setdefault(name, value) != value:
            raise WeightsError(f"{found.path}: the shapes say {name}={by_shape[name]}, but it is said to be {value}")
    if "n_heads" not in by_shape:
        if E not in _HEADS_OF_WIDTH:
            raise WeightsError(
                f"{found.path}: shapes do not tell the number of heads, and no GPT-2 is {E} wide: give n_heads "
                f"(--n-heads), a divisor of {E}"
            )
        by_shape["n_heads"] = _HEADS_OF_WIDTH[E]
        found.notes.append(f"{_HEADS_OF_WIDTH[E]} heads, as a GPT-2 {E} wide has: shapes do not tell")
    try:
        return GPTConfig(**by_shape)
    except ValueError as error:
        raise WeightsError(f"{found.path}: {error}") from error


def _head(found: _Found, head: str, embedding: str, V: int, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields ``n_classes`` and ``tie_weights``, as the head's tensor and what is said of it tell."""
    if score := found.shape("score.weight"):
        return {"n_classes": score[0], "tie_weights": False}
    shape, bias = found.shape(head), head.removesuffix("weight") + "bias"
    if shape and shape[0] != V:
        return {"n_classes": shape[0], "tie_weights": False}
    if bias in found.names:
        raise WeightsError(
            f"{found.path}: the output head has a bias ({bias}), which a GPT-2's has not, and {V} rows, as many as the "
            "vocabulary: it is neither GPT-2's head nor known to be a classifier's"
        )
    is_said = hints.get("tie_weights")
    if not shape:
        if is_said is None:
            found.notes.append("there is no output head, so it is the token embedding")
        return {"tie_weights": is_said is not False}
    # With LoRA in it the head is another matrix than the embedding, which it shared.
    is_tied = found.is_alias(head, embedding) and len(found.names[head]) == 1
    if is_said and not is_tied and len(found.names[head]) == 1 and not (is_tied := found.are_equal(head, embedding)):
        raise WeightsError(
            f"{found.path}: the config says that the output head is the token embedding (tie_word_embeddings), but "
            f"{head} has other values; set it to false if the head was trained apart"
        )
    if is_tied:
        found.names.pop(head, None)
    return {"tie_weights": is_tied}


def _n_layers(found: _Found) -> int:
    numbers = {int(match[1]) for name in found.names if (match := _BLOCK.match(name))}
    n_layers = max(numbers, default=-1) + 1
    if not numbers or n_layers != len(numbers):
        missing = next((n for n in range(len(numbers) + 1) if n not in numbers), 0)
        raise WeightsError(f"{found.path} holds tensors of {len(numbers)} blocks, but none of block {missing}")
    # A block has six tensors at least. The bounds come before a model of so many blocks is thought of.
    if 6 * n_layers > len(found.names) or n_layers > _MOST_LAYERS:
        raise WeightsError(
            f"{found.path} holds {len(found.names)} tensors of {n_layers} blocks: expected at least 6 of each, and "
            f"at most {_MOST_LAYERS} blocks (GPT-2 1558M has 48)"
        )
    return n_layers


def _compare(found: _Found, layout: Layout, expected: Sequence[Link]) -> None:
    """Raise WeightsError unless the tensors are the expected ones; missing biases are zeros where a layout has none."""
    shapes = {link.theirs: link.shape for link in expected}
    zeros = found.zeros(layout, shapes)
    if zeros - {"score.bias"}:
        found.notes.append("there are no biases, as nanoGPT's bias=False has it: they are zeros")
    missing = [name for name in shapes if name not in found.names and name not in zeros]
    unknown = [name for name in found.names if name not in shapes]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(shapes)} expected tensors are missing ({_some(missing)})")
    if unknown:
        near = difflib.get_close_matches(unknown[0][:200], missing or shapes, n=1)
        hint = f"; nearest to {unknown[0]:.80} is {near[0]}" if near else ""
        problems.append(f"{len(unknown)} tensors are not expected ({_some(unknown)}{hint})")
    for name, shape in shapes.items():
        info = found.info(name)
        if info is None:
            continue
        if found.shape(name) != shape:
            problems.append(f"{name} has shape {found.shape(name)}, expected {shape}")
        elif info.dtype not in DTYPES.values():
            problems.append(f"{name} holds {info.dtype}, expected one of {', '.join(DTYPES)}")
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise WeightsError(f"{found.path} is not the GPT-2 that its shapes promise: {'; '.join(problems[:4])}{more}")


def _cropped(config: GPTConfig, layout: Layout, vocab_size: int | None) -> GPTConfig:
    if vocab_size is None:
        # nanoGPT pads GPT-2's vocabulary to a multiple of 64; the rows added are never trained.
        is_padded = layout == NANOGPT and config.vocab_size == _PADDED
        vocab_size = _GPT2_VOCABULARY if is_padded else config.vocab_size
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or not 1 <= vocab_size <= config.vocab_size:
        raise WeightsError(f"vocab_size can crop the vocabulary to 1..{config.vocab_size} rows, got {vocab_size!r}")
    return dataclasses.replace(config, vocab_size=vocab_size)


@dataclass
class _Found:
    """Tensors under the layout's own names."""

    files: TensorFiles
    names: dict[str, tuple[str, ...]]
    notes: list[str]

    @property
    def path(self) -> Path:
        return self.files.path

    def info(self, name: str) -> TensorInfo | None:
        return self.files.tensors[self.names[name][0]] if name in self.names else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape, without the leading 1 that OpenAI's matrices have; () if there is no such tensor."""
        info = self.info(name)
        if info is None:
            return ()
        return info.shape[1:] if len(info.shape) == 3 and info.shape[0] == 1 else info.shape

    def zeros(self, layout: Layout, names: Iterable[str]) -> set[str]:
        """Return which of the names stand for zeros: all biases of a nanoGPT without any, and that of ``score``."""
        biases = {name for name in names if name.endswith(".bias")}
        if layout == NANOGPT and not any(name.endswith(".bias") for name in self.names):
            return biases
        return (biases & {"score.bias"}) - self.names.keys()

    def is_alias(self, name: str, of: str) -> bool:
        raw, first = self.names[name][0], self.names[of][0]
        return self.files.aliases.get(raw, raw) == self.files.aliases.get(first, first)

    def are_equal(self, name: str, other: str) -> bool:
        with self.files.open() as get:
            return torch.equal(get(self.names[name][0]), get(self.names[other][0]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"{name:.80}" for name in names[:3]) + (", ..." if len(names) > 3 else "")
