"""Teaching a chat model which answers are better, by direct preference optimization, through gpt-train's loop.

    pairs = encode_preferences(chat, preferences)
    for report in train_preferences(chat, pairs, validation=held_out, config=config):
        ...
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from gpt_core import GPTModel
from gpt_finetune.chat import ChatModel
from gpt_finetune.config_checks import check_choices, check_counts, check_numbers, check_seed, check_switches
from gpt_finetune.kept_weights import KeptWeights
from gpt_finetune.preference_loss import PreferenceLoss, PreferenceScores, pair_log_probabilities
from gpt_finetune.preference_pairs import PreferenceBatches, PreferencePairs, preference_batch
from gpt_train import DataError, TrainConfig, train


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """How preferences are learned; what of the model, its parameters' ``requires_grad`` says. Checked once, here."""

    epochs: int = 1
    """Passes over the preferences."""
    batch_size: int = 8
    """Pairs of answers in a batch, all of about the same length."""
    lr: float = 5e-6
    """Peak learning rate: after a warm-up over a twentieth of the steps it falls as half a cosine to a tenth."""
    beta: float = 0.1
    """How dear it is to leave the reference: the larger, the nearer the model stays to it."""
    reduction: Literal["sum", "mean"] = "sum"
    """An answer's log-probability: the sum over its tokens (the paper), or their mean (the book), which does not favour
    short answers and needs a larger beta."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay of the matrices; 0, as the model is to stay near the reference, not near 0."""
    keep_best: bool = True
    """Keep the weights of the epoch with the lowest validation loss, not the last ones; needs validation preferences.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the products, the reference's too."""
    seed: int = 123
    """Seed of the order of the pairs and of dropout; below 2**63."""

    def __post_init__(self) -> None:
        check_counts(self, epochs=1, batch_size=1)
        check_numbers(self, lr=math.inf, beta=math.inf, weight_decay=math.inf)
        if self.beta == 0:
            raise ValueError("beta must be above 0, got 0: every loss would be ln 2")
        check_seed(self.seed)
        check_choices(self, reduction=("sum", "mean"), precision=("float32", "bfloat16"))
        check_switches(self, "keep_best")


@dataclass(frozen=True, kw_only=True)
class PreferenceReport(PreferenceScores):
    """One optimizer step, with the scores of its pairs before the update."""

    step: int
    """Steps done, this one included."""
    n_steps: int
    """Steps of the whole run."""
    epoch: int
    """Epoch this step belongs to, from 1."""
    lr: float
    """Learning rate of the step."""
    seconds: float
    """Duration of the step."""
    validation: PreferenceScores | None = None
    """Scores of the validation pairs, at the end of an epoch."""
    is_best: bool = False
    """Whether the validation loss is the lowest so far: what is kept with ``keep_best``."""


def train_preferences(
    chat: ChatModel,
    pairs: PreferencePairs,
    *,
    validation: PreferencePairs | None = None,
    config: PreferenceConfig | None = None,
    reference: GPTModel | None = None,
) -> Iterator[PreferenceReport]:
    """Train the chat model in place, and yield a report after each step.

    The ``reference`` says what a reward is measured against: another model with the same tokens, or None, the model as
    it is before the first step (LoRA included: fresh adapters are zero, so that it is the base model). Its
    log-probabilities are computed once, without dropout, and no second model is needed while training. The first loss
    is then ln 2. Dropout, where the model has some (``drop_rate``), works in training: the first loss is then larger,
    as noise moves margins both ways.

    Trained is what requires a gradient. While a report is handed out the model holds the weights of that step; once the
    generator has ended or is closed, those to be kept. A ``for`` loop over the call itself closes it at a ``break``;
    one that you keep in a variable, ``close()`` it.

    Raises DataError if there is no pair; ValueError if nothing requires a gradient, or the reference does not know the
    model's tokens; FloatingPointError if a loss is not finite: that step changes nothing, and the model then holds the
    weights to be kept.
    """
    config = config or PreferenceConfig()
    model = chat.model
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("nothing of the model requires a gradient; thaw a part of it, or add LoRA")
    for name, given in (("pairs", pairs), ("validation", validation)):
        if given is not None and not given:
            raise DataError(f"{name} hold nothing to learn: {given.report}; give shorter ones, or a longer context")
    reference = model if reference is None else reference
    _check_reference(reference, model)
    torch.manual_seed(config.seed)
    together = pairs if validation is None else _together(pairs, validation)
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
        known = pair_log_probabilities(reference, together, reduction=config.reduction)
    loss = PreferenceLoss(together, known.to(model.device), beta=config.beta, reduction=config.reduction)
    batches = PreferenceBatches(pairs, batch_size=config.batch_size, seed=config.seed)
    n_steps = batches.n_steps * config.epochs
    settings = TrainConfig(
        max_steps=n_steps, lr=config.lr, min_lr=config.lr / 10, warmup_steps=n_steps // 20,
        weight_decay=config.weight_decay, precision=config.precision, eval_every=batches.n_steps,
    )
    # The validation pairs stand behind the others.
    numbers = range(len(pairs), len(together))
    held_out_batches = [
        preference_batch(together, numbers[first : first + config.batch_size])
        for first in range(0, len(numbers), config.batch_size)
    ]
    kept, lowest = KeptWeights(model), math.inf
    try:
        for step in train(
            model, batches.epochs(config.epochs), config=settings, val_batches=held_out_batches or None, loss=loss
        ):
            scores = None if step.val_loss is None else loss.take_scores(training=False)
            is_best = scores is not None and scores.loss < lowest
            if scores is not None and is_best:
                lowest = scores.loss
                if config.keep_best:
                    kept.keep()
            yield PreferenceReport(
                step=step.step, n_steps=n_steps, epoch=-(-step.step // batches.n_steps), lr=step.lr,
                seconds=step.seconds, validation=scores, is_best=is_best, **asdict(loss.take_scores(training=True)),
            )
            model.train()  # the caller may have asked the model something, which leaves it in eval mode
    finally:
        kept.restore()
        model.eval()


def _together(pairs: PreferencePairs, others: PreferencePairs) -> PreferencePairs:
    """Return the pairs of both, the others behind; ``numbers`` then counts them, and does not name preferences."""
    numbers = tuple(range(len(pairs) + len(others)))
    return PreferencePairs(rows=pairs.rows + others.rows, starts=pairs.starts + others.starts, numbers=numbers)


def _check_reference(reference: GPTModel, model: GPTModel) -> None:
    for name in ("vocab_size", "context_length", "n_classes"):
        there, here = getattr(reference.config, name), getattr(model.config, name)
        does_not_fit = there < here if name == "context_length" else there != here
        if does_not_fit:
            raise ValueError(
                f"the reference's {name} is {there} and the model's {here}; take a copy of the model, or None")
