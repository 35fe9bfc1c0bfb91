"""Linear against torch.nn.Linear: results, gradients, draws; on every kernel this machine has."""

import warnings

import pytest
import torch
from torch import nn

from gpt_attention import Linear, PreparedLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_outputs", [33, 10_000])  # below and above the size from which oneDNN is asked
@pytest.mark.parametrize("shape", [(7,), (3, 7), (40, 7), (4, 50, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_results_and_gradients_equal_torchs_layer(
    shape: tuple[int, ...], n_outputs: int, bias: bool, dtype: torch.dtype
) -> None:
    layers: list[nn.Linear] = []
    for layer_class in (nn.Linear, Linear):
        torch.manual_seed(2)
        layers.append(layer_class(7, n_outputs, bias=bias, dtype=dtype))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    for layer in layers:
        given = x.clone().requires_grad_()
        out = layer(given)
        out.float().square().sum().backward()
        results.append([out, given.grad, *(p.grad for p in layer.parameters())])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_frozen_weight_gets_no_gradient_and_the_input_still_does() -> None:
    layer, x = Linear(5, 20_000), torch.randn(64, 5, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(64, 5), rtol=1e-4, atol=1e-3)


def test_torchs_function_transforms_go_through() -> None:
    layer, x = Linear(5, 20_000), torch.randn(2, 64, 5)

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).sum()

    gradients = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(layer.named_parameters()), x)
    torch.testing.assert_close(gradients["weight"], x.sum(1, keepdim=True).expand(2, 20_000, 5))
    assert torch.equal(gradients["bias"], torch.full((2, 20_000), 64.0))


def test_autocast_is_obeyed() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(5, 20_000)(torch.randn(64, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_rows", [1, 3, 70])
def test_a_prepared_layer_is_torchs_with_what_follows_it(n_rows: int, dtype: torch.dtype) -> None:
    layer = nn.Linear(300, 260, dtype=dtype)
    x, residual = torch.randn(n_rows, 300, dtype=dtype), torch.randn(n_rows, 260, dtype=dtype)
    prepared = PreparedLinear(layer.weight, layer.bias)
    with torch.no_grad():
        expected = layer(x)
        limits = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(prepared(x), expected, **limits)
        torch.testing.assert_close(prepared.gelu(x), nn.functional.gelu(expected, approximate="tanh"), **limits)
        torch.testing.assert_close(prepared.add(x, residual), residual + expected, **limits)


def test_a_prepared_layer_follows_changes_of_its_weight_in_place() -> None:
    layer, x = nn.Linear(300, 260), torch.randn(2, 300)
    prepared = PreparedLinear(layer.weight, layer.bias)
    with torch.no_grad():
        layer.weight.mul_(2)
        torch.testing.assert_close(prepared(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_rows", [1, 40])
def test_large_layers_without_gradients_give_torchs_results(n_rows: int) -> None:
    torch.manual_seed(0)
    ours, theirs = Linear(300, 260), nn.Linear(300, 260)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(n_rows, 300)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_the_gradient_has_a_gradient() -> None:
    layer, x = Linear(20, 4000, dtype=torch.float32), torch.randn(3, 20, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    weight = layer.weight.detach()
    torch.testing.assert_close(second, (2 * weight.T @ weight).sum(0).expand(3, 20), rtol=1e-4, atol=1e-3)


def test_a_width_that_does_not_fit_is_torchs_own_error() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), torch.no_grad():
        Linear(20, 4000)(torch.randn(3, 21))


def test_a_trace_records_torchs_operators() -> None:
    layer, x = Linear(20, 4000), torch.randn(3, 20)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torches warn that tracing is on its way out
        traced = torch.jit.trace(layer, x)
        torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)
