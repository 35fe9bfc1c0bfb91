"""GGUF files of llama.cpp and Ollama with a GPT-2 in them: tensors, the model's numbers, its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt_weights.errors import WeightsError
from gpt_weights.files import Get, TensorFiles, TensorInfo
from gpt_weights.gguf_header import PLAIN, GGUFTensor, read_header
from gpt_weights.tokenizer import TokenizerFile, tokenizer_of

_DTYPES = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
_FIELDS = {
    "gpt2.context_length": "context_length", "gpt2.embedding_length": "emb_dim", "gpt2.block_count": "n_layers",
    "gpt2.attention.head_count": "n_heads",
}
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_PIECE = 2**20


class GGUFFile(TensorFiles):
    """The tensors of a GGUF file; quantized ones are given as float32."""

    kind = "GGUF"

    def __init__(self, path: Path, tensors: Mapping[str, GGUFTensor]) -> None:
        self.path = path
        self._entries = tensors
        self._size = path.stat().st_size
        self.tensors = {name: _info(entry) for name, entry in tensors.items()}
        self.aliases = {_HEAD: _EMBEDDING} if self._has_tied_head() else {}

    @contextmanager
    def open(self) -> Iterator[Get]:
        """Open the file, mapped."""
        mapped = [self._mapped()]

        def get(name: str) -> Tensor:
            entry = self._entries[name]
            array = mapped[0][entry.start : entry.start + entry.nbytes]
            if entry.type in PLAIN:
                return torch.from_numpy(array).view(_DTYPES[entry.type]).reshape(entry.shape)
            return torch.from_numpy(_dequantized(array, entry))

        try:
            yield get
        finally:
            mapped.clear()  # an error's traceback keeps ``get``, which must not keep the map

    def _mapped(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        try:
            # "c": private pages; a tensor of read-only memory, torch warns of.
            data = np.memmap(self.path, np.uint8, mode="c")
        except (OSError, ValueError) as error:
            raise WeightsError(f"{self.path} cannot be read: {error}") from error
        if len(data) != self._size:
            raise WeightsError(f"{self.path} was changed while it was read")
        return data

    def _has_tied_head(self) -> bool:
        """Whether the head is the token embedding once more, as llama.cpp's converter writes a tied one."""
        head, embedding = self._entries.get(_HEAD), self._entries.get(_EMBEDDING)
        if head is None or embedding is None or (head.shape, head.type) != (embedding.shape, embedding.type):
            return False
        data = self._mapped()
        first, second = (data[entry.start : entry.start + entry.nbytes] for entry in (head, embedding))
        pieces = (slice(start, start + _PIECE) for start in range(0, head.nbytes, _PIECE))
        return all(np.array_equal(first[piece], second[piece]) for piece in pieces)


def open_gguf(path: Path) -> tuple[TensorFiles, dict[str, Any], TokenizerFile | None]:
    """Return the file's tensors, the fields of ``GPTConfig`` that it names, and its tokenizer, if it has one.

    Raises WeightsError if the file is damaged, in parts, or holds another model than GPT-2; ImportError naming the
    extra ``gguf`` if it holds quantized values and the package gguf is not installed.
    """
    header = read_header(path)
    pairs = header.pairs
    if (architecture := pairs.get("general.architecture")) != "gpt2":
        raise WeightsError(f"{path} holds a model of architecture {architecture!r:.60}; only 'gpt2' is read")
    if pairs.get("split.count", 1) != 1:
        raise WeightsError(f"{path} is one of several parts; join them with llama.cpp's `llama-gguf-split --merge`")
    return GGUFFile(path, header.tensors), _hints(path, pairs), _tokenizer(path, pairs)


def import_gguf(purpose: str) -> Any:
    """Return the package gguf; ImportError naming the extra if it is not installed."""
    try:
        import gguf  # type: ignore[import-untyped,unused-ignore]  # 0.6 s; only GGUF's own types need it
    except ImportError as error:
        raise ImportError(f"{purpose} needs gguf: install 'gpt-weights[gguf]'") from error
    return gguf


def _hints(path: Path, pairs: Mapping[str, Any]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for theirs, ours in _FIELDS.items():
        if theirs in pairs:
            value = pairs[theirs]
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
                raise WeightsError(f"{path}: {theirs} must be a whole number from 1 on, got {value!r:.60}")
            hints[ours] = value
    epsilon = pairs.get("gpt2.attention.layer_norm_epsilon", 1e-5)
    if not isinstance(epsilon, float) or not math.isclose(epsilon, 1e-5, rel_tol=1e-6):
        raise WeightsError(f"{path}: the norms' epsilon is {epsilon!r:.60}, but a GPT-2 computes with 1e-05")
    width, E = pairs.get("gpt2.feed_forward_length"), hints.get("emb_dim")
    if width is not None and E is not None and width != 4 * E:
        raise WeightsError(f"{path}: gpt2.feed_forward_length is {width!r:.60}, but a GPT-2 {E} wide has {4 * E}")
    return hints


def _tokenizer(path: Path, pairs: Mapping[str, Any]) -> TokenizerFile | None:
    tokens, merges = pairs.get("tokenizer.ggml.tokens"), pairs.get("tokenizer.ggml.merges")
    is_gpt2s = pairs.get("tokenizer.ggml.model") == "gpt2" and pairs.get("tokenizer.ggml.pre", "gpt-2") == "gpt-2"
    if not is_gpt2s or tokens is None or merges is None:
        return None
    types = pairs.get("tokenizer.ggml.token_type", [])
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in (tokens, merges)):
        raise WeightsError(f"{path}: the tokenizer's tokens and merges must be texts")
    if not isinstance(types, list) or len(types) not in (0, len(tokens)):
        raise WeightsError(f"{path}: the tokenizer has {len(tokens)} tokens, but not as many types of tokens")
    kinds = dict(enumerate(types))
    used = [(token, i) for i, token in enumerate(tokens) if kinds.get(i) != _UNUSED]
    vocabulary = dict(used)
    if len(vocabulary) != len(used):
        raise WeightsError(f"{path}: the tokenizer has the same token twice")
    if not types:
        return tokenizer_of(path, vocabulary, merges)
    special = [token for token, i in used if kinds[i] == _CONTROL]
    added = {token: i for token, i in used if kinds[i] == _USER_DEFINED}
    return tokenizer_of(path, vocabulary, merges, special=special, added=added)


def _info(entry: GGUFTensor) -> TensorInfo:
    """Return what is said of a tensor; the type is a name if there is no way to dequantize it."""
    if entry.type in _DTYPES:
        return TensorInfo(entry.shape, _DTYPES[entry.type])
    gguf = import_gguf("reading quantized values")
    kind = gguf.GGMLQuantizationType(entry.type)
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return TensorInfo(entry.shape, str(kind.name))
    return TensorInfo(entry.shape, torch.float32, stored=(str(kind.name), entry.nbytes))


def _dequantized(array: np.ndarray[Any, np.dtype[np.uint8]], entry: GGUFTensor) -> np.ndarray[Any, Any]:
    gguf = import_gguf("reading quantized values")
    rows = array.reshape(math.prod(entry.shape[:-1]), -1)
    values = np.empty((len(rows), entry.shape[-1]), np.float32)
    n = max(1, _PIECE // entry.shape[-1])
    with np.errstate(all="ignore"):  # of a damaged file; values that are no numbers are found later
        for start in range(0, len(rows), n):
            values[start : start + n] = gguf.dequantize(rows[start : start + n], gguf.GGMLQuantizationType(entry.type))
    return values.reshape(entry.shape)
