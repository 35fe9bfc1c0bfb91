"""The parts of a GPT block (chapter 4; Radford et al. 2019, section 2.3), and what later models put in their place.

Each part has two forms of one function: torch's native kernel, and with ``explicit`` the formula written out as the
book teaches it. Parameters and their names are the book's in both.

Shapes: B batch, T tokens, D embedding width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_attention import KVCache, Linear, MultiHeadAttention, PyTorchMultiHeadAttention
from gpt_core.config import GPTConfig


class LayerNorm(nn.Module):
    """Normalise each token's vector: scale * (x - mean) / sqrt(variance + eps) + shift, (..., D) -> (..., D).

    The variance is the biased one (divided by D), as in GPT-2.
    """

    def __init__(self, emb_dim: int, *, explicit: bool = False) -> None:
        super().__init__()
        self.eps = 1e-5
        self.explicit = explicit
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised vectors."""
        if not self.explicit:
            return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        return self.scale * (x - mean) / torch.sqrt(variance + self.eps) + self.shift


class RMSNorm(nn.Module):
    """Divide each token's vector by its root mean square: scale * x / sqrt(mean(x^2) + eps), (..., D) -> (..., D).

    Zhang and Sennrich 2019, equation 4: no mean is taken off, and there is no shift.
    """

    def __init__(self, emb_dim: int, *, explicit: bool = False) -> None:
        super().__init__()
        self.eps = 1e-5
        self.explicit = explicit
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised vectors."""
        if not self.explicit:
            return F.rms_norm(x, self.scale.shape, self.scale, self.eps)
        return self.scale * x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)


def make_norm(config: GPTConfig, *, explicit: bool = False) -> nn.Module:
    """Return a new norm of the config's kind and width."""
    norm_class = RMSNorm if config.norm == "rmsnorm" else LayerNorm
    return norm_class(config.emb_dim, explicit=explicit)


class GELU(nn.Module):
    """GELU in GPT-2's tanh form: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016)."""

    def __init__(self, *, explicit: bool = False) -> None:
        super().__init__()
        self.explicit = explicit

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element."""
        if not self.explicit:
            return F.gelu(x, approximate="tanh")
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    """Two layers with a GELU between, four times as wide inside: (B, T, D) -> (B, T, D)."""

    def __init__(self, cfg: GPTConfig | Mapping[str, Any], *, explicit: bool = False) -> None:
        super().__init__()
        config = GPTConfig.from_dict(cfg)
        layer_class = nn.Linear if explicit else Linear
        self.layers = nn.Sequential(
            layer_class(config.emb_dim, 4 * config.emb_dim),
            GELU(explicit=explicit),
            layer_class(4 * config.emb_dim, config.emb_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return each token's vector, transformed alone."""
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Pre-norm block: x + dropout(attention(norm1(x))), then x + dropout(feed_forward(norm2(x)))."""

    def __init__(self, cfg: GPTConfig | Mapping[str, Any], *, explicit: bool = False) -> None:
        super().__init__()
        config = GPTConfig.from_dict(cfg)
        self.att: nn.Module = MultiHeadAttention(
            d_in=config.emb_dim,
            d_out=config.emb_dim,
            context_length=config.context_length,
            num_heads=config.n_heads,
            dropout=config.drop_rate,
            qkv_bias=config.qkv_bias,
            num_kv_heads=config.n_kv_heads,
            window=config.sliding_window,
            rope_base=config.rope_base if config.positions == "rotary" else None,
            explicit=explicit,
        )
        self.ff: nn.Module = FeedForward(config, explicit=explicit)
        self.norm1: nn.Module = make_norm(config, explicit=explicit)
        self.norm2: nn.Module = make_norm(config, explicit=explicit)
        self.drop_resid = nn.Dropout(config.drop_rate)

    def forward(
        self, x: Tensor, *, cache: KVCache | None = None, layer: int = 0, rows: Tensor | None = None
    ) -> Tensor:
        """Return (B, T, D); with a ``cache`` the tokens of ``x`` follow those it holds for ``layer``.

        ``rows`` (B,) names the one token of each sequence whose vector is wanted, (B, 1, D): the others take part in
        its attention, and nothing more is computed for them.
        """
        if rows is None:
            x = x + self.drop_resid(self.att(self.norm1(x), cache=cache, layer=layer))
        else:
            at = torch.arange(len(rows), device=x.device)
            if getattr(type(self.att), "forward", None) is MultiHeadAttention.forward:
                context = self.att(self.norm1(x), cache=cache, rows=rows)                  # (B, 1, D)
            else:  # one that does not know rows
                context = self.att(self.norm1(x), cache=cache, layer=layer)[at, rows].unsqueeze(1)
            x = x[at, rows].unsqueeze(1) + self.drop_resid(context)
        return x + self.drop_resid(self.ff(self.norm2(x)))


class FeedForwardFast(nn.Module):
    """The book's fast variant with ``nn.GELU``; the parameters are those of ``FeedForward``."""

    def __init__(self, cfg: GPTConfig | Mapping[str, Any]) -> None:
        super().__init__()
        config = GPTConfig.from_dict(cfg)
        self.layers = nn.Sequential(
            Linear(config.emb_dim, 4 * config.emb_dim),
            nn.GELU(approximate="tanh"),
            Linear(4 * config.emb_dim, config.emb_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return each token's vector, transformed alone."""
        return self.layers(x)


class TransformerBlockFast(TransformerBlock):
    """The book's fast variant, whose parameters are named ``att.qkv``, ``att.proj``, ``norm1.weight``, ...

    It has GPT-2's form only: ValueError if the config asks for another.
    """

    def __init__(self, cfg: GPTConfig | Mapping[str, Any]) -> None:
        nn.Module.__init__(self)
        config = GPTConfig.from_dict(cfg)
        if others := [name for name in config.variants if name not in ("rope_base", "n_classes")]:
            raise ValueError(
                f"the fast variant has GPT-2's form only, but the config sets {', '.join(others)}; use GPTModel"
            )
        self.att = PyTorchMultiHeadAttention(
            d_in=config.emb_dim,
            d_out=config.emb_dim,
            num_heads=config.n_heads,
            dropout=config.drop_rate,
            qkv_bias=config.qkv_bias,
        )
        self.ff = FeedForwardFast(config)
        self.norm1 = nn.LayerNorm(config.emb_dim)
        self.norm2 = nn.LayerNorm(config.emb_dim)
        self.drop_resid = nn.Dropout(config.drop_rate)
