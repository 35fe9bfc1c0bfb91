"""What Hugging Face's GPT-2 calls the layers of a ``GPTModel``, and how three adapters of ours are one of theirs.

Queries, keys and values come from one layer there, ``c_attn``. Ours side by side are an adapter of it whose rank is the
sum: A's rows below each other, B block-diagonal.

Shapes: M inputs, N outputs, R rank; theirs are A (R, M) and B (N, R), ours A (M, R) and B (R, N).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt_core import GPTModel, GPTModelFast
from gpt_finetune.lora import LinearWithLoRA, LoRALayer

_LINEARS = {
    "attn.c_attn": ("att.W_query", "att.W_key", "att.W_value"),
    "attn.c_proj": ("att.out_proj",),
    "mlp.c_fc": ("ff.layers.0",),
    "mlp.c_proj": ("ff.layers.2",),
}
_NORM = {"weight": "scale", "bias": "shift"}
FINAL_NORM = "transformer.ln_f"


@dataclass(frozen=True)
class PeftLayout:
    """Names in transformers' model, each with ours."""

    head: str
    """Theirs of out_head: lm_head or, if it tells classes apart, score."""
    linears: dict[str, tuple[str, ...]]
    """Their layers to ours: one, or queries, keys and values."""
    saved: dict[str, str]
    """Their parameters that an adapter may hold whole to ours: the norms' and, unless it is tied, the head's."""


@dataclass(frozen=True)
class Adapter:
    """One adapter of theirs, or one of ours turned as theirs: A (R, M), B (N, R)."""

    A: Tensor
    B: Tensor
    alpha: float


def peft_layout(model: nn.Module) -> PeftLayout:
    """Return the names for this model; ValueError unless it is a ``GPTModel`` of GPT-2's form."""
    if not isinstance(model, GPTModel) or isinstance(model, GPTModelFast):
        raise ValueError(
            f"adapters in PEFT's layout are those of a GPTModel, got a {type(model).__name__}; build it as one"
        )
    if others := [f"{name}={value!r}" for name, value in model.config.variants.items() if name != "n_classes"]:
        raise ValueError(f"PEFT's layout is that of Hugging Face's GPT-2, which has no {', '.join(others)}")
    head = linear_of(model, "out_head")
    is_classifier = model.config.n_classes is not None or head.out_features != model.config.vocab_size
    name = "score" if is_classifier else "lm_head"
    linears = {
        f"transformer.h.{n}.{theirs}": tuple(f"trf_blocks.{n}.{part}" for part in ours)
        for n in range(model.config.n_layers) for theirs, ours in _LINEARS.items()
    }
    norms = {FINAL_NORM: "final_norm"} | {
        f"transformer.h.{n}.ln_{i}": f"trf_blocks.{n}.norm{i}" for n in range(model.config.n_layers) for i in (1, 2)
    }
    saved = {f"{theirs}.{a}": f"{ours}.{b}" for theirs, ours in norms.items() for a, b in _NORM.items()}
    if head.weight is not model.tok_emb.weight:
        saved[f"{name}.weight"] = "out_head.weight"
    return PeftLayout(name, linears | {name: ("out_head",)}, saved)


def linear_of(model: nn.Module, name: str) -> nn.Linear:
    """Return the model's linear layer of this dotted name, taken out of its wrapper; ValueError if it is another."""
    layer = model.get_submodule(name)
    linear = layer.linear if isinstance(layer, LinearWithLoRA) else layer
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{name} must be a linear layer, as in a GPTModel, got a {type(linear).__name__}")
    return linear


@torch.no_grad()
def put_together(parts: Sequence[LoRALayer | None], widths: Sequence[int]) -> Adapter:
    """Return the one adapter that stands for ours of layers ``widths`` wide; None has none. At least one has.

    Adapters are scaled alike there: where ours are not, B makes up for it.
    """
    first, *_ = present = [part for part in parts if part is not None]
    rank = sum(part.rank for part in present)
    B = torch.zeros(sum(widths), rank, dtype=first.B.dtype)                     # (N, R)
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            B[row : row + width, column : column + part.rank] = part.B.t().cpu() * (part.scale / first.scale)
            column += part.rank
        row += width
    A = torch.cat([part.A.t().cpu() for part in present])                       # (R, M)
    return Adapter(A, B, first.alpha * rank / first.rank)


def take_apart(adapter: Adapter, widths: Sequence[int], ranks: Sequence[int] | None) -> list[Adapter | None]:
    """Return one adapter for each of our layers ``widths`` wide; None where ``ranks`` says 0.

    ``ranks`` are those that ``put_together`` has seen. None, or if B has values outside their blocks: each layer gets
    the whole A and its rows of B, as any adapter of ``c_attn`` can be read.
    """
    rows = adapter.B.split(list(widths))                                        # (N, R) of each layer
    rank = len(adapter.A)
    if ranks is None or len(ranks) != len(widths) or min(ranks) < 0 or sum(ranks) != rank:
        return [Adapter(adapter.A, B, adapter.alpha) for B in rows]
    blocks = [list(B.split(list(ranks), dim=1)) for B in rows]
    if any(block.any() for i, row in enumerate(blocks) for j, block in enumerate(row) if i != j):
        return [Adapter(adapter.A, B, adapter.alpha) for B in rows]
    return [
        Adapter(A, blocks[i][i], adapter.alpha * len(A) / rank) if len(A) else None
        for i, A in enumerate(adapter.A.split(list(ranks)))
    ]
