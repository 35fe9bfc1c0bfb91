"""The memory and the work of loading, generating and training, told before anything is built.

A few sums over the config, so that the answer comes in microseconds for any size and takes no memory. What is counted
was read off our own code and checked against measured peaks (``benchmarks/estimate.py``).

Operations are those of products (``gpt_core.counts``); a backward pass is two forward passes (Hoffmann et al. 2022,
appendix F).

Sizes: B batch, T tokens, R = B * T rows, D width, H heads, G heads of keys and values, K head width, V vocabulary,
P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch

from gpt_core.checks import check_count, check_generates
from gpt_core.config import GPTConfig
from gpt_core.counts import forward_flops, n_block_weights, n_kv_heads, n_parameters, n_seen, qkv_width
from gpt_core.training_memory import training_memory

Mode = Literal["load", "generate", "train"]

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
_DTYPES: dict[str, tuple[str, ...]] = {
    "load": ("float32", "bfloat16", "float16", "float64"),
    "generate": ("float32", "bfloat16", "int8"),
    "train": ("float32", "bfloat16"),
}
_MIB = 2**20

# Code and tables that torch brings into memory at first use, whatever the model: torch 2.15 on Linux, measured with a
# model of 58,000 parameters (generation 19 MiB, and a few more for the buffers of large products; training 172 in
# float32 and 180 in bfloat16, mostly torch._dynamo, which AdamW imports) and by loading.
_LIBRARIES = {"load": 3 * _MIB, "generate": 25 * _MIB, "train": 175 * _MIB}
# Of what training takes, glibc's heap loses about another eighth in holes: blocks of one step do not fit where those of
# the step before lay. Measured from 12M to 355M parameters: 8 to 16 % where freed memory is kept, 3 to 16 % by default.
_HEAP_SHARE = 8

# How gpt_core.engine cuts its prompts.
_PIECE = 512


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What ``estimate`` tells; the memory is that of the moment at which it is largest, in parts."""

    mode: Mode
    """What is done: load, generate or train."""
    parameters: int
    """Numbers that training changes; a tied head counts once."""
    weights: int
    """Bytes of the parameters, with what generation keeps besides (weights put together, scales)."""
    gradients: int
    """Bytes of the gradients that exist at the peak."""
    optimizer: int
    """Bytes of AdamW's two moments of each parameter."""
    activations: int
    """Bytes of what the blocks compute: kept for the backward pass in training, else those of one block."""
    cache: int
    """Bytes of the keys and values of all tokens, float32, in generation."""
    logits: int
    """Bytes of the scores over the vocabulary and their working copies."""
    heap: int
    """Bytes in holes that the C library's allocator cannot fill."""
    libraries: int
    """Bytes that torch takes for itself at first use, whatever the model."""
    flops: int
    """Floating-point operations: of one optimizer step, or of one more token for each sequence; 0 for load."""
    prompt_flops: int
    """Floating-point operations of reading a prompt that fills the context, in generation."""

    @property
    def peak_bytes(self) -> int:
        """Most memory, in bytes, beyond that of a process that has imported torch and gpt_core: the parts' sum."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """The bytes by the name of the field."""
        others = {"mode", "parameters", "flops", "prompt_flops"}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_readable(size)}" for name, size in self.parts.items() if size)
        work = {
            "load": "",
            "generate": f"; {_scaled(self.flops)}FLOP a token step, {_scaled(self.prompt_flops)}FLOP the prompt",
            "train": f"; {_scaled(self.flops)}FLOP a step",
        }[self.mode]
        return f"{self.mode}: {self.parameters:,} parameters; {_readable(self.peak_bytes)} at most ({parts}){work}"


def estimate(
    config: GPTConfig | Mapping[str, Any],
    *,
    batch: int = 1,
    context: int | None = None,
    dtype: torch.dtype | str = "float32",
    mode: Mode,
) -> Estimate:
    """Return the parameters, the peak of memory on a CPU and the operations of ``mode``; nothing is built.

    - "load": ``load_checkpoint`` of a checkpoint whose tensors have ``dtype``; batch and context play no part.
    - "generate": the model in memory, and generation with a cache full of ``batch`` sequences of ``context`` tokens
      (None: the model's context length). dtype "bfloat16" or "int8" means a model made by ``quantize`` on a processor
      that it packs weights for (AVX-512), and the one it was made from deleted. The peak of loading is not in it: the
      process needs the larger of the two.
    - "train": steps of ``gpt_train.train`` on ``batch`` x ``context`` tokens from the second step on, without
      accumulation, evaluation or compilation. dtype "bfloat16" is the arithmetic of the products, which training
      chooses by itself where the processor has it; parameters, gradients and moments are float32 in both.

    The memory is that of glibc's allocator, in a process that keeps its freed memory as ``gpt-pretrain`` does, or not;
    see ``benchmarks/results/estimate.md`` for how far measured peaks are from it.

    Raises ValueError for a config, count, dtype or mode that does not exist, with what does, and for mode "generate" of
    a model that classifies.
    """
    config = GPTConfig.from_dict(config)
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if mode == "generate":
        check_generates(config)
    check_count("batch", batch, least=1)
    if context is None:
        context = config.context_length
    check_count("context", context, least=1)
    if context > config.context_length:
        raise ValueError(
            f"context must be at most the model's context length of {config.context_length}, got {context}; "
            "shorten it or give a config with a longer one"
        )
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES[mode]:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES[mode])} to {mode}, got {dtype!r}{_hint(mode)}")
    if mode == "load":
        return _of_load(config, name)
    if mode == "generate":
        return _of_generate(config, batch, context, name)
    return _of_train(config, batch, context, is_mixed=name == "bfloat16")


def _of_load(config: GPTConfig, dtype: str) -> Estimate:
    return _estimate(config, "load", weights=n_parameters(config) * _BYTES[dtype])


def _of_generate(config: GPTConfig, B: int, T: int, dtype: str) -> Estimate:
    D, V, L = config.emb_dim, config.vocab_size, config.n_layers
    qkv, size = qkv_width(config), _BYTES[dtype]
    parameters = n_parameters(config)
    tables = (1 if config.tie_weights else 2) * V * D
    matrices = L * n_block_weights(config)
    if dtype == "float32":
        # The three weights of queries, keys and values are kept put together, too.
        weights = 4 * parameters + 4 * L * qkv * (D + 1 if config.qkv_bias else D)
    else:
        weights = size * (matrices + tables) + 4 * (parameters - matrices - tables)
        # A tied table twice: for its rows, and packed for its product.
        weights += size * V * D if config.tie_weights else 0
    if dtype == "int8":
        weights += 4 * 3 * (L * (qkv + 6 * D) + 2 * V)  # a scale, a bias and a zero point for each row
    cache = 4 * 2 * L * B * T * n_kv_heads(config) * config.head_dim
    R = min(_PIECE, B * T)
    # A piece of the prompt: its residual stream and norm, the wide layer before and after GELU. int8 takes each row of
    # inputs as two of bytes, whose products come first.
    piece = 4 * R * (2 * D + 8 * D) + (32 * R * D if dtype == "int8" else 0) + 5 * R * n_seen(config, T)
    return _estimate(
        config, "generate", weights=weights, cache=cache, activations=piece, logits=3 * 4 * B * V,
        flops=2 * B * (matrices + V * D) + 4 * L * D * B * n_seen(config, T),
        prompt_flops=forward_flops(config, B, T, n_logits=B))


def _of_train(config: GPTConfig, B: int, T: int, *, is_mixed: bool) -> Estimate:
    parameters, forward = n_parameters(config), forward_flops(config, B, T, n_logits=B * T)
    return _estimate(
        config, "train", weights=4 * parameters, optimizer=8 * parameters, flops=3 * forward,
        **training_memory(config, B, T, is_mixed=is_mixed))


def _estimate(config: GPTConfig, mode: Mode, *, flops: int = 0, prompt_flops: int = 0, **parts: int) -> Estimate:
    names = ("weights", "gradients", "optimizer", "activations", "cache", "logits")
    known = {name: parts.get(name, 0) for name in names}
    heap = sum(known.values()) // _HEAP_SHARE if mode == "train" else 0
    return Estimate(
        mode=mode, parameters=n_parameters(config), heap=heap, libraries=_LIBRARIES[mode], flops=flops,
        prompt_flops=prompt_flops, **known)


def _hint(mode: str) -> str:
    return {
        "load": "; quantize changes the model after it is loaded",
        "generate": "; quantize makes the smaller ones",
        "train": "; parameters are float32 in training, bfloat16 is the arithmetic of the products",
    }[mode]


def _readable(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / _MIB:.1f} MiB"


def _scaled(count: int) -> str:
    for unit, factor in (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} "
