"""A directory that transformers opens: ``AutoModelForCausalLM``, ``AutoModelForSequenceClassification``, its tokenizer.

The weights become Hugging Face's GPT-2: queries, keys and values in one tensor, matrices as (in, out). Its classifier
has no bias in the head; ours is put into the last norm's shift, which the head alone reads.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gpt_weights.errors import WeightsError
from gpt_weights.export import (
    Export,
    compare,
    exported_config,
    in_layout,
    publishing,
    source_dtypes,
    tensors_to_export,
)
from gpt_weights.files import DTYPES, converted
from gpt_weights.formats import open_weights
from gpt_weights.huggingface_texts import config_json, model_card, tokenizer_files
from gpt_weights.mapping import HUGGINGFACE, Link, links
from gpt_weights.tokenizer import TokenizerFile, is_unicode
from gpt_weights.weights import Weights

_HEADS = ("lm_head.", "score.")  # which stand beside the model in transformers' classes, not in it
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def export_huggingface(
    weights: Weights,
    target: Path | str,
    *,
    tokenizer: TokenizerFile | None = None,
    labels: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Export:
    """Write the weights as a new folder ``target`` for transformers, whole or not at all, and compare what it holds.

    The tokenizer is the one that lies beside the weights unless another is given; so are a classifier's ``labels``,
    which are LABEL_0, ... if neither tells them. ``dtype`` converts the values; None leaves them as they are, and the
    largest difference is then 0, but for a classifier whose head has a bias: it is that of the logits of 64 vectors.

    Raises WeightsError if the model is no GPT-2, if tokenizer or labels do not fit it, if a bias cannot be put into the
    norm, or if ``target`` holds something already; ValueError if ``dtype`` is none that weights may have; OSError with
    the system's ``errno`` if it cannot be written.
    """
    if dtype is not None and dtype not in _NAMES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _NAMES))}, got {dtype}")
    target = Path(target)
    tokenizer = tokenizer or weights.tokenizer
    config = exported_config(weights.config)
    expected = [link for link in links(HUGGINGFACE, config) if link.theirs != "score.bias"]
    labels = _labels(weights, labels)
    dtypes = _dtypes(weights, expected, dtype)
    changed, largest, notes = _without_head_bias(weights, dtypes)
    if labels is not None:
        notes.append(
            "transformers reads the class at the last token that is no padding, the book's chapter 6 at the last "
            "position even if it is padding: a classifier trained so needs texts padded before, with pad_token_id None"
        )
    if tokenizer is None:
        notes.append("no tokenizer is known, so AutoTokenizer cannot open the folder: give one (--tokenizer)")
    else:
        notes += tokenizer.check_fits(config.vocab_size)
    texts = {
        "config.json": config_json(weights, tokenizer, labels, functools.reduce(torch.promote_types, dtypes.values())),
        "README.md": model_card(weights, target.resolve().name, notes),
        **tokenizer_files(config, tokenizer),
    }
    needed = sum(math.prod(link.shape) * dtypes[link.theirs].itemsize for link in expected)
    with publishing(target, needed=needed) as folder:
        folder.mkdir()
        for name, data in texts.items():
            (folder / name).write_bytes(data)
        _write_weights(folder / "model.safetensors", weights, expected, changed, dtypes)
        written = open_weights(folder)
        stored = {name: dtypes[link.theirs] for link in expected for name in link.ours}
        largest = max(largest, compare(
            tensors_to_export(weights, changed), written.tensors(),
            lambda name, tensor: converted(name, tensor, stored.get(name, written.dtype)),
        ))
    return Export(target, largest, tuple(notes))


def _labels(weights: Weights, labels: Sequence[str] | None) -> list[str] | None:
    n_classes = weights.config.n_classes
    if n_classes is None:
        if labels is not None:
            raise WeightsError(f"labels were given, but {weights.path} is no classifier; leave them out")
        return None
    chosen = list(labels or weights.labels or (f"LABEL_{i}" for i in range(n_classes)))
    if len(set(chosen)) != n_classes:
        raise WeightsError(f"{weights.path} tells {n_classes} classes apart, give as many different labels: {chosen}")
    for label in chosen:
        if not isinstance(label, str) or not is_unicode(label):
            raise WeightsError(f"{weights.path}: the label {label!r:.60} is no text of whole characters; give others")
    return chosen


def _dtypes(weights: Weights, expected: Sequence[Link], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """Return the type of each tensor of theirs: of several of ours, the one that holds the values of all."""
    found = source_dtypes(weights)
    return {
        link.theirs: dtype or functools.reduce(torch.promote_types, (found[name] for name in link.ours))
        for link in expected
    }


def _write_weights(
    path: Path,
    weights: Weights,
    expected: Sequence[Link],
    changed: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Write model.safetensors: the header's length in 8 bytes, the header, the tensors; each to its place as it comes.

    Order and header are those of the library safetensors, which writes only tensors that are all in memory.
    """
    names = {link.theirs: link.theirs if link.theirs.startswith(_HEADS) else f"transformer.{link.theirs}"
             for link in expected}
    # Without {"format": "pt"} transformers refuses the file.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places: dict[str, int] = {}
    end = 0
    for link in sorted(expected, key=lambda link: (-dtypes[link.theirs].itemsize, names[link.theirs])):
        dtype = dtypes[link.theirs]
        places[link.theirs], end = end, end + math.prod(link.shape) * dtype.itemsize
        header[names[link.theirs]] = {
            "dtype": _NAMES[dtype], "shape": list(link.shape), "data_offsets": [places[link.theirs], end]
        }
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for link, tensor in in_layout(tensors_to_export(weights, changed), expected):
            file.seek(8 + len(text) + places[link.theirs])
            stored = converted(link.theirs, tensor, dtypes[link.theirs])
            file.write(stored.view(-1).view(torch.uint8).numpy().data)
            del tensor, stored


