"""Recipes: TOML files that give every setting its default, with the reason in a comment.

Beside settings (named as the flags, with underscores) a recipe has ``about``, one line for --help, and may
have ``needs_data``, which says what text it is meant for; then --data must be given.
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from gpt_pretrain.config import PretrainConfig, config_from_settings, recipe_settings
from gpt_pretrain.errors import USAGE, PretrainError, nearest

NOTES = ("about", "needs_data")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with this app."""
    folder = resources.files("gpt_pretrain") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> tuple[PretrainConfig, dict[str, str]]:
    """Return the config of a recipe, by name or as a .toml file, and its notes (``about``, ``needs_data``).

    Raises PretrainError (exit code 2) for a name that is none, naming the nearest, and for a key or value
    that is wrong.
    """
    text = _recipe_text(name)
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PretrainError(f"recipe {name} is not valid TOML: {error}", exit_code=USAGE) from None
    known = [*recipe_settings(), *NOTES]
    for key in values:
        if key not in known:
            raise PretrainError(
                f"recipe {name} has an unknown key {key!r}{nearest(key, known)}; "
                f"the keys are the flags, with underscores: see gpt-pretrain --help",
                exit_code=USAGE,
            )
    notes = {key: str(values.pop(key)) for key in NOTES if key in values}
    try:
        return config_from_settings(values, recipe=name), notes
    except (ValueError, TypeError) as error:
        problem = str(error).replace("__init__() ", "")
        raise PretrainError(f"recipe {name}: {problem}", exit_code=USAGE) from None


def _recipe_text(name: str) -> str:
    names = recipe_names()
    if name in names:
        return (resources.files("gpt_pretrain") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix == ".toml":
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PretrainError(f"cannot read the recipe {name}: {error}", exit_code=USAGE) from None
    raise PretrainError(
        f"unknown recipe {name!r}{nearest(name, names)}; there are {', '.join(names)}, or give a .toml file",
        exit_code=USAGE,
    )
