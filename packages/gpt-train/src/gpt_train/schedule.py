"""The learning rate as a pure function of the step (appendix D; Loshchilov and Hutter 2017)."""

import math

from gpt_train.config import TrainConfig


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Return the rate for optimizer step ``step`` (0-based): linear warm-up, then half a cosine.

    In the warm-up, s < W::

        initial_lr + s * (lr - initial_lr) / W

    so that ``lr`` is reached at s = W exactly. Without an ``initial_lr`` the ramp starts at lr / (W + 1):
    no step is spent at a rate of 0. After it, with S = ``max_steps``::

        min_lr + (lr - min_lr) / 2 * (1 + cos(pi * (s - W) / (S - W)))

    From ``max_steps`` on the rate stays at ``min_lr``. The schedule "constant" keeps ``lr`` after the
    warm-up.

    Raises ValueError if ``step`` is negative.
    """
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    lr, warmup = config.lr, config.warmup_steps
    if config.schedule == "constant" and step >= warmup:
        return lr
    initial_lr = lr / (warmup + 1) if config.initial_lr is None else config.initial_lr
    return warmup_and_cosine(
        step, max_steps=config.max_steps, warmup_steps=warmup, initial_lr=initial_lr, lr=lr, min_lr=config.min_lr
    )


def warmup_and_cosine(
    step: int, *, max_steps: int, warmup_steps: int, initial_lr: float, lr: float, min_lr: float
) -> float:
    """Return the rate by the formulas of ``learning_rate_at``, which hold for a ``min_lr`` above ``lr`` too."""
    if step < warmup_steps:
        return initial_lr + step * (lr - initial_lr) / warmup_steps
    if step >= max_steps:
        return min_lr
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return min_lr + (lr - min_lr) / 2 * (1 + math.cos(math.pi * progress))