def _without_head_bias(
    weights: Weights, dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, Tensor], float, list[str]]:
    """Return our tensors that change when a classifier's bias b moves into the last norm's shift s, and a note.

    Between them, by how much its logits differ then, computed in the types that are written.

    The head computes W (n + s) + b for a normalised vector n: W (n + s + v) with W v = b. Of all such v the shortest
    is taken, pinv(W) b. It exists whenever the rows of W are independent; if they nearly are not, v is so long that n
    is lost beside it. Raises WeightsError in both cases.
    """
    if weights.config.n_classes is None:
        return {}, 0.0, []
    head, bias, shift = (weights.tensor(n) for n in ("out_head.weight", "out_head.bias", "final_norm.shift"))
    if not bias.any():
        return {}, 0.0, []
    W, b = head.double(), bias.double()                                          # (classes, E), (classes,)
    v = torch.linalg.pinv(W) @ b                                                 # (E,)
    moved = (shift.double() + v).to(shift.dtype)
    is_exact = float((W @ v - b).abs().max()) <= 1e-9 * float(b.abs().max())
    difference, allowed = _logits_difference(weights, moved, dtypes)
    if not is_exact or not difference <= allowed:  # a NaN is not, either
        raise WeightsError(
            f"{weights.path}: the head's bias cannot be put into the last norm, which is needed because transformers' "
            f"classifier has none: the rows of its weight depend on one another, wholly or nearly (logits would change "
            f"by {difference:.3g}, allowed is {allowed:.3g}); set the bias to zero, train on with independent rows, or "
            "choose a wider type"
        )
    notes = ["the head's bias is put into the last norm's shift, since transformers' classifier has none"]
    return {"final_norm.shift": moved, "out_head.bias": torch.zeros_like(bias)}, difference, notes


def _logits_difference(weights: Weights, moved: Tensor, dtypes: Mapping[str, torch.dtype]) -> tuple[float, float]:
    """Return by how much the logits differ if the last norm's shift is ``moved`` and the head has no bias, and may.

    The largest difference of the logits of 64 normalised vectors is taken, computed in the types that are written;
    allowed is 1e-4 of the largest logit or of 1, and 8 of the type's steps where that is more: float16, bfloat16.
    """
    head, scale, shift, moved = (
        tensor.to(dtypes[theirs]) for tensor, theirs in (
            (weights.tensor("out_head.weight"), "score.weight"), (weights.tensor("final_norm.scale"), "ln_f.weight"),
            (weights.tensor("final_norm.shift"), "ln_f.bias"), (moved, "ln_f.bias"),
        )
    )
    dtype = torch.promote_types(torch.promote_types(head.dtype, scale.dtype), shift.dtype)
    bias = weights.tensor("out_head.bias").to(dtype)
    noise = torch.randn(64, head.shape[1], generator=torch.Generator().manual_seed(0))
    n = functional.layer_norm(noise, noise.shape[1:]).to(dtype)                  # (64, E)
    before = functional.linear((n * scale + shift).to(dtype), head.to(dtype), bias).double()   # (64, classes)
    after = functional.linear((n * scale + moved).to(dtype), head.to(dtype)).double()
    allowed = max(1e-4, 8 * torch.finfo(dtype).eps) * max(1.0, float(before.abs().max()))
    return float((before - after).abs().max()), allowed
