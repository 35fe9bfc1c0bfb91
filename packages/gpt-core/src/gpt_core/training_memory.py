"""The memory that a training step takes beside parameters and moments: see ``gpt_core.estimate``.

Read off gpt_train.step, gpt_train.cross_entropy and gpt_attention, and checked against what autograd keeps.

Sizes: B sequences, T tokens of each, R = B * T rows, D width, H heads, V vocabulary (or classes).
"""

from __future__ import annotations

from gpt_core.config import GPTConfig
from gpt_core.counts import n_block_weights, n_kv_heads, n_parameters, n_seen, qkv_width

# How gpt_train.cross_entropy cuts its logits, and gpt_attention.blocks its queries.
_CHUNK_LOGITS = 2**25
_CACHED_LOGITS = 2**19
_BLOCK, _MAX_BLOCKS_TOKENS = 64, 512


def training_memory(config: GPTConfig, B: int, T: int, *, is_mixed: bool) -> dict[str, int]:
    """Return the bytes of gradients, activations and logits at the moment when they are most together.

    ``is_mixed``: products in bfloat16, the rest in float32.
    """
    D, V, R = config.emb_dim, config.n_outputs, B * T
    parameters = n_parameters(config)
    size = 2 if is_mixed else 4  # of the values that products take and give
    kept = _kept_of_block(config, B, T, is_mixed=is_mixed)
    all_kept = config.n_layers * kept + _kept_outside(config, R)
    # The gradient that comes down the residual stream, and those of the widest layer's input and weight.
    backward = (4 + 4 * size) * R * D + 16 * D * D + ((2 * R * D + 8 * D * D) if is_mixed else 0)
    head, blocks = 4 * V * D, 4 * (config.n_layers - 1) * n_block_weights(config)
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
    return {"gradients": gradients, "activations": activations, "logits": logits}


def _kept_of_block(config: GPTConfig, B: int, T: int, *, is_mixed: bool) -> int:
    """Return the bytes that one block keeps for its backward pass."""
    D, R, size = config.emb_dim, B * T, 2 if is_mixed else 4
    qkv = qkv_width(config)
    # In blocks and with dropout, grouped keys and values are repeated for every head.
    repeats = config.drop_rate > 0 or _is_in_blocks(config, T)
    # Both norms' results; queries, keys and values; the context vectors; the wide layer before and after GELU.
    values = size * R * (2 * D + (3 * D if repeats else qkv) + D + 8 * D)
    values += 2 * _kept_of_norm(config, R) + _kept_of_attention(config, B, T, size)
    if config.drop_rate > 0:
        values += size * R * 2 * D  # what the two branches were multiplied by
    # Autocast's copy of every weight, or the three weights put together.
    return values + (2 * n_block_weights(config) if is_mixed else 4 * D * qkv)


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
    if n_seen(config, T) < T:
        kept += size * T * T                    # the mask
    if config.positions == "rotary":
        # Queries and keys turned, beside those they came from; and the context in two orders.
        kept += size * B * T * (qkv_width(config) - n_kv_heads(config) * config.head_dim + D)
    return kept


def _is_in_blocks(config: GPTConfig, T: int) -> bool:
    return T <= _MAX_BLOCKS_TOKENS and n_seen(config, T) == T


def _kept_outside(config: GPTConfig, R: int) -> int:
    """Return the bytes that are kept outside the blocks: the last norm's, its result, and the first dropout's."""
    dropout = 4 * R * config.emb_dim if config.drop_rate > 0 else 0
    return _kept_of_norm(config, R) + 4 * R * config.emb_dim + dropout


def _head_buffers(config: GPTConfig, R: int, *, is_mixed: bool) -> tuple[int, int]:
    """Return the bytes of the loss's logits and copies at the first softmax, and at the products of its gradient.

    The gradients of the head and of its input are not in them.
    """
    D, V, size = config.emb_dim, config.n_outputs, 2 if is_mixed else 4
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
