"""LayerNorm, RMSNorm, GELU, FeedForward and the blocks against torch's own, in both forms."""

import dataclasses
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gpt_core.config import GPTConfig
from gpt_core.layers import (
    GELU,
    FeedForward,
    FeedForwardFast,
    LayerNorm,
    RMSNorm,
    TransformerBlock,
    TransformerBlockFast,
)

CONFIG = GPTConfig(vocab_size=11, context_length=90, emb_dim=24, n_heads=3, n_layers=1, drop_rate=0.2)
VARIANTS: dict[str, Any] = {"n_kv_heads": 1, "sliding_window": 20, "positions": "rotary", "norm": "rmsnorm"}


@pytest.mark.parametrize("explicit", [True, False])
def test_layer_norm_equals_torchs(explicit: bool) -> None:
    ours, theirs, x = LayerNorm(24, explicit=explicit), nn.LayerNorm(24), 5 + 3 * torch.randn(4, 7, 24)
    with torch.no_grad():
        for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(torch.randn(24))
            their.copy_(mine)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("explicit", [True, False])
def test_rms_norm_and_its_gradients_equal_torchs_and_the_formula(explicit: bool) -> None:
    ours, theirs = RMSNorm(24, explicit=explicit).double(), nn.RMSNorm(24, eps=1e-5).double()
    x = (5 + 3 * torch.randn(4, 7, 24, dtype=torch.float64)).requires_grad_()
    assert [name for name, _ in ours.named_parameters()] == ["scale"]
    assert (ours.scale == 1).all()
    with torch.no_grad():
        theirs.weight.copy_(ours.scale.normal_())
    gradients = []
    for module in (ours, theirs):
        out = module(x)
        for vector, found in zip(x.detach().flatten(0, 1).tolist(), out.flatten(0, 1), strict=True):
            size = math.sqrt(sum(value**2 for value in vector) / 24 + 1e-5)
            expected = [value / size * scale for value, scale in zip(vector, ours.scale.tolist(), strict=True)]
            torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
        gradients.append(torch.autograd.grad(out.square().sum(), [x, *module.parameters()]))
    for mine, their in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, their)


@pytest.mark.parametrize("explicit", [True, False])
def test_a_vector_of_zeros_has_a_norm(explicit: bool) -> None:
    for norm_class in (LayerNorm, RMSNorm):
        assert not norm_class(24, explicit=explicit)(torch.zeros(2, 24)).any()


@pytest.mark.parametrize("explicit", [True, False])
def test_gelu_equals_torchs_tanh_form(explicit: bool) -> None:
    x = torch.linspace(-30, 30, 10_001, dtype=torch.float64)
    torch.testing.assert_close(GELU(explicit=explicit)(x), F.gelu(x, approximate="tanh"))


def test_feed_forward_is_the_same_function_in_all_forms() -> None:
    x, results = torch.randn(3, 50, 24), []
    for make in (partial(FeedForward, explicit=True), FeedForward, FeedForwardFast):
        torch.manual_seed(4)
        results.append(make(CONFIG)(x))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize("variants", [{}, VARIANTS], ids=["gpt2", "later"])
def test_explicit_and_fast_blocks_agree_with_the_same_dropout_draws(variants: dict[str, Any]) -> None:
    x, results = torch.randn(2, 90, 24), []
    for explicit in (True, False):
        torch.manual_seed(4)
        block = TransformerBlock(dataclasses.replace(CONFIG, **variants), explicit=explicit).train()
        torch.manual_seed(5)
        results.append(block(x))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_books_fast_block_refuses_what_it_does_not_have(name: str) -> None:
    with pytest.raises(ValueError, match=f"GPT-2's form only, but the config sets {name}; use GPTModel"):
        TransformerBlockFast(dataclasses.replace(CONFIG, **{name: VARIANTS[name]}))
