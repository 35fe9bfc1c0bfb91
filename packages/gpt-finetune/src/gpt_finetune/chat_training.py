"""Teaching a model to answer and to stop: all of it, its last blocks or LoRA, through gpt-train's loop.

    examples = encode_conversations(chat, conversations)
    for report in train_chat(chat, examples, validation=held_out, config=config):
        ...
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from gpt_finetune.chat import ChatModel
from gpt_finetune.chat_batches import ChatBatches, ChatExamples, chat_batches_in_order
from gpt_finetune.class_batches import IGNORED
from gpt_finetune.config_checks import check_choices, check_counts, check_numbers, check_seed, check_switches
from gpt_finetune.kept_weights import KeptWeights
from gpt_finetune.lora import lora_parameters
from gpt_train import DataError, StepReport, TrainConfig, TrainState, sequence_loss, train


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """How a model learns to answer; what of it, its parameters' ``requires_grad`` says. Checked once, here."""

    epochs: int = 2
    """Passes over the conversations."""
    batch_size: int = 8
    """Conversations in a batch, all of about the same length."""
    lr: float = 5e-5
    """Peak learning rate: after a warm-up over a twentieth of the steps it falls as half a cosine to a tenth."""
    weight_decay: float = 0.1
    """AdamW's decoupled decay of the matrices."""
    keep_best: bool = True
    """Keep the weights of the epoch with the lowest validation loss, not the last ones; needs validation examples."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Arithmetic of the products while training, as in gpt_train's TrainConfig."""
    seed: int = 123
    """Seed of the order of the conversations and of dropout; below 2**63."""

    def __post_init__(self) -> None:
        check_counts(self, epochs=1, batch_size=1)
        check_numbers(self, lr=math.inf, weight_decay=math.inf)
        check_seed(self.seed)
        check_choices(self, precision=("auto", "float32", "bfloat16"))
        check_switches(self, "keep_best")

    def n_steps(self, n_examples: int) -> int:
        """Return the optimizer steps of an epoch over so many examples."""
        return -(-n_examples // self.batch_size)

    def train_config(self, n_examples: int) -> TrainConfig:
        """Return the settings of gpt-train's loop, and of the ``TrainState`` of a run that can be resumed."""
        n_steps = self.n_steps(n_examples) * self.epochs
        return TrainConfig(
            max_steps=n_steps, lr=self.lr, min_lr=self.lr / 10, warmup_steps=n_steps // 20,
            weight_decay=self.weight_decay, precision=self.precision, eval_every=self.n_steps(n_examples),
        )


def train_chat(
    chat: ChatModel,
    examples: ChatExamples,
    *,
    validation: ChatExamples | None = None,
    config: ChatConfig | None = None,
    state: TrainState | None = None,
) -> Iterator[StepReport]:
    """Train the chat model in place, and yield gpt-train's report after each step.

    At the end of each epoch it has the ``val_loss`` of ``validation``: the mean over the tokens to learn. Trained is
    what requires a gradient: all of the model, ``train_only_last_blocks``, or LoRA after ``add_lora``. While a report
    is handed out the model holds the weights of that step; once the generator has ended or is closed, those to be kept.

    ``state``, a ``TrainState(chat.model, config.train_config(len(examples)))``, is for runs that can be killed: save it
    with ``chat.save(folder, extra=state.save)``, load it again, and with the same examples and config training goes on
    bit for bit. The best weights are in memory only, so such a run needs ``keep_best=False`` (save those of the lowest
    ``val_loss`` yourself); nor is there a way back for LoRA, which a checkpoint holds merged.

    Raises DataError if there is no example; ValueError if nothing requires a gradient, if the template's tokens are new
    to the model and its head is frozen, or if ``state`` belongs to another model or config, or goes with ``keep_best``
    or LoRA; FloatingPointError if a loss is not finite: that step changes nothing.
    """
    config = config or ChatConfig()
    for name, given in (("examples", examples), ("validation", validation)):
        if given is not None and not given:
            raise DataError(f"{name} hold nothing to learn: {given.report}; give conversations with answers")
    settings = config.train_config(len(examples))
    if state is not None:
        _check_state(state, chat, settings, keep_best=config.keep_best and validation is not None)
    if not any(parameter.requires_grad for parameter in chat.model.parameters()):
        raise ValueError("nothing of the model requires a gradient; thaw a part of it, or add LoRA")
    is_head_trained = any(parameter.requires_grad for parameter in chat.model.out_head.parameters())
    if chat.new_ids and not is_head_trained:
        raise ValueError(
            f"the control tokens of template {chat.template.name!r} are new to this model, and with its head frozen it "
            "could never learn to end an answer; call chat.model.out_head.requires_grad_(True), or take the template "
            "'alpaca', which needs none")
    if state is None:
        state = TrainState(chat.model, settings)
    if state.step == 0:
        torch.manual_seed(config.seed)
    batches = ChatBatches(examples, batch_size=config.batch_size, seed=config.seed)
    held_out = None if validation is None else chat_batches_in_order(validation, batch_size=config.batch_size)
    kept = KeptWeights(chat.model)
    lowest = math.inf
    try:
        stream = batches.epochs(config.epochs, start=state.step)
        for report in train(chat.model, stream, config=settings, state=state, val_batches=held_out):
            if is_head_trained:
                chat.new_ids = frozenset()
            if report.val_loss is not None and report.val_loss < lowest:
                lowest = report.val_loss
                if config.keep_best:
                    kept.keep()
            yield report
            chat.model.train()  # the caller may have asked the model something, which leaves it in eval mode
    finally:
        kept.restore()
        chat.model.eval()


def _check_state(state: TrainState, chat: ChatModel, settings: TrainConfig, *, keep_best: bool) -> None:
    if keep_best:
        raise ValueError("a resumed run has no memory of earlier epochs' weights; pass keep_best=False with a state")
    if lora_parameters(chat.model):
        raise ValueError("a run with LoRA cannot be resumed, as checkpoints hold LoRA merged; train it without a state")
    if state.model is not chat.model or state.config != settings:
        raise ValueError(
            "the state belongs to another model or config; make it with TrainState(chat.model, "
            "config.train_config(len(examples)))")


@torch.no_grad()
def chat_loss(chat: ChatModel, examples: ChatExamples, *, batch_size: int = 8) -> float:
    """Return the mean negative log-likelihood of the tokens to learn, in nats; the model is in eval mode afterwards.

    Raises DataError if there is none.
    """
    if not examples:
        raise DataError(f"there is nothing to judge by: {examples.report}")
    chat.model.eval()
    total, n_targets = 0.0, 0
    for inputs, targets in chat_batches_in_order(examples, batch_size=batch_size):
        inputs, targets = inputs.to(chat.model.device), targets.to(chat.model.device)
        total += sequence_loss(chat.model, inputs, targets, reduction="sum").item()
        n_targets += int((targets != IGNORED).sum())
    return total / n_targets
