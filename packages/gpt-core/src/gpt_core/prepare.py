"""From a model that can train to the one that only generates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from gpt_attention import Linear, MultiHeadAttention, PreparedLinear, PyTorchMultiHeadAttention
from gpt_core.inference import BlockWeights, Embedding, InferenceModel, Product
from gpt_core.layers import (
    GELU,
    FeedForward,
    FeedForwardFast,
    LayerNorm,
    RMSNorm,
    TransformerBlock,
    TransformerBlockFast,
)
from gpt_core.model import GPTModel, GPTModelFast

MakeProduct = Callable[[Tensor, Tensor | None], Product]

# What the packed forward pass computes itself. Anything else in a model (LoRA layers, somebody's own block) is called.
_KNOWN = (
    GPTModel, GPTModelFast, TransformerBlock, TransformerBlockFast, MultiHeadAttention, PyTorchMultiHeadAttention,
    FeedForward, FeedForwardFast, LayerNorm, RMSNorm, GELU, Linear, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Embedding,
    nn.Sequential,
)


def is_plain(model: nn.Module) -> TypeGuard[GPTModel]:
    """Whether the model is a GPT of this package's own parts and nothing besides, so that it can be prepared.

    No layer is replaced, hooked, or to be computed step by step (``explicit``), and all parameters have one dtype and
    device.
    """
    if type(model) not in (GPTModel, GPTModelFast) or _are_hooked((torch_module,), prefix="_global_"):
        return False
    modules = list(model.modules())
    if _are_hooked(modules) or any(getattr(module, "explicit", False) for module in modules):
        return False
    kinds = {(parameter.dtype, parameter.device) for parameter in model.parameters()}
    return len(kinds) == 1 and all(type(module) in _KNOWN for module in modules)


def prepare(
    model: GPTModel,
    *,
    make_product: MakeProduct = PreparedLinear,
    make_head: Callable[[Tensor, Tensor], tuple[Product, Embedding]] | None = None,
    small: Callable[[Tensor], Tensor] = Tensor.detach,
    dtype: torch.dtype | None = None,
) -> InferenceModel:
    """Return the model for generation, for a model that ``is_plain``.

    Its tensors are the model's own, not copies; only the three weights of queries, keys and values are put into one
    (for 124M 85 MB in float32), because three products of a third the size take half as long again. ``make_product``
    builds each layer's product from its weight and bias, ``make_head`` the output head and the token embedding from
    both matrices, ``small`` takes the norms and the position embeddings. ``dtype`` is that of the cache, None the
    parameters'.
    """
    head, tok_emb = (make_head or _plain_head)(model.out_head.weight, model.tok_emb.weight)
    return InferenceModel(
        model.config,
        tok_emb=tok_emb,
        pos_emb=None if model.config.positions == "rotary" else small(model.pos_emb.weight),
        blocks=[_block(block, make_product, small) for block in model.trf_blocks],
        final_norm=_norm(model.final_norm, small),
        head=head,
        dtype=dtype or model.tok_emb.weight.dtype,
        device=model.device,
    )


def _plain_head(head: Tensor, embedding: Tensor) -> tuple[Product, Embedding]:
    weights = embedding.detach()
    return PreparedLinear(head, None), weights.__getitem__


def _block(block: Any, make_product: MakeProduct, small: Callable[[Tensor], Tensor]) -> BlockWeights:
    attention, feed_forward = block.att, block.ff
    if isinstance(attention, MultiHeadAttention):
        parts = (attention.W_query, attention.W_key, attention.W_value)
        weight = torch.cat([part.weight.detach() for part in parts])                # ((H + 2 G) * K, D)
        bias = None if parts[0].bias is None else torch.cat([part.bias.detach() for part in parts])
        out = attention.out_proj
    else:
        weight, bias, out = attention.qkv.weight, attention.qkv.bias, attention.proj
    up, down = feed_forward.layers[0], feed_forward.layers[2]
    return BlockWeights(
        norm1=_norm(block.norm1, small),
        qkv=make_product(weight, bias),
        out=make_product(out.weight, out.bias),
        norm2=_norm(block.norm2, small),
        up=make_product(up.weight, up.bias),
        down=make_product(down.weight, down.bias),
    )


def _norm(norm: Any, small: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return (scale, shift)."""
    if isinstance(norm, RMSNorm):
        return small(norm.scale), None
    if isinstance(norm, LayerNorm):
        return small(norm.scale), small(norm.shift)
    return small(norm.weight), small(norm.bias)


def _are_hooked(owners: Iterable[object], prefix: str = "_") -> bool:
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    names = [prefix + kind for kind in kinds]
    return any(getattr(owner, name, None) for owner in owners for name in names)
