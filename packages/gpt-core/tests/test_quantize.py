"""quantize: exact in what it stores, near the float32 model in what it says, on every kernel this machine has."""

import math
import sys
from typing import Any

import pytest
import torch
from torch import nn

from gpt_core.config import GPTConfig
from gpt_core.generate import generate_batch, generate_tokens
from gpt_core.model import GPTModel, initialize_gpt2
from gpt_core.quantize import Int8Linear, PackedLinear, quantize

CONFIG = GPTConfig(vocab_size=97, context_length=32, emb_dim=48, n_heads=4, n_layers=3, qkv_bias=True)


def make_model(**changes: Any) -> GPTModel:
    model = GPTModel({**CONFIG.to_dict(), **changes}).eval()
    initialize_gpt2(model, seed=5)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than GPT-2's, so that the layers matter beside the embeddings
            parameter.mul_(3)
    return model


@pytest.fixture(params=["as it is", "without AVX-512"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without AVX-512":
        module = sys.modules["gpt_core.quantize"]  # by its name among all: gpt_core.quantize is the function
        monkeypatch.setattr(module, "_has_vnni", lambda: False)
        monkeypatch.setattr(module, "_packs", lambda dtype: False)


@pytest.mark.parametrize("n_rows", [1, 2, 16, 17, 100])
@pytest.mark.parametrize("width", [128, 130])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_the_product_with_rounded_weights(processor: None, n_rows: int, bias: bool, width: int) -> None:
    weight, x = torch.randn(70, width), torch.randn(n_rows, width)
    weight[3] = 0
    weight[4] *= 1e-3
    b = torch.randn(70) if bias else None
    scale = weight.abs().amax(1, keepdim=True) / 127
    rounded = torch.where(scale > 0, (weight / scale).round().double() * scale, 0.0)
    expected = x.double() @ rounded.T + (0 if b is None else b)
    layer = Int8Linear(weight, b, with_rows=True)
    # bfloat16 activations: 130 products of about 1, each off by up to 2**-8, and the sum rounded again.
    limit = 2e-3 if layer._packed is not None or n_rows > 16 or width == 130 else 0.3
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=limit)
    torch.testing.assert_close(layer.rows(torch.tensor([3, 4, 0])).double(), rounded[[3, 4, 0]], rtol=1e-5, atol=1e-7)
    residual = torch.randn(n_rows, 70)
    torch.testing.assert_close(layer.add(x, residual), residual + layer(x))
    torch.testing.assert_close(layer.gelu(x), nn.functional.gelu(layer(x), approximate="tanh"))


@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e-3, 1e6])
def test_int8_activations_of_any_size_keep_16_bits(factor: float) -> None:
    weight, x = torch.randn(40, 64), torch.randn(3, 64) * factor
    x[1, 5] *= 100  # an outlier costs the others precision, but no more than the 16 bits allow
    layer = Int8Linear(weight, None, with_rows=True)
    exact = x @ layer.rows(torch.arange(40)).T
    error = (layer(x) - exact).abs().amax(1)
    assert bool((error <= x.abs().amax(1) * weight.abs().sum(1).amax() * 2**-8).all())
    assert bool(layer(x).isfinite().all())
    if layer._packed is not None:
        assert bool((error <= x.abs().amax(1) * weight.abs().sum(1).amax() / 65024 * 1.1).all())


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 70])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2**-7), (torch.float32, 1e-5)])
def test_packed_is_the_product_in_its_dtype(
    processor: None, n_rows: int, bias: bool, dtype: torch.dtype, limit: float
) -> None:
    weight, x, residual = torch.randn(70, 130), torch.randn(n_rows, 130), torch.randn(n_rows, 70)
    b = torch.randn(70) if bias else None
    layer = PackedLinear(weight, b, dtype=dtype, with_rows=True)
    expected = x.to(dtype).double() @ weight.to(dtype).double().T + (0 if b is None else b.double())
    limits = {"rtol": limit, "atol": 10 * limit}
    torch.testing.assert_close(layer(x).double(), expected, **limits)
    torch.testing.assert_close(layer.gelu(x).double(), nn.functional.gelu(expected, approximate="tanh"), **limits)
    torch.testing.assert_close(layer.add(x, residual).double(), residual + expected, **limits)
    assert layer.add(x, residual).dtype == torch.float32
    assert torch.equal(layer.rows(torch.tensor([5, 69])), weight.to(dtype).float()[[5, 69]])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [("int8", 0.03), ("bfloat16", 0.02), (torch.float32, 1e-5)])
def test_the_logits_are_near_the_models_and_its_answers_alike(
    processor: None, dtype: str | torch.dtype, limit: float, tied: bool
) -> None:
    model = make_model(tie_weights=tied)
    small, ids = quantize(model, dtype), torch.randint(97, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids)
        difference = (small(ids) - expected).norm() / expected.norm()
    assert float(difference) < limit
    assert dtype == torch.float32 or float(difference) > 0
    with torch.no_grad():
        targets = ids[:, 1:].flatten()
        loss, small_loss = (
            nn.functional.cross_entropy(one(ids)[:, :-1].flatten(0, 1), targets) for one in (model, small)
        )
    assert math.isclose(float(loss), float(small_loss), rel_tol=0.01)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
def test_a_quantized_model_generates_like_any_other(dtype: str) -> None:
    small = quantize(make_model(), dtype)
    prompts = [[1, 2, 3], [4], list(range(40))]
    answers = generate_batch(small, prompts, max_new_tokens=6)
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = list(generate_tokens(small, prompt, max_new_tokens=6))
        assert [t.id for t in alone] == [t.id for t in answer]


def test_the_copy_keeps_nothing_of_the_model() -> None:
    model, ids = make_model(), torch.arange(9)[None]
    small = {dtype: quantize(model, dtype) for dtype in ("int8", "bfloat16", "float32")}
    before = {dtype: copy(ids) for dtype, copy in small.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    for dtype, copy in small.items():
        assert torch.equal(copy(ids), before[dtype])


def test_a_bfloat16_model_is_quantized_from_its_own_numbers() -> None:
    model, ids = make_model(), torch.arange(9)[None]
    rounded = make_model().bfloat16()
    expected = quantize(model, "bfloat16")(ids)
    assert float((quantize(rounded, "bfloat16")(ids) - expected).norm() / expected.norm()) < 0.01


def test_other_dtypes_and_models_are_refused() -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, int8, got 'int4'"):
        quantize(make_model(), "int4")
    for model in (nn.Linear(2, 2), GPTModel(CONFIG, explicit=True), quantize(make_model())):
        with pytest.raises(ValueError, match=f"got a {type(model).__name__} that is not; merge adapters"):
            quantize(model)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
def test_damaged_weights_do_not_become_sound_ones(dtype: str) -> None:
    model = make_model()
    with torch.no_grad():
        model.get_parameter("trf_blocks.1.att.W_value.weight")[3, 4] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        list(generate_tokens(quantize(model, dtype), [1, 2], max_new_tokens=2))
