"""The size of a GPT: a frozen dataclass with the book's names, and GPT-2's sizes (chapters 4 and 5).

GPT-2's sizes: Radford et al. 2019, table 2. That table counts 117M to 1542M parameters; counted exactly, with
the output head tied to the token embedding, they are 124M, 355M, 774M and 1558M. Both names are understood.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

Positions = Literal["learned", "rotary"]
Norm = Literal["layernorm", "rmsnorm"]
_VARIANTS = ("n_kv_heads", "sliding_window", "positions", "rope_base", "norm", "n_classes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Everything that decides the shape and the parameters of a ``GPTModel``, checked when it is made.

    The fields after ``tie_weights`` are what models after GPT-2 changed, and the head of chapter 6; their defaults are
    GPT-2.

    Raises ValueError with the field, the value and the rule.
    """

    vocab_size: int
    """Number of token ids; the model's ids run from 0 to vocab_size - 1."""

    context_length: int
    """Most tokens that one forward pass sees (the number of position embeddings, if they are learned)."""

    emb_dim: int
    """Width of an embedding; a multiple of n_heads."""

    n_heads: int
    """Attention heads per block; each is emb_dim / n_heads wide."""

    n_layers: int
    """Number of transformer blocks."""

    drop_rate: float = 0.0
    """Share of values that dropout zeroes in training: 0 switches it off, at most below 1."""

    qkv_bias: bool = False
    """Whether the query, key and value projections have a bias (OpenAI's weights do)."""

    tie_weights: bool = False
    """Whether the output head is the token embedding's own matrix (OpenAI's is; the book's is not)."""

    n_kv_heads: int | None = None
    """Heads of keys and values, shared by groups of query heads; divides n_heads. None: as many as n_heads."""

    sliding_window: int | None = None
    """How many of the last positions a token sees in each block, its own among them; None: all."""

    positions: Positions = "learned"
    """How a token's place is told: an embedding for each, or rotary, queries and keys turned by it (an even width)."""

    rope_base: float = 10000.0
    """Base of the rotary angles; the larger, the longer the distances they tell apart. Learned ones do not use it."""

    norm: Norm = "layernorm"
    """The blocks' normalisation: layernorm, or rmsnorm, which takes no mean off and has no shift."""

    n_classes: int | None = None
    """Classes that the output head tells apart, with a bias, as in chapter 6; None: it predicts the next token."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.emb_dim % self.n_heads != 0:
            raise ValueError(
                f"emb_dim must be a multiple of n_heads, got emb_dim={self.emb_dim}, n_heads={self.n_heads}"
            )
        rate = self.drop_rate
        # Written so that NaN, which compares false with everything, is refused too.
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ValueError(f"drop_rate must be a number from 0 up to, but not including, 1, got {rate!r}")
        for name in ("qkv_bias", "tie_weights"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        self._check_variants()

    def _check_variants(self) -> None:
        for name in ("n_kv_heads", "sliding_window"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be None or a whole number of at least 1, got {value!r}")
        n = self.n_classes
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 2):
            raise ValueError(f"n_classes must be None or a whole number of at least 2, got {n!r}")
        if n is not None and self.tie_weights:
            raise ValueError(
                f"a head for n_classes={n} cannot be the token embedding's matrix: set tie_weights=False with n_classes"
            )
        if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads != 0:
            raise ValueError(f"n_kv_heads must divide n_heads, got {self.n_kv_heads} and n_heads={self.n_heads}")
        for name, known in (("positions", get_args(Positions)), ("norm", get_args(Norm))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        base = self.rope_base
        if isinstance(base, bool) or not isinstance(base, (int, float)) or not 1 < base <= sys.float_info.max:
            raise ValueError(f"rope_base must be a finite number above 1, got {base!r}")
        if self.positions == "rotary" and self.head_dim % 2 != 0:
            raise ValueError(
                f"rotary positions turn pairs of values, so emb_dim / n_heads must be even, got {self.emb_dim} / "
                f"{self.n_heads} = {self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one head: emb_dim / n_heads."""
        return self.emb_dim // self.n_heads

    @property
    def n_outputs(self) -> int:
        """Logits of each position: one for each class, or without ``n_classes`` one for each token id."""
        return self.n_classes or self.vocab_size

    @property
    def variants(self) -> dict[str, Any]:
        """The fields after ``tie_weights`` that are not GPT-2's: empty for a GPT-2."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: getattr(self, name) for name in _VARIANTS if getattr(self, name) != defaults[name]}

    @classmethod
    def from_dict(cls, values: GPTConfig | Mapping[str, Any]) -> GPTConfig:
        """Return the config that a plain dict describes, such as the book's ``GPT_CONFIG_124M``.

        A ``GPTConfig`` comes back as it is, so a caller need not care which of the two it was given. Raises
        ValueError for a key that is no field (naming the nearest) and for a missing required one.
        """
        if isinstance(values, GPTConfig):
            return values
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise ValueError(
                    f"unknown key {key!r} in the model's config{_nearest(key, fields)}; "
                    f"known keys: {', '.join(fields)}"
                )
        required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
        missing = [name for name in required if name not in values]
        if missing:
            raise ValueError(f"the model's config lacks {', '.join(missing)}; it needs {', '.join(required)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return a new dict, which ``from_dict`` turns back into an equal config.

        It has GPT-2's eight fields always, those after them only where they are not the default: the dict of a GPT-2
        is the book's, and programs that know GPT-2 alone read it.
        """
        gpt2s = {name: value for name, value in dataclasses.asdict(self).items() if name not in _VARIANTS}
        return {**gpt2s, **self.variants}


