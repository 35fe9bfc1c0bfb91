"""InferenceModel and prepare: the logits of the modules, for packed chunks and every configuration."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gpt_attention import Linear, PreparedLinear
from gpt_core.config import GPTConfig
from gpt_core.inference import Chunk
from gpt_core.model import GPTModel, GPTModelFast
from gpt_core.prepare import JoinedLinear, is_plain, prepare

SIZES = {"vocab_size": 50, "context_length": 20, "emb_dim": 24, "n_layers": 2}
CONFIGS = st.builds(
    lambda heads, **kw: GPTConfig(**SIZES, n_heads=heads[0], n_kv_heads=heads[1], **kw),
    heads=st.sampled_from([(1, None), (4, None), (4, 2), (6, 1), (6, 3)]),
    qkv_bias=st.booleans(),
    tie_weights=st.booleans(),
    sliding_window=st.sampled_from([None, 1, 4, 100]),
    positions=st.sampled_from(["learned", "rotary"]),
    norm=st.sampled_from(["layernorm", "rmsnorm"]),
)


def make_model(config: GPTConfig, kind: type[GPTModel] = GPTModel, **options: Any) -> GPTModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind(config, **options).eval()


GPT2 = GPTConfig(**SIZES, n_heads=4, qkv_bias=True)


@given(config=CONFIGS, seed=st.integers(0, 999), cuts=st.lists(st.integers(1, 19), max_size=3), data=st.data())
@settings(max_examples=40, deadline=None)
def test_packed_chunks_have_the_modules_logits(
    config: GPTConfig, seed: int, cuts: list[int], data: st.DataObject
) -> None:
    model = make_model(config)
    generator = torch.Generator().manual_seed(seed)
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    rows = [torch.randint(50, (n,), generator=generator) for n in lengths]
    with torch.no_grad():
        expected = [model(row[None])[0] for row in rows]
    prepared = prepare(model)
    cache = prepared.new_cache(n_slots=len(rows), capacity=20)
    found: list[list[torch.Tensor]] = [[] for _ in rows]
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 20], strict=True):
        chunks = [
            Chunk(slot, start, row[start:end].tolist(), len(row[start:end]))
            for slot, row in enumerate(rows)
            if len(row) > start
        ]
        if end == start or not chunks:
            continue
        logits = iter(prepared.logits(chunks, cache))
        for chunk in chunks:
            found[chunk.slot] += [next(logits) for _ in chunk.ids]
    for slot, logits_of in enumerate(expected):
        torch.testing.assert_close(torch.stack(found[slot]), logits_of, rtol=1e-4, atol=1e-4)


@given(config=CONFIGS, lengths=st.lists(st.integers(0, 19), min_size=2, max_size=5))
@settings(max_examples=30, deadline=None)
def test_one_token_of_each_sequence_has_the_modules_logits_whatever_their_lengths(
    config: GPTConfig, lengths: list[int]
) -> None:
    model = make_model(config)
    rows = [torch.arange(n + 1) * 7 % 50 for n in lengths]
    prepared = prepare(model)
    cache = prepared.new_cache(n_slots=len(rows), capacity=20)
    for slot, row in enumerate(rows):
        if len(row) > 1:
            prepared.logits([Chunk(slot, 0, row[:-1].tolist(), 0)], cache)
    chunks = [Chunk(slot, len(row) - 1, row[-1:].tolist(), 1) for slot, row in enumerate(rows)]
    with torch.no_grad():
        expected = torch.stack([model(row[None])[0, -1] for row in rows])
    torch.testing.assert_close(prepared.logits(chunks, cache), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [GPTModel, GPTModelFast])
def test_the_prepared_model_of_any_dtype_is_called_like_a_model(kind: type[GPTModel], dtype: torch.dtype) -> None:
    model, ids = make_model(GPT2, kind).to(dtype), torch.arange(22).view(2, 11)
    prepared = prepare(model)
    with torch.no_grad():
        expected = model(ids).float()
    limits = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(prepared(ids), expected, **limits)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(prepared(ids), expected, **limits)


@pytest.mark.parametrize("shape", [(4,), (1, 0), (1, 21), (0, 3)])
def test_ids_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have shape \(batch, tokens\) with 1 to 20 tokens"):
        prepare(make_model(GPT2))(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("bad", [-1, -100, 50])
def test_ids_that_the_model_does_not_have_are_refused(bad: int) -> None:
    with pytest.raises(IndexError, match=rf"must lie in 0\.\.49, got {min(bad, 3)}\.\.{max(bad, 3)}"):
        prepare(make_model(GPT2))(torch.tensor([[3, bad]]))


def test_a_prepared_model_is_not_moved_silently() -> None:
    with pytest.raises(RuntimeError, match="move or convert the GPTModel"):
        prepare(make_model(GPT2)).double()


def test_prepared_weights_are_the_models_own_but_for_queries_keys_and_values() -> None:
    model = make_model(GPT2)
    prepared = prepare(model)
    block: Any = prepared._blocks[0]
    head: Any = prepared._head
    assert block.up.weight.data_ptr() == model.get_parameter("trf_blocks.0.ff.layers.0.weight").data_ptr()
    assert head.weight.data_ptr() == model.get_parameter("out_head.weight").data_ptr()
    assert block.qkv._joined is None
    prepared(torch.zeros(1, 3, dtype=torch.int64))
    assert block.qkv._joined.weight.shape == (72, 24)


@pytest.mark.parametrize("n_rows", [1, 63, 64, 200])
def test_joined_layers_are_the_layers_side_by_side(n_rows: int) -> None:
    layers = [nn.Linear(24, n, bias=n_rows != 200) for n in (24, 8, 8)]
    x = torch.randn(n_rows, 24)
    joined = JoinedLinear([(layer.weight, layer.bias) for layer in layers], PreparedLinear)
    with torch.no_grad():
        expected = torch.cat([layer(x) for layer in layers], dim=1)
        for _ in range(2):
            torch.testing.assert_close(joined(x), expected, rtol=1e-4, atol=1e-5)
            joined(x[:1])


class OtherBlock(nn.Module):
    """Computes something that the packed pass does not know of."""

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        return x


def test_only_a_model_of_known_parts_is_plain() -> None:
    assert is_plain(make_model(GPT2))
    assert is_plain(make_model(GPT2, GPTModelFast))
    assert not is_plain(make_model(GPT2, explicit=True))
    assert not is_plain(nn.Linear(2, 2))
    replaced, hooked, pruned, mixed = (make_model(GPT2) for _ in range(4))
    replaced.trf_blocks[1] = OtherBlock()
    assert not is_plain(replaced)
    hooked.trf_blocks[0].ff.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    assert not is_plain(hooked)
    nn.utils.parametrize.register_parametrization(pruned.out_head, "weight", nn.Identity())  # type: ignore[arg-type]
    assert not is_plain(pruned)
    mixed.final_norm.double()  # type: ignore[union-attr]
    assert not is_plain(mixed)


def change_forward(model: GPTModel) -> None:
    model.trf_blocks[0].att.forward = lambda x, **_: x  # type: ignore[union-attr, method-assign]


def append_layer(model: GPTModel) -> None:
    model.trf_blocks[1].ff.layers.append(nn.GELU(approximate="tanh"))  # type: ignore[union-attr, operator]


def change_eps(model: GPTModel) -> None:
    model.trf_blocks[0].norm1.eps = 1.0  # type: ignore[union-attr]


def exact_gelu(model: GPTModel) -> None:
    model.trf_blocks[0].ff.layers[1] = nn.GELU()  # type: ignore[union-attr, operator]


def append_block(model: GPTModel) -> None:
    model.trf_blocks.append(model.trf_blocks[0])  # type: ignore[operator]


def bias_head(model: GPTModel) -> None:
    model.out_head = Linear(24, 50)


@pytest.mark.parametrize("change", [change_forward, append_layer, change_eps, exact_gelu, append_block, bias_head])
def test_a_model_whose_parts_were_changed_is_not_plain(change: Callable[[GPTModel], None]) -> None:
    model = make_model(GPT2)
    change(model)
    assert not is_plain(model)


def test_a_subclass_with_its_own_forward_is_not_plain() -> None:
    class Doubled(GPTModel):
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return 2 * super().forward(*args, **kwargs)

    assert not is_plain(make_model(GPT2, Doubled))
