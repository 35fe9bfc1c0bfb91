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
    warmup = config.warmup_steps
    if step < warmup:
        initial = config.lr / (warmup + 1) if config.initial_lr is None else config.initial_lr
        return initial + step * (config.lr - initial) / warmup
    if config.schedule == "constant":
        return config.lr
    if step >= config.max_steps:
        return config.min_lr
    progress = (step - warmup) / (config.max_steps - warmup)
    return config.min_lr + (config.lr - config.min_lr) / 2 * (1 + math.cos(math.pi * progress))
