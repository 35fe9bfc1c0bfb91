"""All settings of a training run, flat, so that each can be a command's flag."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained: length, learning rate, AdamW, batch arithmetic and evaluation.

    Checked once, here: a value that breaks its rule is a ValueError naming the field.
    """

    max_steps: int
    """Optimizer steps of the whole run; the learning rate's schedule ends there."""
    lr: float = 3e-4
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    initial_lr: float | None = None
    """Learning rate of the first warm-up step; None: lr / (warmup_steps + 1)."""
    warmup_steps: int = 0
    """Steps in which the rate rises linearly from initial_lr to lr."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: half a cosine down to min_lr, or lr for good."""
    weight_decay: float = 0.1
    """AdamW's decoupled decay of tensors with two or more axes."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    eps: float = 1e-8
    """AdamW's guard against division by zero."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0 turns clipping off."""
    accumulate: int = 1
    """Batches whose gradients are summed into one optimizer step."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the products; auto: bfloat16 where the processor has it, else float32."""
    compile: bool = False
    """Compile forward and backward pass with torch.compile; where that fails, go on without."""
    eval_every: int = 0
    """Steps between two evaluations on the validation batches; 0: only after the last step."""

    def __post_init__(self) -> None:
        for name, least in (("max_steps", 1), ("warmup_steps", 0), ("accumulate", 1), ("eval_every", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        for name in ("lr", "min_lr", "initial_lr", "weight_decay", "beta1", "beta2", "eps", "grad_clip"):
            value = getattr(self, name)
            if name == "initial_lr" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name)}")
        if self.eps == 0:
            raise ValueError("eps must be above 0, got 0")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must not exceed lr, got {self.min_lr} above {self.lr}; lower min_lr")
        choices = {"schedule": ("cosine", "constant"), "precision": ("auto", "float32", "bfloat16")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not isinstance(self.compile, bool):
            raise ValueError(f"compile must be True or False, got {self.compile!r}")
