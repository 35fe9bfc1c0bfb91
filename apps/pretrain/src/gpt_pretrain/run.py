"""The training command: from text to a model that writes, in one folder that can always be gone on with."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt_core import (
    GPTModel,
    Sampling,
    initialize_gpt2,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from gpt_pretrain.config import PretrainConfig, settings_of
from gpt_pretrain.data import TrainingData, find_source, open_data
from gpt_pretrain.device import resolve_device
from gpt_pretrain.errors import USAGE, PretrainError
from gpt_pretrain.lock import locked
from gpt_pretrain.progress import Progress, say
from gpt_pretrain.run_folder import DATA, METRICS, Found, checkpoint_folder, look_into, versions, write_record
from gpt_pretrain.sample import sample_text
from gpt_pretrain.signals import Interrupted, StopSignals
from gpt_pretrain.summary import finish
from gpt_pretrain.validation import Validation
from gpt_train import MetricsLog, TrainState, keep_freed_memory, train

SAMPLE_TEMPERATURE = 0.8
"""Of the samples shown: below 1, because a small model's tail of unlikely tokens is mostly noise."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that a run's steps need."""

    config: PretrainConfig
    folder: Path
    settings: dict[str, Any]
    data: TrainingData
    model: GPTModel
    state: TrainState
    validation: Validation

    @property
    def prompt(self) -> str:
        """What samples go on from."""
        return self.config.prompt or self.validation.opening

    def sample(self) -> str:
        """Return what the model writes now, the prompt included; the same weights write the same text."""
        pieces = sample_text(
            self.model,
            self.data.tokenizer,
            self.prompt,
            max_new_tokens=self.config.sample_tokens,
            sampling=Sampling(temperature=SAMPLE_TEMPERATURE, seed=self.config.seed),
        )
        return self.prompt + "".join(pieces)

    def save(self) -> None:
        """Write the checkpoint of the current step, then remove the oldest ones.

        Raises FloatingPointError where a weight is not finite: the newest checkpoint is the one gone on with.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise FloatingPointError(f"the weights are not finite after step {self.state.step}")
        provenance = {"made_by": "gpt-pretrain", "settings": self.settings, "versions": versions()}
        save_checkpoint(
            checkpoint_folder(self.folder, self.state.step),
            self.model,
            tokenizer=self.data.tokenizer,
            provenance=provenance,
            extra=self.state.save,
        )
        prune_checkpoints(self.folder, keep=self.config.keep)


def train_command(config: PretrainConfig, *, needs_data: str | None, command: str) -> int:
    """Run ``config`` to its end and return the exit code 0; ``command`` is what the person typed.

    Raises PretrainError, what gpt_core and gpt_train raise, and Interrupted after a signal, with all that is
    needed to go on saved.
    """
    if needs_data is not None and not config.data.data:
        raise PretrainError(f"the recipe {config.recipe} needs text: give --data with {needs_data}", exit_code=USAGE)
    folder = config.out or Path("runs") / Path(config.recipe).stem
    device = resolve_device(config.device)
    keep_freed_memory()
    with StopSignals() as signals:
        source = find_source(config, run=folder, run_data=folder / DATA, say=say)
        settings = {**settings_of(config), "device": device, **source.identity}
        look_into(folder, settings, resume=config.resume)  # before the lock, which would leave its file there
        with locked(folder):
            found = look_into(folder, settings, resume=config.resume)
            if found is Found.FINISHED:
                say(f"{folder} holds this run, finished after {config.train.max_steps:,} steps: nothing to do")
                return 0
            data = open_data(source, config, say=say)
            if found is Found.NOTHING:
                write_record(folder, settings, recipe=config.recipe)
            run = _open_run(config, folder, settings, data, device)
            with MetricsLog(folder / METRICS, resume_step=run.state.step) as log:
                _steps(run, log, signals)
            finish(run, command=command)
    return 0


def _open_run(config: PretrainConfig, folder: Path, settings: dict[str, Any], data: TrainingData, device: str) -> Run:
    """Return the run at its newest intact checkpoint, or at its start if there is none."""
    validation = Validation(
        data,
        batch_size=config.batch_size,
        context_length=config.model.context_length,
        most_tokens=config.eval_tokens,
    )
    if list_checkpoints(folder):
        checkpoint = load_checkpoint(folder, device=device)
        model = checkpoint.model
        state = TrainState(model, config.train)
        state.load(checkpoint.folder)
        say(f"going on after step {state.step:,} of {config.train.max_steps:,}")
    else:
        torch.manual_seed(config.seed)
        model = GPTModel(config.model)
        if config.init == "gpt2":
            initialize_gpt2(model, seed=config.seed)
        model.to(device)
        state = TrainState(model, config.train)
    say(
        f"{model.n_parameters:,} parameters on {device}; {data.train.n_tokens:,} tokens to learn from, "
        f"{validation.n_tokens:,} to be measured by"
    )
    return Run(
        config=config,
        folder=folder,
        settings=settings,
        data=data,
        model=model,
        state=state,
        validation=validation,
    )


def _steps(run: Run, log: MetricsLog, signals: StopSignals) -> None:
    """Take the steps that are left, saving every ``save_every``; after a signal, Interrupted, saved."""
    config, state = run.config, run.state
    batches = run.data.train.batches(
        batch_size=config.batch_size,
        context_length=config.model.context_length,
        seed=config.seed,
        start=state.step * config.train.accumulate,
    )
    saved = state.step
    signals.wait_for_step = True
    with Progress(max_steps=config.train.max_steps, first_step=state.step) as progress:
        for report in train(run.model, batches, config=config.train, state=state, val_batches=run.validation.batches):
            log.write(report)
            progress.update(report)
            if report.val_loss is not None:
                if not math.isfinite(report.val_loss):
                    raise FloatingPointError(f"the validation loss is {report.val_loss} after step {report.step}")
                progress.say(run.validation.line(report.step, report.val_loss))
                if config.sample_tokens and report.step < config.train.max_steps:
                    progress.say(f"it writes: {run.sample()}\n")
            is_last = report.step == config.train.max_steps
            if is_last or report.step % config.save_every == 0 or signals.received is not None:
                log.sync()
                run.save()
                saved = report.step
            if signals.received is not None and not is_last:
                break
    signals.wait_for_step = False
    if signals.received is not None and saved < config.train.max_steps:
        raise Interrupted(signals.received, saved=saved)
