"""From a model that can train to the one that only generates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from gpt_attention import Linear, MultiHeadAttention, PreparedLinear, PyTorchMultiHeadAttention
from gpt_core.checks import check_generates
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
_MANY_ROWS = 64
_EPS = 1e-5  # of the norms, as InferenceModel computes them


def is_plain(model: nn.Module) -> TypeGuard[GPTModel]:
    """Whether the model is a GPT of this package's own parts and nothing besides, so that it can be prepared.

    No layer is replaced, added, hooked, or to be computed step by step (``explicit``), each computes what its class
    says, and all parameters have one dtype and device.
    """
    if not isinstance(model, GPTModel) or type(model) not in (GPTModel, GPTModelFast):
        return False
    if _are_hooked((torch_module,), prefix="_global_"):
        return False
    modules = list(model.modules())
    if _are_hooked(modules) or any(getattr(module, "explicit", False) for module in modules):
        return False
    kinds = {(parameter.dtype, parameter.device) for parameter in model.parameters()}
    return len(kinds) == 1 and _has_its_parts(model) and all(map(_is_known, modules))


def language_model(model: nn.Module) -> nn.Module:
    """Return the model that ``torch.compile`` has wrapped, or the model itself; ValueError if it classifies."""
    model = getattr(model, "_orig_mod", model)
    check_generates(getattr(model, "config", None))
    return model


def _has_its_parts(model: GPTModel) -> bool:
    return getattr(model.out_head, "bias", None) is None and len(model.trf_blocks) == model.config.n_layers and all(
        isinstance(block, TransformerBlock) and len(getattr(block.ff, "layers", ())) == 3 for block in model.trf_blocks
    )


def _is_known(module: nn.Module) -> bool:
    """Whether the module is of a known class and computes what that class does by default."""
    return (
        type(module) in _KNOWN
        and "forward" not in vars(module)  # put there on the instance
        and getattr(module, "eps", _EPS) == _EPS
        and getattr(module, "approximate", "tanh") == "tanh"
    )


def prepare(
    model: GPTModel,
    *,
    make_product: MakeProduct = PreparedLinear,
    make_head: Callable[[Tensor, Tensor], tuple[Product, Embedding]] | None = None,
    small: Callable[[Tensor], Tensor] = Tensor.detach,
    dtype: torch.dtype | None = None,
) -> InferenceModel:
    """Return the model for generation, for a model that ``is_plain``.

    Its tensors are the model's own, not copies; only the three weights of queries, keys and values are put into one by
    ``JoinedLinear`` (for 124M 85 MB in float32), because for one row three products of a third the size take half as
    long again. ``make_product``
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
        layers = (attention.W_query, attention.W_key, attention.W_value)
        qkv: Callable[[Tensor], Tensor]
        qkv, out = JoinedLinear([(layer.weight, layer.bias) for layer in layers], make_product), attention.out_proj
    else:
        qkv, out = make_product(attention.qkv.weight, attention.qkv.bias), attention.proj
    up, down = feed_forward.layers[0], feed_forward.layers[2]
    return BlockWeights(
        norm1=_norm(block.norm1, small),
        qkv=qkv,
        out=make_product(out.weight, out.bias),
        norm2=_norm(block.norm2, small),
        up=make_product(up.weight, up.bias),
        down=make_product(down.weight, down.bias),
    )


class JoinedLinear:
    """Several layers of one input as one product, their weights put together when a few rows first ask for it.

    For many rows, as in reading a prompt, the products one by one are as quick, and the first token comes sooner. Made
    with another ``make_product``, the weights are put together at once, because only the product's own copy stays.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor | None]], make_product: MakeProduct) -> None:
        self._layers = [(weight.detach(), None if bias is None else bias.detach()) for weight, bias in layers]
        self._joined: Product | None = None
        if make_product is PreparedLinear:
            self._parts = [PreparedLinear(weight, bias) for weight, bias in self._layers]
        else:
            self._joined = make_product(*self._put_together())
            del self._layers

    def __call__(self, x: Tensor) -> Tensor:
        """Return the products (R, N1 + N2 + ...) of x (R, M), side by side."""
        if self._joined is None and len(x) >= _MANY_ROWS:
            return torch.cat([part(x) for part in self._parts], dim=1)
        if self._joined is None:
            self._joined = PreparedLinear(*self._put_together())
        return self._joined(x)

    def _put_together(self) -> tuple[Tensor, Tensor | None]:
        weights, biases = zip(*self._layers, strict=True)
        return torch.cat(weights), None if biases[0] is None else torch.cat(biases)


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
