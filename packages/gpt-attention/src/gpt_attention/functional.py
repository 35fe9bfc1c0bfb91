"""Scaled dot-product attention, the one sum that every class of this package calls.

    attend(Q, K, V) = softmax(Q K^T / sqrt(width)) V                (Vaswani et al. 2017, equation 1)

Shapes: T queries, S keys (cached + new, so S >= T), K width of queries and keys, V width of values; H heads of the
queries, G heads of keys and values; ``...`` any leading axes, such as batch and heads.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt_attention.blocks import MAX_TOKENS, CausalBlocks


def causal_mask(
    n_queries: int, n_keys: int, *, window: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Return the boolean (T, S) mask that is True where a query must not look.

    The queries are the last T of the S positions: query i may see key j if j <= i + S - T, and with a ``window`` only
    if also j > i + S - T - window.
    """
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    hidden = ones.triu(diagonal=1 + n_keys - n_queries)
    return hidden if window is None else hidden | ones.tril(diagonal=n_keys - n_queries - window)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    explicit: bool = False,
) -> Tensor:
    """Return the context vectors (..., H, T, V) of queries (..., H, T, K).

    Keys are (..., G, S, K) and values (..., G, S, V), H a multiple of G; query head h uses head h // (H // G): grouped
    queries (Ainslie et al. 2023). With ``causal`` the queries are the last T of the S positions and see no later key;
    with a ``window`` each sees at most the last ``window`` positions, its own among them (Jiang et al. 2023). A
    boolean ``mask``, broadcastable to (..., H, T, S), is True where a query may look; it hides in addition to these. A
    query that sees no key gets zeros. ``dropout_p`` drops attention weights after the softmax; pass 0 outside
    training. ``explicit`` computes the sum step by step as chapter 3 does; otherwise the quickest kernel for the
    shapes and the device computes the same function.

    Raises ValueError if ``causal`` and there are fewer keys than queries, if H is no multiple of G, if ``window`` is
    less than 1 or given without ``causal``, or if ``mask`` is not boolean.
    """
    n_queries, n_keys = queries.shape[-2], keys.shape[-2]
    _check(queries, keys, causal=causal, window=window, mask=mask)
    if window is not None and n_queries + window - 1 < n_keys:
        n_keys = n_queries + window - 1  # what lies before the first query's window, no query sees
        keys, values = keys[..., -n_keys:, :], values[..., -n_keys:, :]
        if mask is not None and mask.shape[-1] > 1:
            mask = mask[..., -n_keys:]
    if window is not None and window >= n_keys:
        window = None
    on_cpu = queries.device.type == "cpu"
    # torch has no CPU kernel with dropout: its fallback is no faster, and draws other numbers than the book's.
    if explicit or (dropout_p > 0 and on_cpu):
        visible = _visible(n_queries, n_keys, causal=causal, window=window, mask=mask, device=queries.device)
        return _attend_explicitly(queries, keys, values, visible=visible, dropout_p=dropout_p)
    if causal and n_queries == n_keys and window is None and mask is None:
        in_blocks = on_cpu and n_keys <= MAX_TOKENS and not _autocast_converts(queries, keys, values)
        if in_blocks and _needs_gradient(queries, keys, values):
            # Also for grouped heads: 8 sequences of 256 tokens, 6 heads in 2 groups, forward and backward on one core
            # of an AMD EPYC (Zen 4), take 39 ms repeated and in blocks, 37 by torch's kernel; in bfloat16 20 and 43.
            repeated = [_repeat_heads(t, queries) for t in (keys, values)]
            if all(t.shape == queries.shape for t in repeated):
                return CausalBlocks.apply(queries, *repeated)
        if n_queries > 1:
            return _attend_by_kernel(queries, keys, values, dropout_p=dropout_p, is_causal=True)
    visible = _visible(n_queries, n_keys, causal=causal, window=window, mask=mask, device=queries.device)
    return _attend_by_kernel(queries, keys, values, visible=visible, dropout_p=dropout_p)


