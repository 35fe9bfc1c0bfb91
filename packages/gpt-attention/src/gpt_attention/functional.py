"""Scaled dot-product attention, the one sum that every class of this package calls.

    attend(Q, K, V) = softmax(Q K^T / sqrt(width)) V                (Vaswani et al. 2017, equation 1)

Shapes: T queries, S keys (cached + new, so S >= T), H heads, K head width; ``...`` any leading axes, such as (B, H).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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

    With ``causal`` the queries are the last T of the S positions and see no later key. ``dropout_p`` drops attention
    weights after the softmax; pass 0 outside training. ``explicit`` computes the sum step by step as chapter 3
    does; otherwise ``torch.nn.functional.scaled_dot_product_attention`` computes the same function.

    Raises ValueError if ``causal`` and there are fewer keys than queries.
    """
    n_queries, n_keys = queries.shape[-2], keys.shape[-2]
    if causal and n_keys < n_queries:
        raise ValueError(
            f"causal attention needs a key for each query, got {n_queries} queries and {n_keys} keys; "
            "pass keys of the earlier tokens and the new ones, or causal=False"
        )
    # torch has no CPU kernel with dropout; its fallback is no faster and draws other random numbers than the book's.
    if explicit or (dropout_p > 0 and queries.device.type == "cpu"):
        return _attend_explicitly(queries, keys, values, causal=causal, dropout_p=dropout_p)
    if not causal or n_queries == 1:
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout_p)
    if n_queries == n_keys:
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout_p, is_causal=True)
    visible = ~causal_mask(n_queries, n_keys, device=queries.device)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, dropout_p=dropout_p)


def _attend_explicitly(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool, dropout_p: float) -> Tensor:
    scores = queries @ keys.transpose(-2, -1)                                   # (..., T, S)
    if causal:
        scores = scores.masked_fill(causal_mask(*scores.shape[-2:], device=scores.device), -torch.inf)
    weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)             # (..., T, S), each row sums to 1
    if dropout_p > 0:
        weights = F.dropout(weights, p=dropout_p, training=True)
    return weights @ values                                                     # (..., T, V)
