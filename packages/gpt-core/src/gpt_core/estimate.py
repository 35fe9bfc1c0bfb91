"""The memory and the work of loading, generating and training, told before anything is built.

A few sums over the config, so that the answer comes in microseconds for any size and takes no memory. What is counted
was read off our own code and checked against measured peaks (``benchmarks/estimate.py``).

Products are counted as in Kaplan et al. 2020, section 2.1: 2 operations for each multiply-add; a backward pass is two
forward passes (Hoffmann et al. 2022, appendix F). Norms, softmax and activations are left out, they are below 1 % of a
GPT-2.

Sizes: B batch, T tokens, R = B * T rows, D width, H heads, G heads of keys and values, K head width, V vocabulary,
P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch

from gpt_core.checks import check_count
from gpt_core.config import GPTConfig

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

# How gpt_train.cross_entropy cuts its logits, gpt_attention.blocks its queries and gpt_core.engine its prompts.
_CHUNK_LOGITS = 2**25
_CACHED_LOGITS = 2**19
_BLOCK, _MAX_BLOCKS_TOKENS = 64, 512
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
    file: int
    """Bytes of the checkpoint's file that are mapped while its tensors are copied; the kernel can take them back."""
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

    Raises ValueError for a config, count, dtype or mode that does not exist, with what does.
    """
    config = GPTConfig.from_dict(config)
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
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
    weights = _parameters(config) * _BYTES[dtype]
    return _estimate(config, "load", weights=weights, file=weights)


def _of_generate(config: GPTConfig, B: int, T: int, dtype: str) -> Estimate:
    D, V, L = config.emb_dim, config.vocab_size, config.n_layers
    qkv, size = _qkv_width(config), _BYTES[dtype]
    parameters = _parameters(config)
    tables = (1 if config.tie_weights else 2) * V * D
    matrices = L * _block_matrices(config)
    if dtype == "float32":
        # The three weights of queries, keys and values are kept put together, too.
        weights = 4 * parameters + 4 * L * qkv * (D + 1 if config.qkv_bias else D)
    else:
        weights = size * (matrices + tables) + 4 * (parameters - matrices - tables)
        # A tied table twice: for its rows, and packed for its product.
        weights += size * V * D if config.tie_weights else 0
    if dtype == "int8":
        weights += 4 * 3 * (L * (qkv + 6 * D) + 2 * V)  # a scale, a bias and a zero point for each row
    cache = 4 * 2 * L * B * T * _n_kv_heads(config) * config.head_dim
    R = min(_PIECE, B * T)
    # A piece of the prompt: its residual stream and norm, the wide layer before and after GELU. int8 takes each row of
    # inputs as two of bytes, whose products come first.
    piece = 4 * R * (2 * D + 8 * D) + (32 * R * D if dtype == "int8" else 0) + 5 * R * _seen(config, T)
    return _estimate(
        config, "generate", weights=weights, cache=cache, activations=piece, logits=3 * 4 * B * V,
        flops=2 * B * (matrices + V * D) + 4 * L * D * B * _seen(config, T),
        prompt_flops=_forward_flops(config, B, T, n_logits=B))


def _of_train(config: GPTConfig, B: int, T: int, *, is_mixed: bool) -> Estimate:
    D, V, R = config.emb_dim, config.vocab_size, B * T
    parameters = _parameters(config)
    size = 2 if is_mixed else 4  # of the values that products take and give
    kept = _kept_of_block(config, B, T, is_mixed=is_mixed)
    all_kept = config.n_layers * kept + _kept_outside(config, R)
    # The gradient that comes down the residual stream, and those of the widest layer's input and weight.
    backward = (4 + 4 * size) * R * D + 16 * D * D + ((2 * R * D + 8 * D * D) if is_mixed else 0)
    head, blocks = 4 * V * D, 4 * (config.n_layers - 1) * _block_matrices(config)
    softmax, products = _head_buffers(config, R, is_mixed=is_mixed)
    moments = [  # (gradients, activations, logits)
        (4 * R * D, all_kept, softmax),                         # the first rows' loss
        (head + 4 * R * D, all_kept, products),                 # the head's gradient
        (head, all_kept + backward, 0),                                     # the last block's backward pass
        (head + blocks, kept + backward, 0),                                # the first block's
        # A tied head has two gradients, of its two uses, before they become one.
        (4 * parameters, head if config.tie_weights else 0, 0),             # the embedding's
    ]
    gradients, activations, logits = max(moments, key=sum)
    forward = _forward_flops(config, B, T, n_logits=R)
    return _estimate(
        config, "train", weights=4 * parameters, optimizer=8 * parameters, gradients=gradients, activations=activations,
        logits=logits, flops=3 * forward)


def _kept_of_block(config: GPTConfig, B: int, T: int, *, is_mixed: bool) -> int:
    """Return the bytes that one block keeps for its backward pass."""
    D, R, size = config.emb_dim, B * T, 2 if is_mixed else 4
    qkv = _qkv_width(config)
    # In blocks and with dropout, grouped keys and values are repeated for every head.
    repeats = config.drop_rate > 0 or _is_in_blocks(config, T)
    # Both norms' results; queries, keys and values; the context vectors; the wide layer before and after GELU.
    values = size * R * (2 * D + (3 * D if repeats else qkv) + D + 8 * D)
    values += 2 * _kept_of_norm(config, R) + _kept_of_attention(config, B, T, size)
    if config.drop_rate > 0:
        values += size * R * 2 * D  # what the two branches were multiplied by
    # Autocast's copy of every weight, or the three weights put together.
    return values + (2 * _block_matrices(config) if is_mixed else 4 * D * qkv)


def _kept_of_norm(config: GPTConfig, R: int) -> int:
    """Return the bytes of a norm's input, float32 always, and its statistics; an RMSNorm's quotient too."""
    if config.norm == "rmsnorm":
        return 4 * R * (2 * config.emb_dim + 1)
    return 4 * R * (config.emb_dim + 2)


def _kept_of_attention(config: GPTConfig, B: int, T: int, size: int) -> int:
    """Return the bytes that attention keeps besides queries, keys, values and context: see ``gpt_attention.attend``."""
    D, H = config.emb_dim, config.n_heads
    if config.drop_rate > 0:
        return 3 * size * B * H * T * T  # the probabilities before and after dropout, and what they were multiplied by
    if _is_in_blocks(config, T):
        ends = [min(start + _BLOCK, T) for start in range(0, T, _BLOCK)]
        return size * B * H * sum((end - start) * end for start, end in zip(range(0, T, _BLOCK), ends, strict=True))
    kept = 4 * B * H * T                        # log of each row's sum
    if _seen(config, T) < T:
        kept += size * T * T                    # the mask
    if config.positions == "rotary":
        # Queries and keys turned, beside those they came from; and the context in two orders.
        kept += size * B * T * (_qkv_width(config) - _n_kv_heads(config) * config.head_dim + D)
    return kept


def _is_in_blocks(config: GPTConfig, T: int) -> bool:
    return T <= _MAX_BLOCKS_TOKENS and _seen(config, T) == T


def _kept_outside(config: GPTConfig, R: int) -> int:
    """Return the bytes that are kept outside the blocks: the last norm's, its result, and the first dropout's."""
    dropout = 4 * R * config.emb_dim if config.drop_rate > 0 else 0
    return _kept_of_norm(config, R) + 4 * R * config.emb_dim + dropout


def _head_buffers(config: GPTConfig, R: int, *, is_mixed: bool) -> tuple[int, int]:
    """Return the bytes of the loss's logits and copies at the first softmax, and at the products of its gradient.

    The gradients of the head and of its input are not in them.
    """
    D, V, size = config.emb_dim, config.vocab_size, 2 if is_mixed else 4
    C = min(max(_CHUNK_LOGITS // V, 1), R)
    last = R - (-(-R // C) - 1) * C
    n_cached = min(max(_CACHED_LOGITS // V, 1), C)
    copies = 2 * V * D + 2 * C * D if is_mixed else 0   # of the head's weight and its input
    raw = 2 * V * D if is_mixed else 0                  # the gradient before it becomes float32
    softmax = 4 * n_cached * V * ((2 if n_cached < C else 1) + is_mixed)
    # While a chunk's logits and gradient are computed, the chunk's before still have names.
    if last == R:
        products = size * C * V + raw
    elif last + C == R:
        products = max(size * (C + last) * V, size * last * V + raw + 4 * V * D)
    else:
        products = max(size * 2 * C * V + 4 * V * D, size * C * V + raw + 8 * V * D)
    return copies + size * C * V + softmax, copies + products


def _estimate(config: GPTConfig, mode: Mode, *, flops: int = 0, prompt_flops: int = 0, **parts: int) -> Estimate:
    names = ("weights", "file", "gradients", "optimizer", "activations", "cache", "logits")
    known = {name: parts.get(name, 0) for name in names}
    heap = sum(known.values()) // _HEAP_SHARE if mode == "train" else 0
    return Estimate(
        mode=mode, parameters=_parameters(config), heap=heap, libraries=_LIBRARIES[mode], flops=flops,
        prompt_flops=prompt_flops, **known)


def _parameters(config: GPTConfig) -> int:
    D, V = config.emb_dim, config.vocab_size
    norm = 2 * D if config.norm == "layernorm" else D
    biases = (_qkv_width(config) if config.qkv_bias else 0) + 6 * D
    positions = config.context_length * D if config.positions == "learned" else 0
    heads = 1 if config.tie_weights else 2
    return heads * V * D + positions + config.n_layers * (_block_matrices(config) + biases + 2 * norm) + norm


def _n_kv_heads(config: GPTConfig) -> int:
    return config.n_kv_heads or config.n_heads


def _qkv_width(config: GPTConfig) -> int:
    return config.emb_dim + 2 * _n_kv_heads(config) * config.head_dim


def _block_matrices(config: GPTConfig) -> int:
    """Return how many numbers the matrices of one block have: each is multiplied once for each token."""
    D = config.emb_dim
    return D * _qkv_width(config) + 9 * D * D


def _forward_flops(config: GPTConfig, B: int, T: int, *, n_logits: int) -> int:
    """Return the operations of B sequences of T tokens, of which ``n_logits`` in all get logits."""
    products = B * T * config.n_layers * _block_matrices(config) + n_logits * config.vocab_size * config.emb_dim
    return 2 * products + 4 * config.n_layers * config.emb_dim * B * _pairs(config, T)


def _seen(config: GPTConfig, T: int) -> int:
    """Return how many of T tokens the last one looks at."""
    return min(config.sliding_window or T, T)


def _pairs(config: GPTConfig, T: int) -> int:
    """Return how many (query, key) pairs T tokens have: each looks at itself and those before, in its window."""
    seen = _seen(config, T)
    return seen * (seen + 1) // 2 + (T - seen) * seen


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
