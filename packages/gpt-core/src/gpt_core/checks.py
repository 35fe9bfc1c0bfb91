"""The checks that generation's entry points share: of counts, of token ids, and that a model has a next token."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from torch import nn


def check_count(name: str, value: int, *, least: int) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_generates(config: object) -> None:
    """Raise ValueError if the config, of any model, is that of one with ``n_classes``."""
    n_classes = getattr(config, "n_classes", None)
    if n_classes is not None:
        raise ValueError(
            f"the model classifies (n_classes={n_classes}) and has no next token to generate; call it for its logits, "
            "or give a model without n_classes"
        )


def checked_ids(model: nn.Module, ids: Iterable[int], name: str) -> list[int]:
    """Return the ids as a list, or raise ValueError for one that is no id of the model."""
    checked = []
    for i in ids:
        try:
            checked.append(operator.index(i))  # numpy's integers too, and tensors of one
        except TypeError:
            raise ValueError(f"{name} must hold whole numbers, got {i!r}") from None
        if isinstance(i, bool):
            raise ValueError(f"{name} must hold whole numbers, got {i!r}")
        check_id(model, checked[-1], name)
    return checked


def check_id(model: nn.Module, token: int, name: str) -> None:
    """Raise ValueError unless the model, if it says how large its vocabulary is, has this id."""
    vocab_size = getattr(getattr(model, "config", None), "vocab_size", None)
    if token < 0 or (vocab_size is not None and token >= vocab_size):
        most = "" if vocab_size is None else f" to {vocab_size - 1}"
        raise ValueError(
            f"{name} holds the id {token}, but the model's ids run from 0{most}; "
            "encode with the tokenizer that the model was trained with"
        )
