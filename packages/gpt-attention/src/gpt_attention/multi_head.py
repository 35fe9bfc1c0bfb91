"""Multi-head causal attention (chapter 3, section 3.6.2; Vaswani et al. 2017, section 3.2.2).

Shapes: B batch, T tokens, S cached + new tokens, H heads, G heads of keys and values, K head width, D = H * K.
"""

import torch
from torch import Tensor, nn

from gpt_attention.cache import KVCache
from gpt_attention.causal import check_length, drop_mask
from gpt_attention.functional import attend
from gpt_attention.products import Linear, linear
from gpt_attention.rotary import rotary_angles, rotate

# Below this many rows (B * T) putting the three weights into one costs more than the two products it saves.
_MIN_ROWS_TO_FUSE = 64


class MultiHeadAttention(nn.Module):
    """Chapter 3's ``MultiHeadAttention``: (B, T, D_in) -> (B, T, D).

    Queries, keys and values come from one product over the three weights put together; ``explicit`` computes the
    same function step by step as the book does. The parameters are the book's either way. A ``mask`` in a loaded
    state dict is accepted and dropped.

    What models after GPT-2 changed: ``num_kv_heads`` (None: as many as ``num_heads``) heads of keys and values, each
    shared by a group of query heads (Ainslie et al. 2023), so that ``W_key`` and ``W_value`` are (G * K, D_in); a
    ``window`` of the last positions that a token sees, its own among them (Jiang et al. 2023; None: all); queries and
    keys turned by their position with base ``rope_base`` (Su et al. 2021; None: not turned), which needs an even K.

    Raises ValueError if ``num_kv_heads`` does not divide ``num_heads``, ``window`` is less than 1 or K is odd with a
    ``rope_base``.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
        *,
        num_kv_heads: int | None = None,
        window: int | None = None,
        rope_base: float | None = None,
        explicit: bool = False,
    ) -> None:
        super().__init__()
        assert d_out % num_heads == 0, f"d_out must be divisible by num_heads, got {d_out} and {num_heads}"
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_kv_heads < 1 or num_heads % num_kv_heads != 0:
            raise ValueError(f"num_kv_heads must divide num_heads, got {num_kv_heads} and {num_heads}")
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 position, got {window}; None sees all")
        if rope_base is not None and d_out // num_heads % 2 != 0:
            raise ValueError(
                f"rotary positions turn pairs of values, so d_out / num_heads must be even, got {d_out // num_heads}"
            )
        self.d_out = d_out
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = d_out // num_heads
        self.context_length = context_length
        self.window = window
        self.rope_base = rope_base
        self.explicit = explicit
        layer_class = nn.Linear if explicit else Linear
        self.W_query = layer_class(d_in, d_out, bias=qkv_bias)
        self.W_key = layer_class(d_in, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.W_value = layer_class(d_in, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.out_proj = layer_class(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_load_state_dict_pre_hook(drop_mask)

    def forward(
        self, x: Tensor, *, cache: KVCache | None = None, layer: int = 0, rows: Tensor | None = None
    ) -> Tensor:
        """Return one context vector a token.

        With a ``cache`` the tokens of ``x`` follow those it holds for ``layer``, and are added to it. ``rows`` (B,)
        names the one token of each sequence whose vector is wanted, (B, 1, D): the others get keys and values only.
        RuntimeError if cached and new tokens exceed ``context_length``; ValueError for ``rows`` with a ``cache``.
        """
        if rows is not None:
            return self._forward_rows(x, rows, cache=cache)
        B, T, _ = x.shape
        start = 0 if cache is None else cache.length_of(layer)
        check_length(start + T, self.context_length)
        qkv = [y.view(B, T, -1, self.head_dim).transpose(1, 2) for y in self._project(x)]
        queries, keys, values = qkv                                     # (B, H, T, K), then (B, G, T, K) twice
        if self.rope_base is not None:
            positions = torch.arange(start, start + T, device=x.device)
            angles = rotary_angles(positions, head_dim=self.head_dim, base=self.rope_base)
            queries, keys = rotate(queries, *angles), rotate(keys, *angles)
        if cache is not None:
            keys, values = cache.append(layer, keys, values)            # (B, G, S, K)
        dropout_p = self.dropout.p if self.training else 0.0
        context = attend(
            queries, keys, values, window=self.window, dropout_p=dropout_p, explicit=self.explicit
        )                                                               # (B, H, T, K)
        return self.out_proj(context.transpose(1, 2).reshape(B, T, self.d_out))

    def _forward_rows(self, x: Tensor, rows: Tensor, *, cache: KVCache | None) -> Tensor:
        if cache is not None:
            raise ValueError("rows are for whole sequences: leave out the cache, or take the rows of its result")
        B, T, _ = x.shape
        check_length(T, self.context_length)
        wanted = x[torch.arange(B, device=x.device), rows].unsqueeze(1)                         # (B, 1, D_in)
        queries, keys, values = (
            layer(y).view(B, -1, heads, self.head_dim).transpose(1, 2)
            for layer, y, heads in (
                (self.W_query, wanted, self.num_heads),
                (self.W_key, x, self.num_kv_heads),
                (self.W_value, x, self.num_kv_heads),
            )
        )                                                               # (B, H, 1, K), then (B, G, T, K) twice
        positions = torch.arange(T, device=x.device)
        if self.rope_base is not None:
            keys = rotate(keys, *rotary_angles(positions, head_dim=self.head_dim, base=self.rope_base))
            angles = rotary_angles(rows, head_dim=self.head_dim, base=self.rope_base)           # (B, K)
            queries = rotate(queries.transpose(0, 2), *angles).transpose(0, 2)
        distance = rows.unsqueeze(1) - positions                                                # (B, T)
        visible = distance >= 0 if self.window is None else (distance >= 0) & (distance < self.window)
        context = attend(
            queries, keys, values, causal=False, mask=visible[:, None, None], explicit=self.explicit,
            dropout_p=self.dropout.p if self.training else 0.0,
        )                                                                                       # (B, H, 1, K)
        return self.out_proj(context.transpose(1, 2).reshape(B, 1, self.d_out))

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        layers = (self.W_query, self.W_key, self.W_value)
        if self.explicit or x.shape[0] * x.shape[1] < _MIN_ROWS_TO_FUSE or not _are_fusible(layers):
            return tuple(layer(x) for layer in layers)                  # (B, T, H * K), (B, T, G * K) twice
        weight = torch.cat([layer.weight for layer in layers])          # ((H + 2 * G) * K, D_in)
        bias = None if self.W_query.bias is None else torch.cat([layer.bias for layer in layers])
        return linear(x, weight, bias).split([len(layer.weight) for layer in layers], dim=-1)


class PyTorchMultiHeadAttention(nn.Module):
    """The book's form with one ``qkv`` layer and no context length: (B, T, D_in) -> (B, T, D)."""

    def __init__(
        self, d_in: int, d_out: int, num_heads: int, dropout: float = 0.0, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        assert d_out % num_heads == 0, f"d_out must be divisible by num_heads, got {d_out} and {num_heads}"
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.qkv = Linear(d_in, 3 * d_out, bias=qkv_bias)
        self.proj = Linear(d_out, d_out)
        self.dropout = dropout

    def forward(self, x: Tensor, *, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Return one context vector a token; a ``cache`` works as in ``MultiHeadAttention``."""
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv                                     # each (B, H, T, K)
        if cache is not None:
            keys, values = cache.append(layer, keys, values)            # (B, H, S, K)
        context = attend(queries, keys, values, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(context.transpose(1, 2).reshape(B, T, self.d_out))


def _are_fusible(layers: tuple[nn.Linear, ...]) -> bool:
    """Whether one product can stand for the layers' calls: all are plain, and all of them have a bias or none."""
    return all(map(_is_plain, layers)) and len({layer.bias is None for layer in layers}) == 1


def _is_plain(layer: nn.Module) -> bool:
    """Whether calling the layer is nothing but its product: not replaced (by LoRA, say), not hooked."""
    is_hooked = (
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )
    return type(layer) is Linear and not is_hooked
