"""MultiHeadAttention with grouped heads, a window and rotary positions, against sums written out in float64."""

import cmath
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from gpt_attention import KVCache, MultiHeadAttention

WIDTH, CONTEXT = 24, 40
# num_heads, num_kv_heads, window, rope_base
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {"num_heads": 6, "num_kv_heads": 2},
    "one for all": {"num_heads": 4, "num_kv_heads": 1},
    "window": {"num_heads": 2, "window": 5},
    "rotary": {"num_heads": 3, "rope_base": 100.0},
    "all": {"num_heads": 6, "num_kv_heads": 3, "window": 7, "rope_base": 1e4},
}


def make(seed: int = 0, *, explicit: bool = False, **variant: Any) -> MultiHeadAttention:
    torch.manual_seed(seed)
    attention = MultiHeadAttention(WIDTH, WIDTH, CONTEXT, 0.0, qkv_bias=True, explicit=explicit, **variant)
    return attention.double().requires_grad_(False)


def plainly(
    attention: MultiHeadAttention, x: Tensor, *, num_heads: int, num_kv_heads: int | None = None,
    window: int | None = None, rope_base: float | None = None,
) -> Tensor:
    """The module's output (T, D) for one sequence (T, D), number by number."""
    T, K, group_size = len(x), WIDTH // num_heads, num_heads // (num_kv_heads or num_heads)
    weights = attention.state_dict()

    def project(name: str, t: int, head: int) -> list[float]:
        rows = slice(head * K, (head + 1) * K)
        return (weights[f"{name}.weight"][rows] @ x[t] + weights[f"{name}.bias"][rows]).tolist()

    def turned(vector: list[float], t: int) -> list[float]:
        if rope_base is None:
            return vector
        pairs = [
            complex(vector[i], vector[i + K // 2]) * cmath.exp(1j * t * rope_base ** (-2 * i / K))
            for i in range(K // 2)
        ]
        return [pair.real for pair in pairs] + [pair.imag for pair in pairs]

    context = torch.zeros(T, WIDTH, dtype=torch.float64)
    for t, head in itertools.product(range(T), range(num_heads)):
        query = turned(project("W_query", t, head), t)
        seen = range(0 if window is None else max(0, t - window + 1), t + 1)
        keys = [turned(project("W_key", s, head // group_size), s) for s in seen]
        shares = [math.exp(sum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(K)) for key in keys]
        for share, s in zip(shares, seen, strict=True):
            value = torch.tensor(project("W_value", s, head // group_size), dtype=torch.float64)
            context[t, head * K : (head + 1) * K] += share / sum(shares) * value
    return context @ weights["out_proj.weight"].T + weights["out_proj.bias"]


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_equals_its_sums_written_out(name: str, explicit: bool) -> None:
    attention, x = make(explicit=explicit, **VARIANTS[name]), torch.randn(2, 11, WIDTH, dtype=torch.float64)
    expected = torch.stack([plainly(attention, sequence, **VARIANTS[name]) for sequence in x])
    # Angles are float32, so that a turned query is exact to 6e-8 times its position.
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=0)


@given(data=st.data())
def test_cached_in_any_pieces_the_same_comes_out_in_both_forms(data: st.DataObject) -> None:
    num_heads, num_kv_heads = data.draw(
        st.sampled_from([(h, g) for h in (1, 2, 3, 4, 6, 12) for g in range(1, h + 1) if h % g == 0]), "heads"
    )
    variant = {
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "window": data.draw(st.none() | st.integers(1, CONTEXT + 2), "window"),
        "rope_base": data.draw(st.none() | st.floats(2, 1e6), "rope_base"),
    }
    pieces = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6), "pieces")
    assume(sum(pieces) <= CONTEXT)
    x = torch.randn(2, sum(pieces), WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fast, explicit = make(3, **variant), make(3, explicit=True, **variant)
    whole = explicit(x)
    torch.testing.assert_close(fast(x), whole)
    for attention in (fast, explicit):
        cache = KVCache(1)
        parts = [attention(piece, cache=cache) for piece in x.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)
        held = cache.get(0)
        assert held is not None
        assert held[0].shape == held[1].shape == (2, num_kv_heads, sum(pieces), WIDTH // num_heads)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_of_both_forms_are_the_same(name: str) -> None:
    x, gradients = torch.randn(2, 20, WIDTH, dtype=torch.float64), []
    for explicit in (True, False):
        attention = make(explicit=explicit, **VARIANTS[name]).requires_grad_()
        loss = attention(x).square().sum()
        gradients.append(torch.autograd.grad(loss, list(attention.parameters())))
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_token_reaches_itself_and_the_rest_of_its_window_only(name: str) -> None:
    attention, x = make(**VARIANTS[name]), torch.randn(1, 30, WIDTH, dtype=torch.float64)
    changed = x.clone()
    changed[:, 12] += 1
    differs = (attention(changed) != attention(x)).any(dim=-1)[0].tolist()
    end = min(30, 12 + VARIANTS[name].get("window", 30))
    assert differs == [12 <= t < end for t in range(30)]


@pytest.mark.parametrize("rope_base", [None, 1e4])
def test_without_position_embeddings_only_rotary_tells_positions_apart(rope_base: float | None) -> None:
    attention = make(num_heads=2, rope_base=rope_base)
    first, second, last = torch.randn(3, 1, 1, WIDTH, dtype=torch.float64)
    one, other = (attention(torch.cat(x, dim=1))[:, -1] for x in ((first, second, last), (second, first, last)))
    assert torch.allclose(one, other) == (rope_base is None)


def test_grouped_keys_and_values_are_narrower_and_the_default_is_the_books() -> None:
    shapes = {name: tuple(weight.shape) for name, weight in make(**VARIANTS["all"]).state_dict().items()}
    assert shapes["W_query.weight"] == (24, 24)
    assert shapes["W_key.weight"] == shapes["W_value.weight"] == (12, 24)
    assert shapes["W_key.bias"] == (12,)
    x, both = torch.randn(2, 20, WIDTH, dtype=torch.float64), []
    for variant in ({}, {"num_kv_heads": 4, "window": 20}):
        both.append(make(num_heads=4, **variant))
    assert both[0].state_dict().keys() == both[1].state_dict().keys()
    assert torch.equal(both[0](x), both[1](x))


@pytest.mark.parametrize(("variant", "message"), [
    ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads must divide num_heads, got 3 and 4"),
    ({"num_heads": 4, "num_kv_heads": 0}, "num_kv_heads must divide num_heads, got 0 and 4"),
    ({"num_heads": 4, "num_kv_heads": 8}, "num_kv_heads must divide num_heads, got 8 and 4"),
    ({"num_heads": 4, "window": 0}, "window must be at least 1 position, got 0"),
    ({"num_heads": 8, "rope_base": 1e4}, "must be even, got 3"),
])
def test_variants_that_make_no_sense_are_refused(variant: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**variant)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("variant", [{"num_heads": 4}, *VARIANTS.values()], ids=["plain", *VARIANTS])
def test_wanted_rows_are_those_of_the_whole_pass(variant: dict[str, Any], explicit: bool) -> None:
    attention = make(7, explicit=explicit, **variant)
    x = torch.randn(5, 17, WIDTH, dtype=torch.float64)
    rows = torch.tensor([0, 16, 3, 8, 12])
    torch.testing.assert_close(attention(x, rows=rows), attention(x)[torch.arange(5), rows].unsqueeze(1))


def test_rows_and_a_cache_are_refused_together() -> None:
    attention = make(num_heads=2)
    with pytest.raises(ValueError, match="leave out the cache"):
        attention(torch.zeros(1, 3, WIDTH, dtype=torch.float64), cache=KVCache(1), rows=torch.tensor([1]))
