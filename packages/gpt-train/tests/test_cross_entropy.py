"""head_cross_entropy against torch's linear layer and cross_entropy."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import gpt_train.cross_entropy as module
from gpt_train.cross_entropy import head_cross_entropy

IGNORED = -100


def problem(dtype: torch.dtype, n_rows: int = 37) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(n_rows, 24, generator=generator, dtype=dtype).requires_grad_()
    head = nn.Linear(24, 53, bias=False, dtype=dtype)
    nn.init.normal_(head.weight, generator=generator)
    targets = torch.randint(53, (n_rows,), generator=generator)
    targets[[0, 5, n_rows - 1]] = IGNORED
    return features, head, targets


@pytest.mark.parametrize("chunk", [53, 53 * 10, 2**25])
@pytest.mark.parametrize("cached", [53, 53 * 3, 2**19])
def test_loss_and_gradients_equal_torchs_for_every_chunking(
    chunk: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_LOGITS", chunk)
    monkeypatch.setattr(module, "_CACHED_LOGITS", cached)
    features, head, targets = problem(torch.float64)
    expected = cross_entropy(head(features), targets, reduction="sum") / 7
    grads = torch.autograd.grad(expected, (features, head.weight))
    loss = head_cross_entropy(features, head, targets, ignored=IGNORED) / 7
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(features.grad, grads[0])
    torch.testing.assert_close(head.weight.grad, grads[1])


def test_softmax_is_float32_under_bfloat16_autocast() -> None:
    features, head, targets = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = cross_entropy(head(features).float(), targets, reduction="sum")
        loss = head_cross_entropy(features, head, targets, ignored=IGNORED)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    grads = torch.autograd.grad(expected, (features, head.weight))
    loss.backward()
    torch.testing.assert_close(features.grad, grads[0], rtol=0.02, atol=0.05)
    torch.testing.assert_close(head.weight.grad, grads[1], rtol=0.02, atol=0.05)


@pytest.mark.parametrize("features_need_it", [True, False])
@pytest.mark.parametrize("head_needs_it", [True, False])
def test_each_gradient_costs_one_product_where_it_is_needed_and_none_elsewhere(
    features_need_it: bool, head_needs_it: bool
) -> None:
    features, head, targets = problem(torch.float32)
    features.requires_grad_(features_need_it)
    head.weight.requires_grad_(head_needs_it)
    product = 2 * features.numel() * len(head.weight)
    with FlopCounterMode(display=False) as training:
        head_cross_entropy(features, head, targets, ignored=IGNORED)
    with FlopCounterMode(display=False) as evaluation, torch.no_grad():
        loss = head_cross_entropy(features, head, targets, ignored=IGNORED)
    assert training.get_total_flops() == product * (1 + features_need_it + head_needs_it)
    assert evaluation.get_total_flops() == product
    assert not loss.requires_grad
    torch.testing.assert_close(loss, cross_entropy(head(features), targets, reduction="sum"))


def test_a_second_backward_pass_is_refused() -> None:
    features, head, targets = problem(torch.float32)
    loss = head_cross_entropy(features, head, targets, ignored=IGNORED)
    loss.backward(retain_graph=True)
    assert features.grad is not None
    before = features.grad.clone()
    with pytest.raises(RuntimeError, match="can be taken once"):
        loss.backward()
    assert torch.equal(features.grad, before)
