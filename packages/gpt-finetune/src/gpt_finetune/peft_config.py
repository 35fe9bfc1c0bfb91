"""``adapter_config.json``, what PEFT keeps beside an adapter's tensors: ranks, scales and where they belong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any

from gpt_train import DataError

_MAX_BYTES = 1 << 20
# What has no part in the result: where layers are is told by the tensors' names, how they began by nothing.
_IGNORED = {
    "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size",
    "revision", "target_modules", "task_type",
}
_READ = {"alpha_pattern", "lora_alpha", "lora_dropout", "r", "rank_pattern"}
# Other beginnings (pissa, olora, corda, loftq, ...) change the base's weights, too.
_CHECKED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
_MERGED = "merge it with peft (merge_and_unload) and read the merged model"


@dataclass(frozen=True)
class PeftConfig:
    """Rank and alpha of each layer, and dropout."""

    rank: int
    alpha: float
    dropout: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def rank_of(self, layer: str) -> int:
        """Return the rank of the layer of this dotted name."""
        return next((rank for key, rank in self.rank_pattern.items() if _matches(key, layer)), self.rank)

    def alpha_of(self, layer: str) -> float:
        """Return alpha of the layer of this dotted name."""
        return next((alpha for key, alpha in self.alpha_pattern.items() if _matches(key, layer)), self.alpha)


def config_json(
    layers: Mapping[str, tuple[int, float]],
    *,
    dropout: float,
    modules_to_save: Sequence[str],
    task_type: str | None,
    base: str | None,
    is_conv1d: bool,
) -> bytes:
    """Return the file for ``layers``: dotted name to rank and alpha."""
    rank = mode(rank for rank, _ in layers.values())
    alpha = mode(alpha for _, alpha in layers.values())
    content: dict[str, Any] = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": is_conv1d,
        "inference_mode": True,
        "lora_alpha": _plain(alpha),
        "lora_dropout": dropout,
        "modules_to_save": list(modules_to_save) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {name: of for name, (of, _) in layers.items() if of != rank},
        "alpha_pattern": {name: _plain(of) for name, (_, of) in layers.items() if of != alpha},
        "target_modules": list(layers),
        "task_type": task_type,
    }
    return (json.dumps(content, indent=2) + "\n").encode("ascii")


def read_config(path: Path) -> PeftConfig:
    """Return what the file says; DataError if it is damaged or tells of anything else than plain LoRA."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        content = json.loads(data) if len(data) <= _MAX_BYTES else None
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: give the folder of an adapter that PEFT or save_adapter wrote") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: it is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: it holds no JSON object of at most {_MAX_BYTES:,} bytes")
    _refuse_others(path, content)
    return PeftConfig(
        rank=_rank(path, "r", content.get("r", 8)),  # what PEFT takes where they are left out
        alpha=_alpha(path, "lora_alpha", content.get("lora_alpha", 8)),
        dropout=_dropout(path, content.get("lora_dropout") or 0.0),
        rank_pattern={key: _rank(path, key, of) for key, of in _pattern(path, content, "rank_pattern").items()},
        alpha_pattern={key: _alpha(path, key, of) for key, of in _pattern(path, content, "alpha_pattern").items()},
    )


def _refuse_others(path: Path, content: Mapping[str, Any]) -> None:
    for name, known in _CHECKED.items():
        value = content.get(name, known[0])
        if value not in known:
            raise DataError(
                f"{path} has {name}={value!r:.60}, but only {', '.join(map(repr, known))} can be read; {_MERGED}"
            )
    for name, value in content.items():
        if value and name not in _IGNORED | _READ | _CHECKED.keys():
            raise DataError(f"{path} has {name:.60}={value!r:.60}, which is more than plain LoRA; {_MERGED}")


def _pattern(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    pattern = content.get(name) or {}
    if not isinstance(pattern, dict):
        raise DataError(f"{path}: {name} must be an object of layers' names, got {pattern!r:.60}")
    for key in pattern:
        # PEFT takes them as regular expressions, which in a stranger's file may run for ever.
        if not re.fullmatch(r"[\w.]{1,200}", key):
            raise DataError(f"{path}: {name} has {key!r:.60}, which is no layer's dotted name; write names out")
    return pattern


def _matches(key: str, layer: str) -> bool:
    return re.fullmatch(rf"(.*\.)?({key})", layer) is not None


def _rank(path: Path, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"{path}: the rank {name:.60} must be a whole number of at least 1, got {value!r:.60}")
    return value


def _alpha(path: Path, name: str, value: object) -> float:
    # The upper bound is a float's: a whole number in JSON may have any number of digits.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise DataError(f"{path}: {name:.60} must be a finite number above 0, got {value!r:.60}")
    return float(value)


def _dropout(path: Path, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise DataError(f"{path}: lora_dropout must be a number from 0 up to 1, got {value!r:.60}")
    return float(value)


def _plain(number: float) -> float | int:
    """Return a whole number as such, as PEFT writes alpha."""
    return int(number) if number == math.floor(number) else number
