"""A GGUF file for llama.cpp and Ollama, and the ``Modelfile`` that Ollama asks for.

What is kept in which type is as llama.cpp's own converter does it: norms, biases and position embeddings in float32,
the matrices as asked for.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gpt_weights.errors import WeightsError
from gpt_weights.export import (
    Export,
    compare,
    exported_config,
    in_layout,
    publishing,
    row_pieces,
    tensors_to_export,
)
from gpt_weights.files import converted
from gpt_weights.formats import open_weights
from gpt_weights.gguf_file import import_gguf
from gpt_weights.mapping import GGUF, Link, links
from gpt_weights.tokenizer import TokenizerFile
from gpt_weights.weights import Weights

Kind = Literal["f32", "f16", "q8_0"]
_ALIGNMENT, _BLOCK = 32, 32
_MODELFILE = '''FROM ./{name}
# The model goes on with the text that it is given: no roles, no template.
TEMPLATE """{{{{ .Prompt }}}}"""
PARAMETER num_ctx {context_length}
'''


def export_gguf(
    weights: Weights, target: Path | str, *, tokenizer: TokenizerFile | None = None, kind: Kind = "f16"
) -> Export:
    """Write the weights as a new GGUF file ``target``, whole or not at all, and compare what it holds.

    ``kind`` is the type of the matrices: "f32"; "f16", half as large; or "q8_0", a quarter, 8 bits for each value and
    one scale for 32 of them. The tokenizer is the one that lies beside the weights unless another is given; without
    one llama.cpp cannot open a model. Ids without a token are filled with unused ones. A ``Modelfile`` is written
    beside the file, last, if there is none; a note says so if it could not be.

    Raises WeightsError if the model is no GPT-2 or a classifier, if there is no tokenizer, or one that llama.cpp would
    apply otherwise, if a value is too large for float16, or if ``target`` is there already or is called Modelfile;
    ImportError naming the extra ``gguf``; OSError with the system's ``errno`` if the file cannot be written.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    gguf = import_gguf("writing a GGUF file")
    target = Path(target)
    place = target.resolve()
    modelfile = place.with_name("Modelfile")
    if place.name.lower() == modelfile.name.lower():
        raise WeightsError(f"{target} has the name of the Modelfile that is written beside it; choose a new name")
    config, tokenizer = exported_config(weights.config), tokenizer or weights.tokenizer
    if config.n_classes is not None:
        raise WeightsError(f"{weights.path} is a classifier, which llama.cpp's GPT-2 cannot be; export it as hf")
    notes = _check_tokenizer(tokenizer, weights)
    assert tokenizer is not None
    expected = links(GGUF, config)
    if config.tie_weights:
        expected.append(Link("output.weight", ("tok_emb.weight",), expected[0].shape, is_turned=False))
    kinds = {link.theirs: _kind(link.ours[0], link.shape, kind) for link in expected}
    if kind == "q8_0" and "f16" in kinds.values():
        notes.append("matrices whose rows do not fill blocks of 32 are in float16")
    needed = sum(_nbytes(link.shape, kinds[link.theirs]) for link in expected)
    with publishing(target, needed=needed) as temporary:
        places = _write_header(gguf, temporary, weights, tokenizer, expected, kinds, kind, place.stem)
        with temporary.open("r+b") as file:
            file.truncate(places.pop(""))
            for link, tensor in in_layout(tensors_to_export(weights, {}), expected):
                file.seek(places[link.theirs])
                for piece in row_pieces(tensor):
                    file.write(_stored(gguf, link.theirs, piece, kinds[link.theirs]).data)
                del tensor, piece
        largest = compare(
            tensors_to_export(weights, {}), open_weights(temporary).tensors(),
            lambda name, tensor: _as_read(gguf, name, tensor, _kind(name, tensor.shape, kind)),
        )
    notes += _write_modelfile(modelfile, _MODELFILE.format(name=place.name, context_length=config.context_length))
    return Export(target, largest, tuple(notes))


