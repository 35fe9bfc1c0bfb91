"""Low-rank adaptation (appendix E; Hu et al. 2021, section 4.1): a frozen weight plus the product of two thin matrices.

y = x W^T + b + (alpha / rank) x A B. A is drawn and B is zero, so at first nothing changes; only A and B are trained.
In the 124M model with two classes that is 2.7 million parameters at rank 16, of 124.4 million.

Shapes: M inputs, N outputs, R rank.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which layers ``add_lora`` adapts, and how. Raises ValueError with the field, the value and the rule."""

    rank: int = 16
    """Columns of A and rows of B: the rank of what is added to a weight."""

    alpha: float = 16.0
    """What x A B is multiplied by, times the rank: alpha / rank, so 1 where the two are equal."""

    dropout: float = 0.0
    """Share of A's inputs that is zeroed in training; the frozen layer sees them all."""

    layers: tuple[str, ...] | None = None
    """Ends of the layers' dotted names, such as W_query or ff.layers.0; None: every linear layer but out_head."""

    def __post_init__(self) -> None:
        _check(self.rank, self.alpha, self.dropout)
        if self.layers is None:
            return
        is_tuple = isinstance(self.layers, tuple) and all(isinstance(name, str) and name for name in self.layers)
        if not is_tuple or not self.layers:
            raise ValueError(f"layers must be None or a tuple of one or more names, got {self.layers!r}")


class LoRALayer(nn.Module):
    """(alpha / rank) x A B for x (..., M), A (M, R), B (R, N): zero until B is trained.

    A's draws are the book's: Kaiming's uniform with a = sqrt(5), whose fan-in is here the rank. In training
    ``dropout`` zeroes that share of x.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: float, *, dropout: float = 0.0) -> None:
        super().__init__()
        _check(rank, alpha, dropout)
        self.rank, self.alpha = rank, alpha
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.dropout = nn.Dropout(dropout)

    @property
    def scale(self) -> float:
        """What x A B is multiplied by."""
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the linear layer's output, (..., N)."""
        return self.scale * (self.dropout(x) @ self.A @ self.B)


class LinearWithLoRA(nn.Module):
    """``linear(x) + lora(x)``. The linear layer is kept as it is, ``requires_grad`` of its parameters too.

    ``lora`` is drawn on torch's default device and then takes the weight's device and dtype.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = linear
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha, dropout=dropout)
        self.lora.to(device=linear.weight.device, dtype=linear.weight.dtype)
        self.train(linear.training)  # a new module trains: its dropout would work in a model that does not

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., N) for x (..., M)."""
        return self.linear(x) + self.lora(x)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return W + (alpha / rank) (A B)^T, the weight (N, M) of the one layer that computes the same."""
        weight = self.linear.weight
        wide = torch.promote_types(weight.dtype, torch.float32)  # so that 16-bit weights are rounded once, at the end
        update = self.lora.A.to(wide) @ self.lora.B.to(wide)                    # (M, N)
        return (weight.to(wide) + self.lora.scale * update.t()).to(weight.dtype)


def replace_linear_with_lora(model: nn.Module, rank: int, alpha: float, *, dropout: float = 0.0) -> None:
    """Wrap every ``nn.Linear`` below ``model`` in a ``LinearWithLoRA``, in place; the book's function.

    Layers that are wrapped already stay as they are. Freeze the model before: nothing is frozen here, as in the book.
    Raises ValueError if ``rank`` is below 1.
    """
    _check(rank, alpha, dropout)
    for place in list(_linears(model)):
        place.put(LinearWithLoRA(place.layer, rank, alpha, dropout=dropout))


def add_lora(model: nn.Module, config: LoRAConfig | None = None) -> list[str]:
    """Freeze the model, wrap the layers that ``config`` names, and return their dotted names.

    Afterwards A and B alone have ``requires_grad``; what else is to be trained, in full, the caller thaws: a new head
    by ``model.out_head.requires_grad_(True)``. The draws come in the modules' order. None: as ``LoRAConfig()``.

    Raises ValueError, before anything changes, if the model holds LoRA already or a name of ``config.layers`` is the
    end of no linear layer's name (naming the nearest).
    """
    config = config or LoRAConfig()
    refuse_lora(model)
    places = {place.dotted: place for place in _linears(model)}
    chosen = _chosen(list(places), config.layers)
    model.requires_grad_(False)
    for name in chosen:
        place = places[name]
        place.put(LinearWithLoRA(place.layer, config.rank, config.alpha, dropout=config.dropout))
    return chosen


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the A and B of every wrapped layer, in the modules' order; none if the model holds no LoRA."""
    return [tensor for module in model.modules() if isinstance(module, LoRALayer) for tensor in (module.A, module.B)]


