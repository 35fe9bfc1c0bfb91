"""Self-attention with trainable weights, one sequence, no mask (chapter 3, section 3.4).

Shapes: T tokens, D_in input width, D_out width of queries, keys and values.
"""

import torch
from torch import Tensor, nn

from gpt_attention.functional import attend


class SelfAttention_v1(nn.Module):  # noqa: N801  (the book's name)
    """Attention over bare weight matrices: (T, D_in) -> (T, D_out).

    ``W_query``, ``W_key``, ``W_value`` are (D_in, D_out), drawn uniformly from [0, 1) in that order.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return one context vector a token; every token sees every other."""
        return attend(x @ self.W_query, x @ self.W_key, x @ self.W_value, causal=False, explicit=True)


class SelfAttention_v2(nn.Module):  # noqa: N801  (the book's name)
    """The same over ``nn.Linear`` layers, whose initialisation trains better: (T, D_in) -> (T, D_out)."""

    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return one context vector a token; every token sees every other."""
        return attend(self.W_query(x), self.W_key(x), self.W_value(x), causal=False, explicit=True)