def _write_modelfile(path: Path, text: str) -> list[str]:
    """Write the Modelfile unless there is one; a note on what went otherwise, never an error: the weights are there."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return ["the Modelfile that lies beside it is left as it was"]
    except OSError as error:
        return [f"the Modelfile beside it could not be written: {error.strerror or error}"]
    try:
        with file:
            file.write(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        return [f"the Modelfile beside it could not be written: {error.strerror or error}"]
    return []


def _check_tokenizer(tokenizer: TokenizerFile | None, weights: Weights) -> list[str]:
    """Return notes on the tokenizer; WeightsError if llama.cpp would do without it or apply it otherwise."""
    if tokenizer is None:
        raise WeightsError(
            f"there is no tokenizer beside {weights.path}, and llama.cpp opens no model without one: give one "
            "(--tokenizer), a tokenizer.json or a folder with GPT-2's vocab.json and merges.txt"
        )
    if not tokenizer.splits_as_gpt2:
        raise WeightsError(
            f"{tokenizer.path} does not split text into words as GPT-2 does, so llama.cpp's 'gpt-2' would give other "
            "ids; give the tokenizer of a GPT-2"
        )
    return tokenizer.check_fits(weights.config.vocab_size)


def _kind(name: str, shape: Sequence[int], kind: Kind) -> Kind:
    """Return the type that our tensor ``name``, or theirs of this shape that it is part of, is kept in."""
    if len(shape) == 1 or name == "pos_emb.weight":
        return "f32"
    return "f16" if kind == "q8_0" and shape[-1] % _BLOCK else kind


def _nbytes(shape: Sequence[int], kind: Kind) -> int:
    n = math.prod(shape)
    return {"f32": 4 * n, "f16": 2 * n, "q8_0": n // _BLOCK * (_BLOCK + 2)}[kind]


def _padded(n: int) -> int:
    return n + -n % _ALIGNMENT


def _stored(gguf: Any, name: str, tensor: Tensor, kind: Kind) -> np.ndarray[Any, Any]:
    """Return the tensor as it lies in the file."""
    if kind != "q8_0":
        return converted(name, tensor, torch.float16 if kind == "f16" else torch.float32).numpy()
    return gguf.quantize(converted(name, tensor, torch.float32).numpy(), gguf.GGMLQuantizationType.Q8_0)


def _as_read(gguf: Any, name: str, tensor: Tensor, kind: Kind) -> Tensor:
    """Return what a reader gets of the tensor."""
    stored = _stored(gguf, name, tensor, kind)
    if kind == "q8_0":
        stored = gguf.dequantize(stored, gguf.GGMLQuantizationType.Q8_0)
    return torch.from_numpy(stored)


def _write_header(
    gguf: Any,
    path: Path,
    weights: Weights,
    tokenizer: TokenizerFile,
    expected: Sequence[Link],
    kinds: Mapping[str, Kind],
    kind: Kind,
    name: str,
) -> dict[str, int]:
    """Write all but the values; return in which byte those of each tensor begin, and under "" the file's size."""
    config = weights.config
    writer = gguf.GGUFWriter(path, "gpt2")
    try:
        writer.add_name(name)
        writer.add_custom_alignment(_ALIGNMENT)
        writer.add_context_length(config.context_length)
        writer.add_embedding_length(config.emb_dim)
        writer.add_feed_forward_length(4 * config.emb_dim)
        writer.add_block_count(config.n_layers)
        writer.add_head_count(config.n_heads)
        writer.add_layer_norm_eps(1e-5)
        file_type = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}[kind]
        writer.add_file_type(gguf.LlamaFileType[file_type])
        if kind == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_tokenizer(gguf, writer, tokenizer, config.vocab_size)
        offsets: dict[str, int] = {}
        end = 0
        for link in expected:
            nbytes = _nbytes(link.shape, kinds[link.theirs])
            of_kind = gguf.GGMLQuantizationType[kinds[link.theirs].upper()]
            writer.add_tensor_info(link.theirs, link.shape, np.dtype(np.float32), nbytes, raw_dtype=of_kind)
            offsets[link.theirs], end = end, end + _padded(nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    first = _padded(path.stat().st_size)
    return {theirs: first + offset for theirs, offset in {**offsets, "": end}.items()}


def _add_tokenizer(gguf: Any, writer: Any, tokenizer: TokenizerFile, vocab_size: int) -> None:
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    kinds = dict.fromkeys(tokenizer.vocabulary, gguf.TokenType.NORMAL)
    kinds |= dict.fromkeys(tokenizer.added_tokens, gguf.TokenType.USER_DEFINED)
    kinds |= dict.fromkeys(tokenizer.special_tokens, gguf.TokenType.CONTROL)
    for token, i in tokenizer.vocabulary.items():
        tokens[i], types[i] = token, kinds[token]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(tokenizer.merges)
    if tokenizer.end_of_text:
        writer.add_bos_token_id(tokenizer.end_of_text[1])
        writer.add_eos_token_id(tokenizer.end_of_text[1])
