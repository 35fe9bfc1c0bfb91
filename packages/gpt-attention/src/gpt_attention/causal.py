"""Causal attention with one head, and several of them side by side (chapter 3, sections 3.5 and 3.6.1).

Shapes: B batch, T tokens, D_in input width, D_out head width, H heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gpt_attention.functional import attend


class CausalAttention(nn.Module):
    """One head that sees no later token: (B, T, D_in) -> (B, T, D_out).

    The mask is made when it is needed, so no ``mask`` buffer fills checkpoints; a ``mask`` in a loaded state dict, as
    the book's code writes it, is accepted and dropped.
    """

    def __init__(
        self, d_in: int, d_out: int, context_length: int, dropout: float, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        self.d_out = d_out
        self.context_length = context_length
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        self.register_load_state_dict_pre_hook(drop_mask)

    def forward(self, x: Tensor) -> Tensor:
        """Return one context vector a token; RuntimeError past ``context_length`` tokens."""
        check_length(x.shape[1], self.context_length)
        dropout_p = self.dropout.p if self.training else 0.0
        return attend(self.W_query(x), self.W_key(x), self.W_value(x), dropout_p=dropout_p, explicit=True)


class MultiHeadAttentionWrapper(nn.Module):
    """``num_heads`` independent heads, concatenated, without output projection: (B, T, D_in) -> (B, T, H * D_out)."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the heads' context vectors side by side."""
        return torch.cat([head(x) for head in self.heads], dim=-1)


def check_length(n_tokens: int, context_length: int) -> None:
    """Raise RuntimeError if a sequence is longer than the attention was built for."""
    if n_tokens > context_length:
        raise RuntimeError(
            f"the sequence has {n_tokens} tokens, but this attention was built for {context_length}; "
            "shorten it or build with a larger context_length"
        )


def drop_mask(_module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_rest: object) -> None:
    """Remove the book's ``mask`` buffer from a state dict that is being loaded (a load_state_dict pre-hook)."""
    state_dict.pop(prefix + "mask", None)  # type: ignore[attr-defined]  # load_state_dict passes its own copy
