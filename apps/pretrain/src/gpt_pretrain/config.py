"""Every setting of a pretraining run, once: each field is a flag, its docstring the flag's help.

The sizes of the model are gpt_core's GPTConfig and the settings of the training loop gpt_train's TrainConfig;
both appear among the flags as if they were fields of PretrainConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from gpt_core import GPTConfig
from gpt_pretrain.device import Device
from gpt_train import TrainConfig

Init = Literal["gpt2", "torch"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, cut into which tokens, and how much of it is held out."""

    data: tuple[Path, ...] = ()
    """Text and .jsonl files, folders of them, or shards of `gpt-pretrain prepare`; none: Python's docs."""

    text_field: str = "text"
    """Field of a .jsonl line that holds its text."""

    tokenizer: str = "bpe"
    """bpe learns a vocabulary from the training text; gpt2 is GPT-2's; else the path of a tokenizer.json."""

    val_fraction: float = 0.1
    """Share of the characters held out: of 20 or more documents whole ones, of fewer the end of each."""

    split_seed: int = 0
    """Seed that draws the documents held out; apart from seed, so that runs can be compared."""

    def __post_init__(self) -> None:
        fraction = self.val_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {fraction!r}")
        if isinstance(self.split_seed, bool) or not isinstance(self.split_seed, int):
            raise ValueError(f"split_seed must be a whole number, got {self.split_seed!r}")
        for name in ("text_field", "tokenizer"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Train a GPT from raw text and let it write. Without arguments: the recipe quick."""

    recipe: str = "quick"
    """Where the defaults of all other settings come from: a recipe's name, or a .toml file."""

    out: Path | None = None
    """The run's folder; by default runs/RECIPE."""

    resume: bool = False
    """Go on with the run in the folder, or start it there: the same command can always be repeated."""

    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""

    seed: int = 123
    """Seed of the weights, of dropout and of the order of the training text."""

    data: Annotated[DataConfig, tyro.conf.arg(name="")]
    model: Annotated[GPTConfig, tyro.conf.arg(name="")]
    init: Init = "gpt2"
    """Initial weights: gpt2 draws them as GPT-2 does, torch leaves the layers' own (as the book does)."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    batch_size: int = 8
    """Sequences of context_length tokens in a batch; a step takes accumulate of them."""

    eval_tokens: int = 65_536
    """Tokens of the validation text to score, from its start: rounded down to whole batches, at least one."""

    save_every: int = 200
    """Steps between two checkpoints; the last step is always saved."""

    keep: int = 2
    """How many of the newest checkpoints stay."""

    prompt: str = ""
    """What the samples shown while training go on from; empty: the first words of the held-out text."""

    sample_tokens: int = 100
    """Tokens of a sample; 0: no samples."""

    def __post_init__(self) -> None:
        whole = {"batch_size": 1, "eval_tokens": 1, "save_every": 1, "keep": 2, "sample_tokens": 0, "seed": 0}
        for name, least in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.model.n_classes is not None:
            raise ValueError(f"pretraining predicts tokens: leave out n_classes, got {self.model.n_classes}")
        if self.init not in get_args(Init):
            raise ValueError(f"init must be one of {', '.join(get_args(Init))}, got {self.init!r}")
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt must be text, got {self.prompt!r}")


NESTED = {"data": DataConfig, "model": GPTConfig, "train": TrainConfig}
"""The fields of PretrainConfig whose own fields are settings."""
NOT_IN_A_RECIPE = ("recipe", "out", "resume", "device")
"""Settings of one call; a recipe says how to train, not where or on what."""


def settings_of(config: PretrainConfig) -> dict[str, Any]:
    """Return every setting that decides the result, flat: what two runs must share to be the same run.

    ``data`` is not among them: the text itself, by its digest, is compared, not where it lies.
    """
    flat: dict[str, Any] = {}
    for name, value in asdict(config).items():
        if name == "model":
            flat.update(config.model.to_dict())  # as checkpoints and older runs record it
        elif name in NESTED:
            flat.update(value)
        elif name not in NOT_IN_A_RECIPE:
            flat[name] = value
    del flat["data"], flat["text_field"]
    return flat


def config_from_settings(settings: Mapping[str, Any], *, recipe: str) -> PretrainConfig:
    """Return the config of flat ``settings`` (see ``recipe_settings``); ValueError or TypeError if wrong."""
    nested: dict[str, Any] = {}
    rest = dict(settings)
    for name, kind in NESTED.items():
        nested[name] = kind(**{field.name: rest.pop(field.name) for field in fields(kind) if field.name in rest})
    return PretrainConfig(recipe=recipe, **nested, **rest)


def recipe_settings() -> list[str]:
    """Return the names of all settings that a recipe may hold."""
    names = [name for name in PretrainConfig.__dataclass_fields__ if name not in (*NESTED, *NOT_IN_A_RECIPE)]
    return names + [field.name for kind in NESTED.values() for field in fields(kind) if field.name != "data"]
