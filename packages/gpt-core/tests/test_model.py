"""GPTModel: the book's numbers, names and errors; its forms are one function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from gpt_attention import MultiHeadAttention
from gpt_core import GPT_CONFIG_124M, GPTConfig, GPTModel, GPTModelFast, gpt2_config, initialize_gpt2

TINY = GPTConfig(vocab_size=61, context_length=20, emb_dim=16, n_heads=2, n_layers=3)
LATER: dict[str, dict[str, Any]] = {
    "grouped": {"n_kv_heads": 1},
    "window": {"sliding_window": 4},
    "rotary": {"positions": "rotary"},
    "rmsnorm": {"norm": "rmsnorm"},
    "all": {"n_kv_heads": 1, "sliding_window": 3, "positions": "rotary", "rope_base": 500.0, "norm": "rmsnorm"},
}


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("form", ["fused", "explicit", "fast"])
def test_seed_123_gives_the_books_ten_tokens(form: str, cached: bool) -> None:
    torch.manual_seed(123)
    if form == "fast":
        model = GPTModelFast(GPT_CONFIG_124M).eval()
    else:
        model = GPTModel(GPT_CONFIG_124M, explicit=form == "explicit").eval()
    ids = torch.tensor([[15496, 11, 314, 716]])  # "Hello, I am"
    with torch.no_grad():
        new = ids
        for _ in range(10):
            new = model(new if cached else ids, use_cache=cached)[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, new], dim=1)
    # The expectation of the book's own test of chapter 4.
    assert ids[0, 4:].tolist() == [27018, 24086, 47843, 30961, 42348, 7267, 49706, 43231, 47062, 34657]


def test_state_dict_has_the_books_names_in_the_books_order() -> None:
    block = ["att.W_query.weight", "att.W_key.weight", "att.W_value.weight", "att.out_proj.weight", "att.out_proj.bias",
             "ff.layers.0.weight", "ff.layers.0.bias", "ff.layers.2.weight", "ff.layers.2.bias",
             "norm1.scale", "norm1.shift", "norm2.scale", "norm2.shift"]
    expected = ["tok_emb.weight", "pos_emb.weight"]
    expected += [f"trf_blocks.{n}.{name}" for n in range(3) for name in block]
    expected += ["final_norm.scale", "final_norm.shift", "out_head.weight"]
    assert list(GPTModel(TINY).state_dict()) == expected


@pytest.mark.parametrize(("name", "parameters"), [("124M", 124_439_808), ("355M", 354_823_168)])
def test_gpt2_sizes_have_openais_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert GPTModel(gpt2_config(name)).n_parameters == parameters


def test_the_books_124m_model_has_163_million_parameters() -> None:
    with torch.device("meta"):
        assert GPTModel(GPT_CONFIG_124M).n_parameters == 163_009_536  # chapter 4 prints it


def test_changing_a_token_leaves_the_logits_before_it_alone() -> None:
    model, ids = GPTModel(TINY).eval(), torch.randint(61, (1, 20))
    changed = ids.clone()
    changed[0, 12] = (ids[0, 12] + 1) % 61
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("name", LATER)
@pytest.mark.parametrize("explicit", [True, False])
def test_a_changed_token_reaches_as_far_as_the_windows_of_all_layers(name: str, explicit: bool) -> None:
    config = dataclasses.replace(TINY, **LATER[name])
    model, ids = GPTModel(config, explicit=explicit).double().eval(), torch.randint(61, (1, 20))
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 1) % 61
    with torch.no_grad():
        differs = (model(changed) != model(ids)).any(dim=-1)[0].tolist()
    end = 6 + 3 * ((config.sliding_window or 20) - 1) + 1  # each of 3 layers passes it on window - 1 positions further
    assert differs == [6 <= t < end for t in range(20)]


@given(data=st.data())
def test_every_variant_is_the_same_function_cached_or_not_explicit_or_fast(data: st.DataObject) -> None:
    config = GPTConfig(
        vocab_size=61, context_length=20, emb_dim=24, n_heads=6, n_layers=2,
        n_kv_heads=data.draw(st.sampled_from([None, 1, 2, 3, 6]), "n_kv_heads"),
        sliding_window=data.draw(st.none() | st.integers(1, 22), "sliding_window"),
        positions=data.draw(st.sampled_from(["learned", "rotary"]), "positions"),
        norm=data.draw(st.sampled_from(["layernorm", "rmsnorm"]), "norm"),
    )
    pieces = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=8).filter(lambda p: sum(p) <= 20), "pieces")
    ids = torch.randint(61, (2, sum(pieces)), generator=torch.Generator().manual_seed(1))
    models = [GPTModel(config, explicit=explicit).eval() for explicit in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    with torch.no_grad():
        whole = models[0](ids)
        for model in models:
            torch.testing.assert_close(model(ids), whole, atol=1e-5, rtol=1e-5)
            cache = model.new_cache()
            cached = torch.cat([model(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1)
            torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)


def test_the_rope_base_counts_with_rotary_positions_only() -> None:
    ids = torch.randint(61, (1, 20))
    for positions, counts in (("rotary", True), ("learned", False)):
        logits = []
        for base in (1e4, 500.0):
            torch.manual_seed(2)
            model = GPTModel(GPTConfig.from_dict({**TINY.to_dict(), "positions": positions, "rope_base": base}))
            logits.append(model(ids))
        assert torch.equal(*logits) != counts


def test_later_models_have_the_parameters_that_they_should() -> None:
    plain, later = (GPTModel(dataclasses.replace(TINY, **variants)).state_dict() for variants in ({}, LATER["all"]))
    shifts = {name for name in plain if name.endswith(".shift")}
    assert plain.keys() - later.keys() == {"pos_emb.weight", *shifts}
    narrowed = {name for name in later if later[name].shape != plain[name].shape}
    assert narrowed == {f"trf_blocks.{n}.att.W_{kind}.weight" for n in range(3) for kind in ("key", "value")}
    assert all(later[name].shape == (8, 16) for name in narrowed)


def test_the_books_fast_model_refuses_what_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="GPT-2's form only, but the config sets sliding_window; use GPTModel"):
        GPTModelFast(dataclasses.replace(TINY, **LATER["window"]))


@pytest.mark.parametrize(
    ("model_class", "arguments"), [(GPTModel, {}), (GPTModel, {"explicit": True}), (GPTModelFast, {})],
    ids=["fused", "explicit", "fast"],
)
def test_a_model_with_classes_is_chapter_6s_with_its_head_replaced(
    model_class: Callable[..., GPTModel], arguments: dict[str, bool]
) -> None:
    torch.manual_seed(5)
    by_hand = model_class(TINY, **arguments)
    torch.manual_seed(5)
    model = model_class(dataclasses.replace(TINY, n_classes=2), **arguments)
    drawn = model.state_dict()
    assert all(torch.equal(drawn[name], value) for name, value in by_hand.state_dict().items() if "head" not in name)
    by_hand.out_head = torch.nn.Linear(16, 2)
    by_hand.load_state_dict(drawn)
    ids, labels = torch.randint(61, (4, 9)), torch.tensor([0, 1, 1, 0])
    for each in (model, by_hand):
        cross_entropy(each(ids)[:, -1], labels).backward()
    torch.testing.assert_close(model(ids), by_hand(ids), atol=1e-6, rtol=1e-6)
    for new, old in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(new.grad, old.grad, atol=1e-6, rtol=1e-5)


def test_logits_are_the_head_of_the_features() -> None:
    model, ids = GPTModel(TINY), torch.randint(61, (2, 9))
    assert torch.equal(model(ids), model.out_head(model.features(ids)))


def test_the_models_own_cache_continues_until_it_is_reset() -> None:
    model, ids = GPTModel(TINY).eval(), torch.randint(61, (2, 9))
    with torch.no_grad():
        model(ids[:, :5], use_cache=True)
        torch.testing.assert_close(model(ids[:, 5:], use_cache=True), model(ids)[:, 5:])
        model.reset_kv_cache()
        torch.testing.assert_close(model(ids, use_cache=True), model(ids))


@pytest.mark.parametrize("n_cached", [0, 5])
def test_a_pass_that_stopped_half_way_leaves_no_trace_in_the_cache(n_cached: int) -> None:
    model, ids = GPTModel(TINY).eval(), torch.randint(61, (1, 9))
    with torch.no_grad():
        if n_cached:
            model(ids[:, :n_cached], use_cache=True)

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        handle = model.trf_blocks[1].register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, n_cached:].expand(2 if n_cached == 0 else 1, -1), use_cache=True)
        handle.remove()
        torch.testing.assert_close(model(ids[:, n_cached:], use_cache=True), model(ids)[:, n_cached:])


def test_what_does_not_fit_is_refused_with_the_rule() -> None:
    model = GPTModel(TINY)
    with pytest.raises(ValueError, match=r"shape \(batch, tokens\), got \(5,\)"):
        model(torch.zeros(5, dtype=torch.long))
    with pytest.raises(IndexError, match="21 tokens exceed the model's context of 20"):
        model(torch.zeros(1, 21, dtype=torch.long))
    with pytest.raises(IndexError, match=r"0\.\.60, got 3\.\.61"):
        model(torch.tensor([[3, 61]]))


@pytest.mark.parametrize(
    ("model_class", "variants"),
    [(GPTModel, {}), (GPTModelFast, {}), (GPTModel, LATER["all"]), (GPTModel, {"n_classes": 2})],
    ids=["plain", "fast", "later", "classes"],
)
def test_gpt2_initialisation_depends_on_the_seed_alone(model_class: type[GPTModel], variants: dict[str, Any]) -> None:
    config = GPTConfig(
        vocab_size=300, context_length=20, emb_dim=128, n_heads=2, n_layers=8, qkv_bias=True, **variants
    )
    first, second = model_class(config), model_class(config)
    state = torch.get_rng_state()
    initialize_gpt2(first, seed=7)
    initialize_gpt2(second, seed=7)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    weights = first.state_dict()
    assert abs(float(weights["tok_emb.weight"].std()) - 0.02) < 0.001
    assert abs(float(weights["trf_blocks.3.ff.layers.2.weight"].std()) - 0.02 / 4) < 0.0005  # sqrt(2 * 8 layers)
    for name, value in weights.items():
        if value.ndim < 2:
            is_scale = name.endswith(("scale", "norm1.weight", "norm2.weight", "final_norm.weight"))
            assert (value == float(is_scale)).all(), name


@pytest.mark.parametrize("later", [{}, *LATER.values()], ids=["gpt2", *LATER])
@pytest.mark.parametrize("form", ["fused", "explicit"])
def test_features_of_wanted_rows_and_their_gradients_are_those_of_the_whole_pass(
    later: dict[str, Any], form: str
) -> None:
    model = GPTModel(dataclasses.replace(TINY, **later), explicit=form == "explicit").double()
    check_rows(model)


def test_the_fast_variant_gives_wanted_rows_too() -> None:
    check_rows(GPTModelFast(TINY).double())


def check_rows(model: GPTModel) -> None:
    ids, rows = torch.randint(0, 61, (4, 11)), torch.tensor([10, 0, 5, 7])
    weights = torch.randn(4, 16, dtype=torch.float64)
    whole = model.features(ids)[torch.arange(4), rows]
    expected = torch.autograd.grad((whole * weights).sum(), list(model.trf_blocks.parameters()))
    wanted = model.features(ids, rows=rows)
    found = torch.autograd.grad((wanted * weights).sum(), list(model.trf_blocks.parameters()))
    torch.testing.assert_close(wanted, whole)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("n_first", [0, 1, 3])
def test_blocks_run_in_two_parts_are_the_whole_pass(n_first: int) -> None:
    model, ids, rows = GPTModel(TINY).double(), torch.randint(0, 61, (3, 9)), torch.tensor([8, 2, 0])
    trunk = model.run_blocks(model.embed(ids), last=n_first)
    torch.testing.assert_close(model.final_norm(model.run_blocks(trunk, first=n_first)), model.features(ids))
    rest = model.run_blocks(trunk, first=n_first, rows=rows)
    torch.testing.assert_close(model.final_norm(rest), model.features(ids, rows=rows))


def test_rows_that_are_not_one_position_a_sequence_are_refused() -> None:
    model, ids = GPTModel(TINY), torch.zeros(4, 9, dtype=torch.int64)
    for rows in (torch.tensor([5]), torch.tensor(5), torch.tensor([1.0, 2.0, 3.0, 4.0])):
        with pytest.raises(ValueError, match="rows must be 4 whole numbers"):
            model.features(ids, rows=rows)
    for rows in (torch.tensor([0, 1, 2, -1]), torch.tensor([0, 1, 2, 9])):
        with pytest.raises(IndexError, match=r"rows must lie in 0\.\.8"):
            model.features(ids, rows=rows)


def test_an_attention_that_does_not_know_rows_is_asked_for_all() -> None:
    class Mine(MultiHeadAttention):
        def forward(self, x, *, cache=None, layer=0):  # type: ignore[no-untyped-def, override]
            return super().forward(x, cache=cache, layer=layer)

    model = GPTModel(TINY)
    for block in model.trf_blocks:
        block.att.__class__ = Mine
    check_rows(model.double())
