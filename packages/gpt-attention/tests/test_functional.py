"""attend in all its forms against torch's own scaled_dot_product_attention in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt_attention import attend, causal_mask


def qkv(T: int, S: int, *, dtype: torch.dtype = torch.float64, leading: tuple[int, ...] = (2, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(T * 1000 + S)
    shapes = [(*leading, T, 8), (*leading, S, 8), (*leading, S, 8)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def torchs(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    T, S = queries.shape[-2], keys.shape[-2]
    visible = torch.tensor([[not causal or j <= i + S - T for j in range(S)] for i in range(T)])
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 9), (5, 5), (5, 9), (64, 64), (65, 65), (150, 150), (513, 513)])
def test_context_and_gradients_equal_torchs(T: int, S: int, causal: bool, explicit: bool) -> None:
    tensors = qkv(T, S)
    ours, theirs = attend(*tensors, causal=causal, explicit=explicit), torchs(*tensors, causal=causal)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=ours.dtype)
    gradients = [torch.autograd.grad(out, tensors, upstream) for out in (ours, theirs)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("explicit", [True, False])
def test_values_may_be_wider_than_keys(explicit: bool) -> None:
    queries, keys, _ = qkv(7, 7)
    values = torch.randn(2, 3, 7, 20, dtype=torch.float64, requires_grad=True)
    tensors = (queries, keys, values)
    ours, theirs = attend(*tensors, explicit=explicit), torchs(*tensors, causal=True)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(out.sum(), tensors) for out in (ours, theirs)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected)


def test_bfloat16_in_blocks_is_as_near_to_float64_as_torchs_kernel() -> None:
    exact = qkv(200, 200)
    rounded = [t.detach().bfloat16().requires_grad_() for t in exact]
    reference = torchs(*exact, causal=True)
    with torch.no_grad():
        kernel_error = (attend(*rounded).double() - reference).abs().max()
    block_error = (attend(*rounded).double() - reference).abs().max()
    assert block_error < 1.5 * kernel_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_gradients_under_autocast_equal_torchs_kernel(dtype: torch.dtype) -> None:
    tensors = qkv(70, 70, dtype=dtype)
    results = []
    for function in (attend, lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True)):
        with torch.autocast("cpu", torch.bfloat16):
            out = function(*tensors)
        results.append([out, *torch.autograd.grad(out.sum(), tensors)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-2, rtol=5e-2)


def test_autocasts_own_dtype_is_still_computed_in_blocks() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*qkv(70, 70, dtype=torch.bfloat16))
    assert "CausalBlocks" in type(out.grad_fn).__name__


def test_leading_axes_may_broadcast() -> None:
    queries, keys, values = qkv(9, 9)
    tensors = (queries, keys[:1], values[:, :1])
    ours, theirs = attend(*tensors), attend(*tensors, explicit=True)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(out.sum(), (queries, keys, values)) for out in (ours, theirs)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_torchs_function_transforms_go_through() -> None:
    queries, keys, values = qkv(9, 9)
    (expected,) = torch.autograd.grad(attend(queries, keys, values).sum(), queries)

    def gradient(*qkv: Tensor) -> Tensor:
        return torch.func.grad(lambda *qkv: attend(*qkv).sum())(*qkv)

    torch.testing.assert_close(gradient(queries, keys, values), expected)
    torch.testing.assert_close(torch.vmap(gradient)(queries, keys, values), expected)


def test_no_gradient_reaches_a_later_token() -> None:
    queries, keys, values = qkv(130, 130)
    attend(queries, keys, values)[..., :70, :].sum().backward()
    assert keys.grad is not None
    assert values.grad is not None
    assert not keys.grad[..., 70:, :].any()
    assert not values.grad[..., 70:, :].any()


def test_no_dropout_is_drawn_without_dropout_and_weights_are_rescaled_with_it() -> None:
    queries, keys, _ = qkv(40, 40, dtype=torch.float32)
    values = torch.ones_like(keys)
    torch.testing.assert_close(attend(queries, keys, values), values)
    torch.manual_seed(0)
    dropped = attend(queries, keys, values, dropout_p=0.5)
    assert dropped.std() > 0.1
    assert abs(float(dropped.mean().detach()) - 1) < 0.1


def test_causal_mask_hides_what_lies_behind_each_query() -> None:
    assert causal_mask(2, 4).tolist() == [[False, False, False, True], [False, False, False, False]]


def test_fewer_keys_than_queries_is_refused_when_causal() -> None:
    with pytest.raises(ValueError, match="3 queries and 2 keys"):
        attend(*qkv(3, 2))