def remove_lora(model: nn.Module) -> None:
    """Put the layers that were wrapped back in their places, in place: with their weights, the base model's.

    What was trained besides stays as it is, and so does ``requires_grad``. Raises ValueError if the model holds no
    LoRA, or none any more because it is merged.
    """
    for place in wrapped_places(model):
        place.put(place.layer.linear)


class Place(NamedTuple):
    """Where a layer stands, so that another can be put there."""

    parent: nn.Module
    name: str
    """In the parent."""
    dotted: str
    """In the model."""

    @property
    def layer(self) -> Any:
        """What stands there now."""
        return getattr(self.parent, self.name, None)

    def put(self, layer: nn.Module) -> None:
        """Let ``layer`` stand there."""
        setattr(self.parent, self.name, layer)


def wrapped_places(model: nn.Module) -> list[Place]:
    """Return the place of every ``LinearWithLoRA`` below the model, in the modules' order; ValueError without any."""
    found = [place for place in _places(model) if isinstance(place.layer, LinearWithLoRA)]
    if not found:
        raise ValueError("the model holds no LoRA: none was added (add_lora), or it is merged (unmerge it first)")
    return found


def refuse_lora(model: nn.Module) -> None:
    """Raise ValueError if a layer is wrapped already."""
    for place in _places(model):
        if isinstance(place.layer, LinearWithLoRA):
            raise ValueError(f"the model holds LoRA already ({place.dotted}); merge_lora or remove_lora comes first")


def _linears(model: nn.Module) -> Iterator[Place]:
    return (place for place in _places(model) if isinstance(place.layer, nn.Linear))


def _places(module: nn.Module, prefix: str = "") -> Iterator[Place]:
    """Yield the place of every module below ``module``, in their order, but of none inside a wrapped layer."""
    if isinstance(module, LinearWithLoRA):
        return
    for name, child in module.named_children():
        yield Place(module, name, prefix + name)
        yield from _places(child, f"{prefix}{name}.")


def _chosen(names: list[str], layers: tuple[str, ...] | None) -> list[str]:
    """Return those of the dotted names that ``layers`` means, in their own order."""
    if layers is None:
        return [name for name in names if name.split(".")[-1] != "out_head"]
    for layer in layers:
        if not any(_ends_with(name, layer) for name in names):
            ends = {name.split(".", n)[-1] for name in names for n in range(name.count(".") + 1)}
            nearest = difflib.get_close_matches(layer, sorted(ends), n=1)
            hint = f"; nearest is {nearest[0]!r}" if nearest else ""
            raise ValueError(f"layers has {layer!r}, but no linear layer's name ends so{hint}")
    return [name for name in names if any(_ends_with(name, layer) for layer in layers)]


def _ends_with(name: str, layer: str) -> bool:
    return f".{name}".endswith(f".{layer}")


def _check(rank: int, alpha: float, dropout: float) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a whole number of at least 1, got {rank!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a finite number above 0, got {alpha!r}")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a number from 0 up to, but not including, 1, got {dropout!r}")
