"""attend in all its forms against torch's own scaled_dot_product_attention, and plain sums, in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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


def test_grouped_heads_are_trained_in_blocks_too() -> None:
    queries, keys, values = qkv(70, 70, leading=(2, 4))
    out = attend(queries, keys[:, :2], values[:, :2])
    assert "CausalBlocks" in type(out.grad_fn).__name__
    assert "CausalBlocks" not in type(attend(queries, keys[:, :2], values[:, :2], window=9).grad_fn).__name__


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


def plainly(
    queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool, window: int | None, mask: Tensor | None
) -> Tensor:
    """Attention (B, H, T, V) as one sum a query, from its definition: which keys it sees, how much of each it takes."""
    (B, H, T, K), (G, S) = queries.shape, keys.shape[1:3]
    context = torch.zeros(B, H, T, values.shape[-1], dtype=torch.float64)
    for b, h, t in itertools.product(range(B), range(H), range(T)):
        head, position = h * G // H, S - T + t
        seen = [
            s for s in range(S)
            if (not causal or s <= position)
            and (window is None or s > position - window)
            and (mask is None or mask.expand(B, H, T, S)[b, h, t, s])
        ]
        shares = [math.exp(float(queries[b, h, t] @ keys[b, head, s]) / math.sqrt(K)) for s in seen]
        for share, s in zip(shares, seen, strict=True):
            context[b, h, t] += share / sum(shares) * values[b, head, s]
    return context


@pytest.mark.parametrize("explicit", [True, False])
@given(data=st.data())
def test_groups_windows_and_masks_equal_the_sum_written_out(explicit: bool, data: st.DataObject) -> None:
    T = data.draw(st.integers(1, 7), "T")
    S = T + data.draw(st.integers(0, 7), "cached")
    G, group_size = data.draw(st.integers(1, 3), "G"), data.draw(st.integers(1, 3), "H / G")
    causal = data.draw(st.booleans(), "causal")
    window = data.draw(st.none() | st.integers(1, S + 2), "window") if causal else None
    mask_shape = data.draw(st.none() | st.tuples(
        st.sampled_from([1, 2]), st.sampled_from([1, G * group_size]), st.sampled_from([1, T]), st.sampled_from([1, S])
    ), "mask")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    queries = torch.randn(2, G * group_size, T, 4, generator=generator, dtype=torch.float64)
    keys = torch.randn(2, G, S, 4, generator=generator, dtype=torch.float64)
    values = torch.randn(2, G, S, 3, generator=generator, dtype=torch.float64)
    mask = None if mask_shape is None else torch.rand(mask_shape, generator=generator) < 0.6
    found = attend(queries, keys, values, causal=causal, window=window, mask=mask, explicit=explicit)
    expected = plainly(queries, keys, values, causal=causal, window=window, mask=mask)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize(
    ("T", "S", "G", "window", "is_masked"),
    [(70, 70, 2, None, False), (70, 70, 4, 9, False), (5, 12, 1, 3, True), (1, 12, 2, 5, True), (12, 12, 4, 12, False)],
)
def test_gradients_of_groups_windows_and_masks_equal_torchs(
    T: int, S: int, G: int, window: int | None, is_masked: bool, explicit: bool
) -> None:
    queries, keys, values = qkv(T, S, leading=(2, 4))
    keys, values = (t[:, :G].detach().requires_grad_() for t in (keys, values))
    mask = torch.rand(2, 1, T, S, generator=torch.Generator().manual_seed(3)) < 0.6 if is_masked else None
    near = torch.tensor([[0 <= S - T + t - s < (window or S) for s in range(S)] for t in range(T)])
    repeated = [t.repeat_interleave(4 // G, dim=1) for t in (keys, values)]
    theirs = F.scaled_dot_product_attention(queries, *repeated, attn_mask=near if mask is None else near & mask)
    ours = attend(queries, keys, values, window=window, mask=mask, explicit=explicit)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(out.square().sum(), (queries, keys, values)) for out in (ours, theirs)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("explicit", [True, False])
def test_a_query_that_sees_no_key_gets_zeros_and_spoils_no_gradient(explicit: bool) -> None:
    tensors = qkv(4, 4)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    context = attend(*tensors, mask=mask, explicit=explicit)
    assert not context[..., 2, :].any()
    gradients = torch.autograd.grad(context.square().sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][..., 2, :].any()


@pytest.mark.parametrize("T", [1, 6])
def test_no_mask_is_built_where_every_earlier_key_is_seen(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    kernel = F.scaled_dot_product_attention

    def spy(*args: Tensor, **options: object) -> Tensor:
        masks.append(options["attn_mask"])
        return kernel(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        for window in (None, 6, 7) + ((2,) if T == 1 else ()):
            attend(*qkv(T, 6), window=window)
    assert masks == [None] * (4 if T == 1 else 3)


def test_causal_mask_with_a_window_hides_what_lies_before_it() -> None:
    assert causal_mask(2, 4, window=2).tolist() == [[True, False, False, True], [True, True, False, False]]


def test_windows_groups_and_masks_that_make_no_sense_are_refused() -> None:
    queries, keys, values = qkv(3, 3)
    for window, causal in ((0, True), (-1, True), (2, False)):
        with pytest.raises(ValueError, match=f"at least 1 position and needs causal=True, got window={window}, "):
            attend(queries, keys, values, window=window, causal=causal)
    with pytest.raises(ValueError, match="got 3 and 2"):
        attend(queries, keys[:, :2], values[:, :2])
    with pytest.raises(ValueError, match=r"mask must be boolean, .* got torch\.float32"):
        attend(queries, keys, values, mask=torch.zeros(3, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("G", [1, 2, 4])
def test_a_single_query_in_half_precision_is_as_near_to_the_sum_as_torchs_kernel(G: int, dtype: torch.dtype) -> None:
    queries, keys, values = (t.detach().to(dtype) for t in qkv(1, 300, leading=(2, 4)))
    keys, values = keys[:, :G], values[:, :G]
    exact = plainly(*(t.double() for t in (queries, keys, values)), causal=True, window=None, mask=None)
    ours = attend(queries, keys, values)
    theirs = F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
    assert ours.dtype == dtype
    errors = [float((found.double() - exact).abs().max()) for found in (ours, theirs)]
    assert errors[0] <= 1.25 * errors[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_single_query_in_half_precision_is_rounded_only_at_the_end(dtype: torch.dtype) -> None:
    queries, keys, values = (t.detach().to(dtype) for t in qkv(1, 300, leading=(2, 4)))
    exact = plainly(*(t.double() for t in (queries, keys, values)), causal=True, window=None, mask=None)
    errors = (attend(queries, keys, values).double() - exact).abs()
    assert (errors <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()
