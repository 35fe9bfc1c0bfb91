"""What a run needs besides the weights to go on bit for bit: optimizer, step, tokens and random states.

Written as ``trainer/`` of a checkpoint directory, safetensors and JSON only:

    trainer/state.json          format, step, tokens_seen, config, the trainable parameters' shapes, circumstances
    trainer/state.safetensors   <moment>/<parameter name> for each moment of AdamW, rng/<device type>
"""

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt_train.config import TrainConfig
from gpt_train.errors import DataError
from gpt_train.optim import make_optimizer

_FORMAT = "gpt-train/1"


class TrainState:
    """The optimizer of ``model``, the number of steps done and the number of tokens seen.

    ``save`` writes them, with the state of torch's random generators, into a checkpoint; ``load`` restores
    all of it. The position in the data is the step: with batches that are a pure function of their number,
    go on with batch ``step * config.accumulate``.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.optimizer: Optimizer = make_optimizer(model, config)
        self.step = 0
        self.tokens_seen = 0

    def save(self, folder: Path | str) -> None:
        """Write ``folder/trainer/``; ``save_checkpoint(..., extra=state.save)`` makes it durable."""
        trainer = Path(folder) / "trainer"
        trainer.mkdir(parents=True, exist_ok=True)
        tensors = {f"rng/{kind}": state for kind, state in random_states(self._device).items()}
        for name, parameter in self._trainable().items():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{moment}/{name}"] = value.detach().to("cpu").contiguous()
        save_file(tensors, trainer / "state.safetensors", metadata={"format": "pt"})
        record = {
            "format": _FORMAT,
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "config": asdict(self.config),
            "parameters": self._shapes(),
            "circumstances": self._circumstances(),
        }
        with (trainer / "state.json").open("w", encoding="utf-8", newline="\n") as file:
            json.dump(record, file, indent=2, sort_keys=True)
            file.write("\n")

    def load(self, folder: Path | str) -> None:
        """Restore what ``save`` wrote, torch's random states included; the weights are the caller's.

        Call it last before ``train``, so that nothing draws random numbers in between. Nothing is changed
        unless all fits. Warns if device, number of threads or torch differ: the run goes on, but its last
        bits may not agree.

        Raises DataError if the state is missing or damaged, or belongs to another configuration or model
        (with what differs).
        """
        trainer = Path(folder) / "trainer"
        record, tensors = _read(trainer)
        _refuse_change(f"{trainer} has another configuration", record["config"], asdict(self.config))
        _refuse_change(f"{trainer} belongs to another model", record["parameters"], self._shapes())
        states: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind == "rng":
                states[name] = value
            elif name not in record["parameters"]:
                raise DataError(f"{trainer} holds {key}, which no parameter of the model has; it is damaged")
            elif kind != "step" and list(value.shape) != record["parameters"][name]:
                raise DataError(
                    f"{trainer} holds {key} with shape {list(value.shape)}, but the parameter has "
                    f"{record['parameters'][name]}; it is damaged")
            else:
                moments.setdefault(name, {})[kind] = value
        for name, found in moments.items():
            if set(found) != {"step", "exp_avg", "exp_avg_sq"}:
                raise DataError(f"{trainer} lacks a moment of {name}, it has {sorted(found)}; it is damaged")
        if record["circumstances"] != self._circumstances():
            there, here = _differences(record["circumstances"], self._circumstances())
            warnings.warn(
                f"resuming elsewhere ({there} -> {here}): the run goes on, but its last bits may differ",
                stacklevel=2,
            )
        self._restore(moments)
        self.step, self.tokens_seen = record["step"], record["tokens_seen"]
        restore_random_states(states, self._device)

    def _restore(self, moments: dict[str, dict[str, Tensor]]) -> None:
        """Give the optimizer these moments; its own ``load_state_dict`` puts them on the right device."""
        names = {parameter: name for name, parameter in self._trainable().items()}
        state = self.optimizer.state_dict()
        order = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state["state"] = {
            index: moments[names[parameter]]
            for index, parameter in enumerate(order)
            if names[parameter] in moments
        }
        self.optimizer.load_state_dict(state)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def _shapes(self) -> dict[str, list[int]]:
        return {name: list(value.shape) for name, value in self._trainable().items()}

    def _circumstances(self) -> dict[str, Any]:
        return {"torch": torch.__version__, "device": self._device.type, "threads": torch.get_num_threads()}


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the random generators that training on ``device`` draws from, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what ``random_states`` returned; the state of another kind of device is left out."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], device)


def _read(trainer: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the two files' contents; DataError if one is missing, damaged or of another version."""
    json_file, tensor_file = trainer / "state.json", trainer / "state.safetensors"
    for path in (json_file, tensor_file):
        if not path.is_file():
            raise DataError(f"{path} is missing: this checkpoint cannot be resumed, only used as a model")
    try:
        record = json.loads(json_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{json_file} is damaged: {error}; resume from another checkpoint") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{json_file} has format {found!r}, not {_FORMAT!r}; install what wrote it")
    types = {"step": int, "tokens_seen": int, "config": dict, "parameters": dict, "circumstances": dict}
    for name, kind in types.items():
        if not isinstance(record.get(name), kind):
            raise DataError(f"{json_file} is damaged at {name!r}; resume from another checkpoint")
    try:
        tensors = load_file(tensor_file)
    except SafetensorError as error:
        raise DataError(f"{tensor_file} is damaged: {error}; resume from another checkpoint") from error
    if "rng/cpu" not in tensors:
        raise DataError(f"{tensor_file} is damaged: it lacks rng/cpu; resume from another checkpoint")
    return record, tensors


def _refuse_change(what: str, saved: dict[str, Any], current: dict[str, Any]) -> None:
    if saved != current:
        there, here = _differences(saved, current)
        raise DataError(f"{what}: saved {there}; now {here}; resume with the saved values or start a new run")


def _differences(saved: dict[str, Any], current: dict[str, Any]) -> tuple[str, str]:
    """Return the entries that differ, once with the saved and once with the current values, as text."""
    names = [name for name in {**current, **saved} if saved.get(name, ...) != current.get(name, ...)]
    there = ", ".join(f"{name} {saved[name]}" if name in saved else f"no {name}" for name in names)
    here = ", ".join(f"{name} {current[name]}" if name in current else f"no {name}" for name in names)
    return there, here