GPT_CONFIG_124M: dict[str, Any] = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
"""The book's setting for training the smallest GPT-2 from scratch; a dict, as readers copy and update it."""

_GPT2_SIZES: dict[str, dict[str, Any]] = {
    "124M": {"emb_dim": 768, "n_layers": 12, "n_heads": 12},
    "355M": {"emb_dim": 1024, "n_layers": 24, "n_heads": 16},
    "774M": {"emb_dim": 1280, "n_layers": 36, "n_heads": 20},
    "1558M": {"emb_dim": 1600, "n_layers": 48, "n_heads": 25},
}
_GPT2_NAMES = {
    "124M": ("117M", "gpt2", "gpt2-small", "gpt2-small (124M)"),
    "355M": ("345M", "gpt2-medium", "gpt2-medium (355M)"),
    "774M": ("762M", "gpt2-large", "gpt2-large (774M)"),
    "1558M": ("1542M", "1.5B", "gpt2-xl", "gpt2-xl (1558M)"),
}


def gpt2_config(name: str) -> GPTConfig:
    """Return the config of OpenAI's GPT-2 ``name``: no dropout, biases in q, k and v, tied output head.

    Known are "124M", "355M", "774M" and "1558M", the paper's "117M", "345M", "762M", "1542M" and "1.5B", the
    hub's "gpt2", "gpt2-medium", ... and the book's "gpt2-small (124M)", ...; capitals do not matter. Raises
    ValueError for any other name, with the nearest.
    """
    sizes = {alias.casefold(): size for size, names in _GPT2_NAMES.items() for alias in (size, *names)}
    size = sizes.get(name.strip().casefold()) if isinstance(name, str) else None
    if size is None:
        known = [alias for size, names in _GPT2_NAMES.items() for alias in (size, *names)]
        raise ValueError(
            f"unknown GPT-2 size {name!r}{_nearest(name, known)}; known sizes: {', '.join(_GPT2_SIZES)}"
        )
    return GPTConfig(
        vocab_size=50257, context_length=1024, qkv_bias=True, tie_weights=True, **_GPT2_SIZES[size]
    )


def _nearest(value: object, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known name nearest to ``value``; if none is near, nothing."""
    found = difflib.get_close_matches(str(value), list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
