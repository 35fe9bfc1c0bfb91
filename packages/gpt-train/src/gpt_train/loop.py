"""The training loop: a generator of one report per optimizer step; the caller prints, logs, saves or stops.

    for report in train(model, batches, config=config):
        log.write(report)
"""

import math
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from gpt_train.config import TrainConfig
from gpt_train.errors import DataError
from gpt_train.loss import IGNORED, sequence_loss
from gpt_train.schedule import learning_rate_at
from gpt_train.state import TrainState, random_states, restore_random_states
from gpt_train.step import Batch, Loss, Stepper, arithmetic


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step."""

    step: int
    """Optimizer steps done, this one included: the first report says 1."""
    tokens_seen: int
    """Input tokens of the whole run so far."""
    tokens: int
    """Input tokens of this step."""
    loss: float
    """Mean loss over the step's counted targets, before the update, in nats."""
    lr: float
    """Learning rate of this step."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    seconds: float
    """Duration of this step, batches included, evaluation not; from a clock that never goes back."""
    val_loss: float | None = None
    """Mean loss over the counted targets of the validation batches, after the update; None: not evaluated."""

    @property
    def tokens_per_second(self) -> float:
        """Input tokens of this step by its duration."""
        return self.tokens / max(self.seconds, 1e-9)


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    config: TrainConfig,
    state: TrainState | None = None,
    val_batches: Iterable[Batch] | None = None,
    loss: Loss = sequence_loss,
) -> Iterator[StepReport]:
    """Train ``model`` in place on its own device and yield a report after each optimizer step.

    Each step takes ``config.accumulate`` of ``batches`` and follows the gradient of the mean loss over all
    their counted targets: the same as one big batch of them. It ends after ``config.max_steps``, or cleanly
    when ``batches`` end before; a last group that is not full is trained on as it is.

    ``state`` is for resuming: the loop starts at ``state.step``, and ``batches`` must start at batch
    ``state.step * config.accumulate``. At each yield, ``state`` and ``model`` agree and may be saved.

    ``val_batches`` (anything that can be iterated again and again) are evaluated every
    ``config.eval_every`` steps and after the last one, as far as it is known: ``max_steps``, or the end of
    ``batches`` with a length. Evaluation draws no random number that training would miss.

    ``loss`` is what is trained and evaluated: by default the next token's.

    Raises FloatingPointError, with the weights unchanged, if the loss or the gradient is not finite;
    DataError if a step has no counted target or ``val_batches`` are empty or can be read only once.
    """
    # Not by iter(val_batches): a DataLoader draws a random number for it.
    if isinstance(val_batches, Iterator):
        raise DataError("val_batches can be read only once; pass a list, a loader or dataset.windows(...)")
    state = state or TrainState(model, config)
    take_step = Stepper(model, state.optimizer, precision=config.precision, compile=config.compile, loss=loss)
    last_step = config.max_steps
    if isinstance(batches, Sized):
        last_step = min(last_step, state.step + math.ceil(len(batches) / config.accumulate))
    stream = iter(batches)
    model.train()
    while state.step < config.max_steps:
        started = time.perf_counter()
        group = list(islice(stream, config.accumulate))
        if not group:
            return
        lr = learning_rate_at(state.step, config)
        for parameters in state.optimizer.param_groups:
            parameters["lr"] = lr
        mean_loss, grad_norm = take_step(
            group,
            step=state.step + 1,
            first_batch=state.step * config.accumulate,
            grad_clip=config.grad_clip,
        )
        seconds = time.perf_counter() - started
        tokens = sum(inputs.numel() for inputs, _ in group)
        state.step += 1
        state.tokens_seen += tokens
        is_due = state.step == last_step or (config.eval_every > 0 and state.step % config.eval_every == 0)
        val_loss = None
        if val_batches is not None and is_due:
            val_loss = _evaluate(model, val_batches, config.precision, loss)
        yield StepReport(
            step=state.step,
            tokens_seen=state.tokens_seen,
            tokens=tokens,
            loss=mean_loss,
            lr=lr,
            grad_norm=grad_norm,
            seconds=seconds,
            val_loss=val_loss,
        )


@torch.no_grad()
def _evaluate(model: nn.Module, batches: Iterable[Batch], precision: str, loss: Loss) -> float:
    """Return the mean loss over all counted targets; leave mode and random states as they were."""
    device = next(model.parameters()).device
    was_training, states = model.training, random_states(device)
    model.eval()
    total, n_targets = 0.0, 0
    try:
        for inputs, targets in batches:
            n_targets += int((targets != IGNORED).sum())
            with arithmetic(precision, device):
                total += loss(model, inputs.to(device), targets.to(device), reduction="sum").item()
    finally:
        model.train(was_training)
        restore_random_states(states, device)
    if not n_targets:
        raise DataError("val_batches hold no counted target; give more validation text or leave them out")
    return total / n_targets
