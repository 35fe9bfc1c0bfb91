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

# Wrappers' prefixes: torch.compile, DataParallel, GPT2LMHeadModel, and the name that OpenAI's scripts give the model.
_PREFIX = re.compile(r"((_orig_mod|module|transformer)\.)*(model/)?")
_MASK = re.compile(r"(h\.\d+\.attn\.(masked_)?bias|trf_blocks\.\d+\.att\.mask)")
_LORA = re.compile(r"(.+)\.(linear\.weight|linear\.bias|lora\.A|lora\.B)")
_BLOCK = re.compile(r"(?:trf_blocks\.|h\.|h|blk\.)(\d{1,9})[./]")
_HEADS_OF_WIDTH = {config.emb_dim: config.n_heads for config in map(gpt2_config, ("124M", "355M", "774M", "1558M"))}
_PADDED, _GPT2_VOCABULARY = 50304, 50257


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
    found = _Found(files, *_named(files, has_lora_scale))
    layout = _layout(found)
    config = _config(found, layout, hints)
    expected = links(layout, config)
    _compare(found, expected)
    cropped = _cropped(config, layout, vocab_size)
    if cropped != config:
        found.notes.append(f"of {config.vocab_size} rows of the vocabulary the first {cropped.vocab_size} are kept")
    return Contents(layout, cropped, expected, found.names, tuple(found.notes))


def _named(files: TensorFiles, has_lora_scale: bool) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return {the layout's name: the file's names}, without wrappers' prefixes and buffers, and notes on them."""
    names: dict[str, tuple[str, ...]] = {}
    adapted: dict[str, dict[str, str]] = {}
    n_masks = 0
    for raw in files.tensors:
        name = _PREFIX.sub("", raw, count=1) if _PREFIX.match(raw) else raw
        if _MASK.fullmatch(name) and len(files.tensors[raw].shape) != 1:
            n_masks += 1
        elif match := _LORA.fullmatch(name):
            adapted.setdefault(match[1], {})[match[2]] = raw
        elif name in names:
            raise WeightsError(f"{files.path} holds {name} twice, as {names[name][0]} and as {raw}")
        else:
            names[name] = (raw,)
    notes = [f"{n_masks} mask buffers are left out"] if n_masks else []
    for name, parts in adapted.items():
        if not {"linear.weight", "lora.A", "lora.B"} <= parts.keys():
            raise WeightsError(f"{files.path}: {name} is wrapped in LoRA, but of weight, A and B has only {[*parts]}")
        names[f"{name}.weight"] = (parts["linear.weight"], parts["lora.A"], parts["lora.B"])
        if "linear.bias" in parts:
            names[f"{name}.bias"] = (parts["linear.bias"],)
    if adapted:
        _check_adapters(files, names, has_lora_scale)
        notes.append(f"the LoRA matrices of {len(adapted)} layers are merged")
    return names, notes


def _check_adapters(files: TensorFiles, names: Mapping[str, tuple[str, ...]], has_lora_scale: bool) -> None:
    for raws in names.values():
        if len(raws) == 3:
            weight, a, b = (files.tensors[raw].shape for raw in raws)
            if len(weight) != 2 or len(a) != 2 or len(b) != 2 or (a[0], b[1], a[1]) != (weight[1], weight[0], b[0]):
                raise WeightsError(f"{files.path}: LoRA's A {a} and B {b} do not fit {raws[0]} {weight}")
    rank = next(files.tensors[raws[1]].shape[1] for raws in names.values() if len(raws) == 3)
    if not has_lora_scale:
        raise WeightsError(
            f"{files.path} holds LoRA matrices of rank {rank}, but nothing says by what they are scaled: give "
            f"lora_scale (--lora-scale), which is alpha / rank in the book (1 for alpha {rank}), and alpha where a "
            "layer computes alpha * (x A B)"
        )


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
    shape = found.shape(head)
    if shape and (shape[0] != V or head.removesuffix("weight") + "bias" in found.names):
        return {"n_classes": shape[0], "tie_weights": False}
    is_said = hints.get("tie_weights")
    is_tied = is_said is not False if not shape else found.is_alias(head, embedding)
    if is_said and not is_tied and not (is_tied := found.are_equal(head, embedding)):
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
    return n_layers


def _compare(found: _Found, expected: Sequence[Link]) -> None:
    """Raise WeightsError unless the tensors are the expected ones; missing biases are zeros where a layout has none."""
    shapes = {link.theirs: link.shape for link in expected}
    missing = [name for name in shapes if name not in found.names and name not in found.zeros(shapes)]
    unknown = [name for name in found.names if name not in shapes]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(shapes)} expected tensors are missing ({_some(missing)})")
    if unknown:
        near = difflib.get_close_matches(unknown[0], missing or shapes, n=1)
        hint = f"; nearest to {unknown[0]} is {near[0]}" if near else ""
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

    def zeros(self, names: Iterable[str]) -> set[str]:
        """Return which of the names stand for zeros: every bias of a nanoGPT without biases, and that of a new head."""
        biases = {name for name in names if name.endswith(".bias")}
        if any(name.endswith(".bias") for name in self.names):
            return biases & {"score.bias"}
        return biases if "wte.weight" in self.names else set()

    def is_alias(self, name: str, of: str) -> bool:
        raw, first = self.names[name][0], self.names[of][0]
        return self.files.aliases.get(raw, raw) == self.files.aliases.get(first, first)

    def are_equal(self, name: str, other: str) -> bool:
        with self.files.open() as get:
            return torch.equal(get(self.names[name][0]), get(self.names[other][0]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
