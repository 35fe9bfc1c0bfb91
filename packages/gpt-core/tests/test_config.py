"""GPTConfig: what it accepts, what it refuses and with which words; GPT-2's sizes."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.config import GPT_CONFIG_124M, GPTConfig, gpt2_config

SIZES: dict[str, Any] = {"vocab_size": 50, "context_length": 8, "emb_dim": 12, "n_heads": 3, "n_layers": 2}
VARIANTS: dict[str, st.SearchStrategy[Any]] = {
    "n_kv_heads": st.sampled_from([None, 1, 3]),
    "sliding_window": st.none() | st.integers(1, 20),
    "positions": st.sampled_from(["learned", "rotary"]),
    "rope_base": st.floats(1, exclude_min=True, allow_infinity=False),
    "norm": st.sampled_from(["layernorm", "rmsnorm"]),
    "n_classes": st.none() | st.integers(2, 9),
}


def test_books_seven_key_dict_is_accepted() -> None:
    book = {
        "vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12,
        "drop_rate": 0.1, "qkv_bias": False,
    }
    assert book == GPT_CONFIG_124M
    assert GPTConfig.from_dict(book).to_dict() == {**book, "tie_weights": False}


@given(
    heads=st.integers(1, 8),
    width=st.integers(1, 8),
    rate=st.floats(0, 1, exclude_max=True),
    flag=st.booleans(),
)
def test_from_dict_undoes_to_dict(heads: int, width: int, rate: float, flag: bool) -> None:
    config = GPTConfig(
        vocab_size=7, context_length=3, emb_dim=heads * width, n_heads=heads, n_layers=1,
        drop_rate=rate, qkv_bias=flag, tie_weights=not flag,
    )
    assert GPTConfig.from_dict(config.to_dict()) == config


@given(settings=st.fixed_dictionaries({}, optional=VARIANTS))
def test_a_dict_holds_of_later_models_fields_what_is_not_gpt2s(settings: dict[str, Any]) -> None:
    config = GPTConfig(**SIZES, **settings)
    written = config.to_dict()
    assert GPTConfig.from_dict(json.loads(json.dumps(written))) == config
    gpt2s = {
        "n_kv_heads": None, "sliding_window": None, "positions": "learned", "rope_base": 10000.0, "norm": "layernorm",
        "n_classes": None,
    }
    expected = {name: value for name, value in settings.items() if value != gpt2s[name]}
    assert {name: written[name] for name in gpt2s if name in written} == expected == config.variants
    assert written.keys() - expected.keys() == {*SIZES, "drop_rate", "qkv_bias", "tie_weights"}


@pytest.mark.parametrize("name", sorted(SIZES))
@pytest.mark.parametrize("value", [0, -1, True, 12.0, "12", None, [], math.nan, math.inf])
def test_a_size_that_is_no_positive_whole_number_is_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got ") as caught:
        GPTConfig(**{**SIZES, name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [1, 1.0, -0.1, 2, math.nan, math.inf, -math.inf, True, "0.1", None, []])
def test_a_drop_rate_outside_0_to_1_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="drop_rate must be a number from 0"):
        GPTConfig(**SIZES, drop_rate=value)


@pytest.mark.parametrize("name", ["qkv_bias", "tie_weights"])
@pytest.mark.parametrize("value", [0, 1, "True", None])
def test_a_switch_that_is_no_bool_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be True or False"):
        GPTConfig(**{**SIZES, name: value})


@pytest.mark.parametrize("name", ["n_kv_heads", "sliding_window"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", [], math.nan])
def test_a_count_that_is_neither_none_nor_positive_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be None or a whole number of at least 1, got ") as caught:
        GPTConfig(**{**SIZES, name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [1, 0, -2, True, 2.0, "2", [], math.nan])
def test_fewer_than_two_classes_are_refused_by_value(value: Any) -> None:
    with pytest.raises(ValueError, match="n_classes must be None or a whole number of at least 2, got ") as caught:
        GPTConfig(**SIZES, n_classes=value)
    assert repr(value) in str(caught.value)


def test_a_head_for_classes_cannot_be_tied() -> None:
    with pytest.raises(ValueError, match="n_classes=3 cannot be the token embedding's matrix: set tie_weights=False"):
        GPTConfig(**SIZES, n_classes=3, tie_weights=True)


@pytest.mark.parametrize("value", [1, 1.0, 0, -5.0, math.nan, math.inf, 10**400, True, "10000", None, []])
def test_a_rope_base_that_is_no_finite_number_above_1_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="rope_base must be a finite number above 1"):
        GPTConfig(**SIZES, rope_base=value)


@pytest.mark.parametrize(
    ("name", "known"), [("positions", "learned, rotary"), ("norm", "layernorm, rmsnorm")]
)
@pytest.mark.parametrize("value", ["", "Rotary", "RMSNorm", None, True, []])
def test_a_kind_that_is_not_known_is_refused_with_the_known_ones(name: str, known: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of {known}, got "):
        GPTConfig(**{**SIZES, name: value})


def test_heads_that_cannot_be_grouped_or_turned_are_refused() -> None:
    for n in (2, 6):
        with pytest.raises(ValueError, match=f"n_kv_heads must divide n_heads, got {n} and n_heads=3"):
            GPTConfig(**SIZES, n_kv_heads=n)
    with pytest.raises(ValueError, match=r"must be even, got 15 / 3 = 5"):
        GPTConfig(**{**SIZES, "emb_dim": 15}, positions="rotary")
    assert GPTConfig(**{**SIZES, "emb_dim": 15}).head_dim == 5


def test_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="emb_dim must be a multiple of n_heads, got emb_dim=12, n_heads=5"):
        GPTConfig(**{**SIZES, "n_heads": 5})


def test_unknown_key_is_refused_with_the_nearest_and_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'n_head' .*mean 'n_heads'.*known keys: vocab_size, "):
        GPTConfig.from_dict({**SIZES, "n_head": 3})


def test_key_that_is_not_even_text_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown key 5"):
        GPTConfig.from_dict({**SIZES, 5: 3})  # type: ignore[dict-item]


def test_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="lacks emb_dim, n_layers"):
        GPTConfig.from_dict({"vocab_size": 50, "context_length": 8, "n_heads": 3})


def test_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPTConfig(**SIZES).n_layers = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("names", "width", "layers", "heads", "millions"),
    [
        (("124M", "117M", "gpt2", "GPT2-small", "gpt2-small (124M)"), 768, 12, 12, 124),
        (("355M", "345M", "gpt2-medium", "gpt2-medium (355M)"), 1024, 24, 16, 355),
        (("774M", "762M", "gpt2-large", "gpt2-large (774M)"), 1280, 36, 20, 774),
        (("1558M", "1542M", "1.5B", "1.5b", " gpt2-xl ", "gpt2-xl (1558M)"), 1600, 48, 25, 1558),
    ],
)
def test_every_name_of_a_gpt2_gives_openais_settings(
    names: tuple[str, ...], width: int, layers: int, heads: int, millions: int
) -> None:
    configs = {gpt2_config(name) for name in names}
    assert configs == {
        GPTConfig(
            vocab_size=50257, context_length=1024, emb_dim=width, n_heads=heads, n_layers=layers,
            drop_rate=0.0, qkv_bias=True, tie_weights=True,
        )
    }
    # The name is the count: 12 D^2 + 13 D a block (weights, biases, two norms), embeddings, the last norm.
    parameters = layers * (12 * width**2 + 13 * width) + (50257 + 1024) * width + 2 * width
    assert round(parameters / 1e6) == millions


def test_unknown_gpt2_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"size 'gpt2-midium' \(did you mean 'gpt2-medium'\?\)"):
        gpt2_config("gpt2-midium")
    with pytest.raises(ValueError, match=r"unknown GPT-2 size 124 .*known sizes: 124M, "):
        gpt2_config(124)  # type: ignore[arg-type]