def _check(queries: Tensor, keys: Tensor, *, causal: bool, window: int | None, mask: Tensor | None) -> None:
    n_queries, n_keys = queries.shape[-2], keys.shape[-2]
    if causal and n_keys < n_queries:
        raise ValueError(
            f"causal attention needs a key for each query, got {n_queries} queries and {n_keys} keys; "
            "pass the keys of the earlier tokens and of the new ones, or causal=False"
        )
    if window is not None and (window < 1 or not causal):
        raise ValueError(
            f"a window is at least 1 position and needs causal=True, got window={window}, causal={causal}; "
            "pass a mask for any other pattern"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, True where a query may look, got {mask.dtype}; convert it")
    if _is_grouped(queries, keys) and queries.shape[-3] % keys.shape[-3] != 0:
        raise ValueError(
            f"the queries' heads must be a multiple of the keys' and values', got {queries.shape[-3]} and "
            f"{keys.shape[-3]}"
        )


def _is_grouped(queries: Tensor, keys: Tensor) -> bool:
    """Whether several heads of the queries share one of the keys and values."""
    return min(queries.ndim, keys.ndim) > 2 and queries.shape[-3] not in (1, keys.shape[-3])


def _repeat_heads(keys: Tensor, queries: Tensor) -> Tensor:
    """Return keys or values (..., G, S, K) with a head for each of the queries', (..., H, S, K)."""
    if not _is_grouped(queries, keys):
        return keys
    return keys.repeat_interleave(queries.shape[-3] // keys.shape[-3], dim=-3)


def _visible(
    n_queries: int, n_keys: int, *, causal: bool, window: int | None, mask: Tensor | None, device: torch.device
) -> Tensor | None:
    """Return where a query may look, (..., T, S), or None if everywhere."""
    if not causal or n_queries == 1:  # a single query is the last position
        return mask
    visible = ~causal_mask(n_queries, n_keys, window=window, device=device)
    return visible if mask is None else visible & mask


def _attend_by_kernel(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    dropout_p: float,
    visible: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    is_grouped = _is_grouped(queries, keys)
    if is_grouped and queries.shape[-2] == 1 and (visible is None or visible.shape[-3:-2] in ((), (1,))):
        # The heads of a group as the queries of one head: each key is read once. On 2 cores of an AMD EPYC (Zen 4), 12
        # heads in 4 groups, 1,000 keys: float32 level with enable_gqa, bfloat16 0.12 instead of 0.82 ms.
        folded = queries.squeeze(-2).unflatten(-2, (keys.shape[-3], -1))                    # (..., G, H // G, K)
        context = F.scaled_dot_product_attention(folded, keys, values, attn_mask=visible, dropout_p=dropout_p)
        return context.flatten(-3, -2).unsqueeze(-2)                                        # (..., H, 1, V)
    if queries.shape[-2] == 1 and queries.device.type == "cpu" and queries.dtype in (torch.bfloat16, torch.float16):
        # The CPU's kernel computes a single row of these types number by number: 12 heads over 1,000 keys take 1.29
        # ms in bfloat16, 0.31 converted, and what is not rounded in between is nearer to the sum.
        dtype = queries.dtype
        queries, keys, values = (t.float() for t in (queries, keys, values))
        return _attend_by_kernel(queries, keys, values, dropout_p=dropout_p, visible=visible).to(dtype)
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=visible, dropout_p=dropout_p, is_causal=is_causal, enable_gqa=is_grouped
    )


def _attend_explicitly(
    queries: Tensor, keys: Tensor, values: Tensor, *, visible: Tensor | None, dropout_p: float
) -> Tensor:
    keys, values = _repeat_heads(keys, queries), _repeat_heads(values, queries)
    scores = queries @ keys.transpose(-2, -1)                               # (..., T, S)
    if visible is not None:
        # Not -inf: a row of nothing else would become NaN, and so would every gradient.
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)         # (..., T, S), each row sums to 1
    if dropout_p > 0:
        weights = F.dropout(weights, p=dropout_p, training=True)
    context = weights @ values                                              # (..., T, V)
    return context if visible is None else context.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0)


def _needs_gradient(*tensors: Tensor) -> bool:
    # The compiler fuses torch's own kernels, and torch.func transforms them: neither takes a hand-made backward.
    only_torchs = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return not only_torchs and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _autocast_converts(*tensors: Tensor) -> bool:
    # Autocast would convert the products of the blocks' forward pass, but never reaches their backward pass.
    if not torch.is_autocast_enabled("cpu"):
        return False
    return any(tensor.dtype != torch.get_autocast_dtype("cpu") for tensor in tensors)
