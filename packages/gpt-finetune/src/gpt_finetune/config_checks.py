"""The rules that configs share, each with its message: counts, numbers, seeds, choices and switches."""

import math
from typing import Any


def check_counts(config: object, **least: int) -> None:
    """Raise ValueError unless each named field is a whole number of at least so much."""
    for name, bound in least.items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise ValueError(f"{name} must be a whole number of at least {bound}, got {value!r}")


def check_numbers(config: object, **below: float) -> None:
    """Raise ValueError unless each named field is a number of at least 0 and below its bound, 1 or infinity."""
    for name, bound in below.items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < bound:
            rule = "a finite number of at least 0" if bound == math.inf else f"at least 0 and below {bound}"
            raise ValueError(f"{name} must be {rule}, got {value!r}")


def check_seed(seed: Any) -> None:
    """Raise ValueError unless ``seed`` is one that every generator of random numbers takes."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    if seed >= 2**63:
        raise ValueError(f"seed must be below 2**63, got {seed}")


def check_choices(config: object, **known: tuple[str, ...]) -> None:
    """Raise ValueError unless each named field is one of its values."""
    for name, values in known.items():
        if getattr(config, name) not in values:
            raise ValueError(f"{name} must be one of {', '.join(values)}, got {getattr(config, name)!r}")


def check_switches(config: object, *names: str) -> None:
    """Raise ValueError unless each named field is True or False."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} must be True or False, got {getattr(config, name)!r}")
