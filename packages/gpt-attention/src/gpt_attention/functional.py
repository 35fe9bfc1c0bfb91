"""Scaled dot-product attention, the one sum that every class of this package calls.

    attend(Q, K, V) = softmax(Q K^T / sqrt(width)) V                (Vaswani et al. 2017, equation 1)

Shapes: T queries, S keys (cached + new, so S >= T), K width of queries and keys, V width of values; ``...`` any
leading axes, such as batch and heads.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt_attention.blocks import MAX_TOKENS, CausalBlocks


def causal_mask(n_queries: int, n_keys: int, *, device: torch.device | str | None = None) -> Tensor:
    """Return the boolean (T, S) mask that is True where a query must not look.

    The queries are the last T of the S positions: query i may see key j if j <= i + S - T.
    """
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return ones.triu(diagonal=1 + n_keys - n_queries)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    causal: bool = True,
    dropout_p: float = 0.0,
    explicit: bool = False,
) -> Tensor:
    """Return the context vectors (..., T, V) of queries (..., T, K) over keys (..., S, K) and values (..., S, V).

    With ``causal`` the queries are the last T of the S positions and see no later key. ``dropout_p`` drops
    attention weights after the softmax; pass 0 outside training. ``explicit`` computes the sum step by step as
    chapter 3 does; otherwise the quickest kernel for the shapes and the device computes the same function.

    Raises ValueError if ``causal`` and there are fewer keys than queries.
    """
    n_queries, n_keys = queries.shape[-2], keys.shape[-2]
    if causal and n_keys < n_queries:
        raise ValueError(
            f"causal attention needs a key for each query, got {n_queries} queries and {n_keys} keys; "
            "pass the keys of the earlier tokens and of the new ones, or causal=False"
        )
    on_cpu = queries.device.type == "cpu"
    # torch has no CPU kernel with dropout: its fallback is no faster, and draws other numbers than the book's.
    if explicit or (dropout_p > 0 and on_cpu):
        return _attend_explicitly(queries, keys, values, causal=causal, dropout_p=dropout_p)
    in_blocks = causal and on_cpu and n_keys <= MAX_TOKENS and queries.shape == keys.shape == values.shape
    if in_blocks and _needs_gradient(queries, keys, values) and not _autocast_converts(queries, keys, values):
        return CausalBlocks.apply(queries, keys, values)
    if not causal or n_queries == 1:
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout_p)
    if n_queries == n_keys:
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout_p, is_causal=True)
    visible = ~causal_mask(n_queries, n_keys, device=queries.device)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, dropout_p=dropout_p)


def _attend_explicitly(
    queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool, dropout_p: float
) -> Tensor:
    scores = queries @ keys.transpose(-2, -1)                               # (..., T, S)
    if causal:
        scores = scores.masked_fill(causal_mask(*scores.shape[-2:], device=scores.device), -torch.inf)
    weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)         # (..., T, S), each row sums to 1
    if dropout_p > 0:
        weights = F.dropout(weights, p=dropout_p, training=True)
    return weights @ values                                                 # (..., T, V)


def _needs_gradient(*tensors: Tensor) -> bool:
    # The compiler fuses torch's own kernels, and torch.func transforms them: neither takes a hand-made backward.
    only_torchs = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return not only_torchs and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _autocast_converts(*tensors: Tensor) -> bool:
    # Autocast would convert the products of the blocks' forward pass, but never reaches their backward pass.
    if not torch.is_autocast_enabled("cpu"):
        return False
    return any(tensor.dtype != torch.get_autocast_dtype("cpu") for tensor in tensors)
