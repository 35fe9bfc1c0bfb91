"""The book's classes: draws, names, shapes, and each against torch's own modules."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_attention import (
    CausalAttention,
    KVCache,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    PyTorchMultiHeadAttention,
    SelfAttention_v1,
    SelfAttention_v2,
)

# Chapter 3's six tokens, "Your journey starts with one step", three wide.
INPUTS = torch.tensor(
    [
        [0.43, 0.15, 0.89],
        [0.55, 0.87, 0.66],
        [0.57, 0.85, 0.64],
        [0.22, 0.58, 0.33],
        [0.77, 0.25, 0.10],
        [0.05, 0.80, 0.55],
    ]
)


def test_self_attention_gives_the_books_printed_numbers() -> None:
    torch.manual_seed(123)
    first = SelfAttention_v1(3, 2)(INPUTS)
    torch.testing.assert_close(first[1], torch.tensor([0.3061, 0.8210]), atol=5e-5, rtol=0)   # section 3.4.1
    torch.manual_seed(789)
    second = SelfAttention_v2(3, 2)(INPUTS)
    torch.testing.assert_close(second[0], torch.tensor([-0.0739, 0.0713]), atol=5e-5, rtol=0)  # section 3.4.2


def test_multi_head_attention_gives_the_books_printed_numbers() -> None:
    torch.manual_seed(123)
    attention = MultiHeadAttention(3, 2, context_length=6, dropout=0.0, num_heads=2)
    out = attention(torch.stack([INPUTS, INPUTS]))
    torch.testing.assert_close(out[0, 0], torch.tensor([0.3190, 0.4858]), atol=5e-5, rtol=0)   # section 3.6.2
    assert torch.equal(out[0], out[1])


def test_state_dicts_have_the_books_names_without_the_mask() -> None:
    attention = MultiHeadAttention(8, 8, context_length=6, dropout=0.0, num_heads=2, qkv_bias=True)
    assert list(attention.state_dict()) == [
        "W_query.weight", "W_query.bias", "W_key.weight", "W_key.bias", "W_value.weight", "W_value.bias",
        "out_proj.weight", "out_proj.bias",
    ]
    assert list(PyTorchMultiHeadAttention(8, 8, 2).state_dict()) == ["qkv.weight", "proj.weight", "proj.bias"]


@pytest.mark.parametrize("make", [
    lambda: CausalAttention(8, 8, 6, 0.0),
    lambda: MultiHeadAttention(8, 8, 6, 0.0, 2),
    lambda: MultiHeadAttentionWrapper(8, 4, 6, 0.0, 2),
])
def test_a_state_dict_with_the_books_masks_loads(make) -> None:  # type: ignore[no-untyped-def]
    source, target = make(), make()
    saved = dict(source.state_dict())
    mask = torch.triu(torch.ones(6, 6), diagonal=1)
    saved |= {"heads.0.mask": mask, "heads.1.mask": mask} if hasattr(source, "heads") else {"mask": mask}
    target.load_state_dict(saved)
    x = torch.randn(1, 6, 8)
    assert torch.equal(source(x), target(x))


def test_multi_head_attention_equals_torchs_module() -> None:
    ours = MultiHeadAttention(16, 16, context_length=40, dropout=0.0, num_heads=4, qkv_bias=True)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    layers = (ours.W_query, ours.W_key, ours.W_value)
    theirs.load_state_dict({
        "in_proj_weight": torch.cat([layer.weight for layer in layers]),
        "in_proj_bias": torch.cat([layer.bias for layer in layers]),
        "out_proj.weight": ours.out_proj.weight,
        "out_proj.bias": ours.out_proj.bias,
    })
    for T in (3, 40):
        x = torch.randn(2, T, 16)
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
        expected, _ = theirs(x, x, x, attn_mask=hidden, need_weights=False)
        torch.testing.assert_close(ours(x), expected)


def test_explicit_form_and_fast_form_draw_the_same_and_compute_the_same() -> None:
    both = []
    for explicit in (True, False):
        torch.manual_seed(3)
        both.append(MultiHeadAttention(32, 32, 80, 0.0, 4, qkv_bias=True, explicit=explicit))
    x = torch.randn(2, 80, 32)
    torch.testing.assert_close(both[0](x), both[1](x))
    for module in both:
        module(x).square().sum().backward()
    for first, second in zip(both[0].parameters(), both[1].parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-4)


def test_dropout_draws_what_the_books_dropout_layer_draws() -> None:
    attention = CausalAttention(8, 8, context_length=6, dropout=0.5)
    x = torch.randn(1, 6, 8)
    torch.manual_seed(1)
    ours = attention(x)
    torch.manual_seed(1)
    scores = attention.W_query(x) @ attention.W_key(x).transpose(1, 2) / 8**0.5
    weights = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    torch.testing.assert_close(ours, F.dropout(weights, 0.5) @ attention.W_value(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_a_replaced_or_hooked_projection_is_called() -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    attention = MultiHeadAttention(16, 16, 80, 0.0, 2)
    x = torch.randn(1, 80, 16)
    plain = attention(x)
    calls = []
    handle = attention.W_value.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(attention(x), plain)
    handle.remove()
    assert calls == [1]
    attention.W_value = Doubled(attention.W_value)  # type: ignore[assignment]
    bias = attention.out_proj.bias
    torch.testing.assert_close(attention(x) - bias, 2 * (plain - bias))


def test_backward_hooks_of_a_projection_are_called() -> None:
    attention, calls = MultiHeadAttention(16, 16, 80, 0.0, 2), []
    attention.W_query.register_full_backward_hook(lambda *_: calls.append("query"))
    attention.W_key.register_full_backward_pre_hook(lambda *_: calls.append("key"))
    attention(torch.randn(1, 80, 16, requires_grad=True)).sum().backward()
    assert sorted(calls) == ["key", "query"]


@pytest.mark.parametrize("with_bias", ["W_query", "W_value"])  # the softmax does not see a bias of the keys
def test_a_bias_that_only_one_projection_has_is_added(with_bias: str) -> None:
    attention = MultiHeadAttention(16, 16, 80, 0.0, 2)
    getattr(attention, with_bias).bias = nn.Parameter(torch.randn(16))
    x = torch.randn(1, 80, 16)
    fused = attention(x)
    attention.explicit = True
    torch.testing.assert_close(fused, attention(x))


def test_a_sequence_too_long_for_the_cache_is_refused_and_not_added() -> None:
    attention, x, cache = MultiHeadAttention(8, 8, 6, 0.0, 2), torch.randn(1, 6, 8), KVCache(2)
    with torch.no_grad():
        attention(x[:, :5], cache=cache, layer=1)
        with pytest.raises(RuntimeError, match="7 tokens, but this attention was built for 6"):
            attention(x[:, :2], cache=cache, layer=1)
        torch.testing.assert_close(attention(x[:, 5:], cache=cache, layer=1), attention(x)[:, 5:])


def test_too_long_a_sequence_and_a_width_that_heads_do_not_divide_are_refused() -> None:
    with pytest.raises(RuntimeError, match="7 tokens, but this attention was built for 6"):
        MultiHeadAttention(8, 8, 6, 0.0, 2)(torch.randn(1, 7, 8))
    with pytest.raises(RuntimeError, match="7 tokens"):
        CausalAttention(8, 8, 6, 0.0)(torch.randn(1, 7, 8))
    with pytest.raises(AssertionError, match="9 and 2"):
        MultiHeadAttention(8, 9, 6, 0.0, 2)


@pytest.mark.parametrize("make", [
    lambda: MultiHeadAttention(16, 16, 50, 0.0, 2),
    lambda: PyTorchMultiHeadAttention(16, 16, 2),
])
@pytest.mark.parametrize("chunks", [[50], [1] * 50, [20, 1, 29]], ids=["whole", "one by one", "mixed"])
def test_with_a_cache_the_same_comes_out(make, chunks: list[int]) -> None:  # type: ignore[no-untyped-def]
    attention, x, cache = make().eval(), torch.randn(2, 50, 16), KVCache(1)
    with torch.no_grad(), warnings.catch_warnings():
        parts = [attention(part, cache=cache) for part in x.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), attention(x))
    assert cache.length == 50
