"""LayerNorm, GELU, FeedForward and the blocks against torch's own, in both forms."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gpt_core import GELU, FeedForward, FeedForwardFast, GPTConfig, LayerNorm, TransformerBlock

CONFIG = GPTConfig(vocab_size=11, context_length=90, emb_dim=24, n_heads=3, n_layers=1, drop_rate=0.2)


@pytest.mark.parametrize("explicit", [True, False])
def test_layer_norm_equals_torchs(explicit: bool) -> None:
    ours, theirs, x = LayerNorm(24, explicit=explicit), nn.LayerNorm(24), 5 + 3 * torch.randn(4, 7, 24)
    with torch.no_grad():
        for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(torch.randn(24))
            their.copy_(mine)
    torch.testing.assert_close(ours(x), theirs(x))


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


def test_explicit_and_fast_blocks_agree_with_the_same_dropout_draws() -> None:
    x, results = torch.randn(2, 90, 24), []
    for explicit in (True, False):
        torch.manual_seed(4)
        block = TransformerBlock(CONFIG, explicit=explicit).train()
        torch.manual_seed(5)
        results.append(block(x))
    torch.testing.assert_close(results[1], results[0])
