"""LoRA layers: the book's draws and counts, what is frozen, and a merge that can be taken back bit for bit."""

import contextlib
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from gpt_core import (
    GPTConfig,
    GPTModel,
    GPTModelFast,
    generate_tokens,
    gpt2_config,
    initialize_gpt2,
    load_checkpoint,
    model_from_tensors,
    parameter_shapes,
    quantize,
    save_checkpoint,
)
from gpt_finetune.lora import (
    LinearWithLoRA,
    LoRAConfig,
    LoRALayer,
    add_lora,
    lora_parameters,
    remove_lora,
    replace_linear_with_lora,
)
from gpt_finetune.merge import merge_lora

CONFIG = GPTConfig(vocab_size=90, context_length=64, emb_dim=32, n_heads=4, n_layers=2, qkv_bias=True)
IDS = torch.arange(96).reshape(2, 48) % 90
MODELS = {
    "untied": lambda: GPTModel(CONFIG),
    "tied": lambda: GPTModel(dataclasses.replace(CONFIG, tie_weights=True)),
    "classifier": lambda: GPTModel(dataclasses.replace(CONFIG, n_classes=3)),
    "explicit": lambda: GPTModel(CONFIG, explicit=True),
    "fast": lambda: GPTModelFast(CONFIG),
    "variant": lambda: GPTModel(
        dataclasses.replace(CONFIG, positions="rotary", norm="rmsnorm", n_kv_heads=2, qkv_bias=False)
    ),
}


def base(kind: str = "untied") -> GPTModel:
    model = MODELS[kind]().eval()
    initialize_gpt2(model, seed=1)
    return model


def trained(kind: str = "untied", rank: int = 4, alpha: float = 6.0) -> GPTModel:
    """A model whose adapters change what it computes."""
    model = base(kind)
    replace_linear_with_lora(model, rank=rank, alpha=alpha)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.normal_(std=0.1)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(IDS)


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_layer_computes_the_formula() -> None:
    torch.manual_seed(0)
    layer = LinearWithLoRA(nn.Linear(5, 7), rank=3, alpha=12)
    nn.init.normal_(layer.lora.B)
    x = torch.randn(2, 4, 5)
    weight = layer.linear.weight + 12 / 3 * (layer.lora.A @ layer.lora.B).t()
    torch.testing.assert_close(layer(x), x @ weight.t() + layer.linear.bias)


def test_draws_are_the_books_in_the_order_of_the_modules() -> None:
    model = base()
    shapes = [layer.weight.shape for layer in model.modules() if isinstance(layer, nn.Linear)]
    torch.manual_seed(123)
    replace_linear_with_lora(model, 16, 16)
    found = lora_parameters(model)
    torch.manual_seed(123)
    # Kaiming's uniform with a = sqrt(5): U(-1, 1) / sqrt(fan-in), and the fan-in of an (in, rank) matrix is the rank.
    expected = [torch.empty(n_in, 16).uniform_(-1 / math.sqrt(16), 1 / math.sqrt(16)) for _, n_in in shapes]
    assert len(found) == 2 * len(expected) == 2 * 13
    for A, B, drawn in zip(found[::2], found[1::2], expected, strict=True):
        torch.testing.assert_close(A.data, drawn)
        assert not B.any()


def test_names_follow_the_books_order() -> None:
    model = base("classifier")
    replace_linear_with_lora(model, 2, 2)
    head = [name for name in model.state_dict() if name.startswith("out_head")]
    assert head == ["out_head.linear.weight", "out_head.linear.bias", "out_head.lora.A", "out_head.lora.B"]


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_changes_until_b_is_trained(kind: str) -> None:
    model = base(kind)
    before = logits(model)
    replace_linear_with_lora(model, rank=4, alpha=8)
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=1e-6)


def test_124m_has_the_books_counts() -> None:
    config = dataclasses.replace(gpt2_config("124M"), tie_weights=False, n_classes=2)
    shapes = parameter_shapes(config)
    model = model_from_tensors(config, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert sum(p.numel() for p in model.parameters()) == 124_441_346
    model.requires_grad_(False)
    replace_linear_with_lora(model, rank=16, alpha=16)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2_666_528
    assert sum(p.numel() for p in lora_parameters(model)) == 2_666_528


def test_calling_twice_nests_nothing() -> None:
    model = trained()
    before = bits(model)
    replace_linear_with_lora(model, 4, 6)
    replace_linear_with_lora(model.out_head, 4, 6)
    assert_same_bits(bits(model), before)


def test_the_books_function_freezes_nothing() -> None:
    model = base()
    model.out_head.requires_grad_(False)
    replace_linear_with_lora(model, 4, 4)
    assert not model.out_head.linear.weight.requires_grad
    assert model.trf_blocks[0].att.W_query.linear.weight.requires_grad


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 2.0}, "rank must be a whole number"),
        ({"rank": True}, "rank must be a whole number"),
        ({"alpha": 0}, "alpha must be a finite number above 0, got 0"),
        ({"alpha": math.nan}, "alpha must be a finite number above 0"),
        ({"dropout": 1.0}, "dropout must be a number from 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_changes(given: dict[str, float], message: str) -> None:
    arguments = {"rank": 4, "alpha": 4, **given}
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**arguments)
    with pytest.raises(ValueError, match=message):
        LoRALayer(3, 3, **arguments)
    model = base()
    with pytest.raises(ValueError, match=message):
        replace_linear_with_lora(model, **arguments)
    assert lora_parameters(model) == []


@pytest.mark.parametrize("layers", [(), "W_query", ("",), ["W_query"]])
def test_layers_that_are_no_names_are_refused(layers: object) -> None:
    with pytest.raises(ValueError, match="layers must be None or a tuple"):
        LoRAConfig(layers=layers)


def test_dropout_works_in_training_only() -> None:
    model = base()
    add_lora(model, LoRAConfig(rank=4, dropout=0.5))
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.normal_()
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_no_dropout_draws_no_number() -> None:
    model = trained().train()
    state = torch.get_rng_state()
    logits(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", MODELS)
def test_add_lora_takes_the_blocks_layers_and_freezes_the_rest(kind: str) -> None:
    model = base(kind)
    names = add_lora(model)
    assert len(names) == (8 if kind == "fast" else 12)
    assert all(name.startswith("trf_blocks.") for name in names)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in lora_parameters(model)}
    assert all(isinstance(model.get_submodule(name), LinearWithLoRA) for name in names)


def test_layers_are_named_by_the_ends_of_their_names() -> None:
    model = base()
    names = add_lora(model, LoRAConfig(layers=("out_head", "1.att.W_value", "ff.layers.0")))
    assert names == [
        "trf_blocks.0.ff.layers.0", "trf_blocks.1.att.W_value", "trf_blocks.1.ff.layers.0", "out_head"
    ]


@pytest.mark.parametrize(
    ("layer", "nearest"), [("W_quer", "W_query"), ("query", "W_query"), ("ff.layer.0", "ff.layers.0"), ("tok_emb", "")]
)
def test_a_layer_that_is_not_there_is_refused_with_the_nearest(layer: str, nearest: str) -> None:
    model = base()
    with pytest.raises(ValueError, match=f"{layer!r}, but no linear layer's name ends so.*{nearest}"):
        add_lora(model, LoRAConfig(layers=("W_key", layer)))
    assert all(p.requires_grad for p in model.parameters())
    assert lora_parameters(model) == []


def test_a_model_with_lora_gets_no_second() -> None:
    model = base()
    add_lora(model, LoRAConfig(layers=("out_proj",)))
    with pytest.raises(ValueError, match=r"holds LoRA already \(trf_blocks.0.att.out_proj\)"):
        add_lora(model, LoRAConfig(layers=("W_key",)))


def test_training_changes_the_adapters_and_what_was_thawed_alone() -> None:
    model = base("classifier")
    before = bits(model)
    add_lora(model)
    model.out_head.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(IDS)[:, -1], torch.tensor([0, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    remove_lora(model)
    changed = [name for name, tensor in bits(model).items() if not torch.equal(tensor, before[name])]
    assert changed == ["out_head.weight", "out_head.bias"]


@pytest.mark.parametrize("kind", MODELS)
def test_remove_gives_the_base_back(kind: str) -> None:
    model = base(kind)
    before, expected = bits(model), logits(model)
    replace_linear_with_lora(model, 4, 4)
    remove_lora(model)
    assert_same_bits(bits(model), before)
    assert torch.equal(logits(model), expected)


def test_without_lora_there_is_nothing_to_remove_or_merge() -> None:
    for function in (remove_lora, merge_lora):
        with pytest.raises(ValueError, match="the model holds no LoRA"):
            function(base())


@pytest.mark.parametrize("kind", MODELS)
def test_merged_and_unmerged_compute_the_same_and_unmerging_is_exact(kind: str) -> None:
    model = trained(kind)
    before, expected = bits(model), logits(model)
    linears = [model.out_head.linear, *(layer.linear for layer in model.modules() if isinstance(layer, LinearWithLoRA))]
    merged = merge_lora(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert model.out_head is linears[0]
    assert set(linears) <= set(model.modules())
    assert bits(model).keys() == bits(base(kind)).keys()
    merged.unmerge()
    assert_same_bits(bits(model), before)
    assert torch.equal(logits(model), expected)
    remove_lora(model)
    assert_same_bits(bits(model), bits(base(kind)))


@pytest.mark.parametrize("kind", ["untied", "tied", "classifier"])
def test_a_merged_model_can_be_saved(kind: str, tmp_path: Path) -> None:
    model = trained(kind)
    expected = logits(model)
    with pytest.raises(ValueError, match=r"lora\.A|out_head"):
        save_checkpoint(tmp_path / "wrapped", model)
    with merge_lora(model):
        save_checkpoint(tmp_path / "merged", model)
    again = load_checkpoint(tmp_path / "merged").model
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-5)


def test_a_merged_model_runs_on_the_fast_paths() -> None:
    model = trained()
    expected = [token.id for token in generate_tokens(model, [1, 2, 3], max_new_tokens=20)]
    with pytest.raises(ValueError, match="quantize takes a GPTModel whose layers"):
        quantize(model, "float32")
    with merge_lora(model):
        small = quantize(model, "float32")
        assert [token.id for token in generate_tokens(model, [1, 2, 3], max_new_tokens=20)] == expected
    torch.testing.assert_close(logits(small), logits(model), atol=1e-5, rtol=1e-5)


def test_merging_a_tied_head_leaves_the_embedding_and_unties_it_meanwhile() -> None:
    model = trained("tied")
    embedding = model.tok_emb.weight
    before = embedding.detach().clone()
    with merge_lora(model):
        assert model.tok_emb.weight is embedding
        assert torch.equal(embedding, before)
        assert not torch.equal(model.out_head.weight, embedding)
        assert not model.config.tie_weights
    assert model.config.tie_weights
    assert model.out_head.linear.weight is embedding


def test_a_tied_head_without_lora_stays_tied_when_the_blocks_are_merged(tmp_path: Path) -> None:
    model = base("tied")
    add_lora(model)
    with merge_lora(model):
        assert model.config.tie_weights
        assert model.out_head.weight is model.tok_emb.weight
        save_checkpoint(tmp_path / "merged", model)


def test_training_goes_on_after_an_evaluation_with_merged_adapters() -> None:
    model = base()
    add_lora(model)
    before = lora_parameters(model)
    with contextlib.suppress(KeyError), merge_lora(model):
        model.train()
        raise KeyError
    assert list(map(id, lora_parameters(model))) == list(map(id, before))
    assert all(module.training for module in model.modules())


def test_a_merge_can_be_left_as_it_is() -> None:
    model = trained()
    expected = logits(model)
    merge_lora(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert lora_parameters(model) == []


def test_unmerging_twice_or_after_a_replacement_is_refused() -> None:
    model = trained()
    merged = merge_lora(model)
    with merged:
        merged.unmerge()
    with pytest.raises(ValueError, match="unmerged already"):
        merged.unmerge()
    merged = merge_lora(model)
    model.trf_blocks[1].att.W_key = nn.Linear(32, 32)
    before = bits(model)
    with pytest.raises(ValueError, match=r"trf_blocks.1.att.W_key was replaced after the merge"):
        merged.unmerge()
    assert_same_bits(bits(model), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_adapters_take_the_weights_dtype(dtype: torch.dtype) -> None:
    model = base().to(dtype)
    add_lora(model)
    assert {p.dtype for p in lora_parameters(model)} == {dtype}
    assert logits(model).dtype == dtype
    with merge_lora(model):
        assert logits(model).dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_adapters_are_drawn_on_the_cpu_and_live_beside_the_weights() -> None:
    torch.manual_seed(9)
    expected = LoRALayer(4, 4, 2, 2).A
    linear = nn.Linear(4, 4, device="cuda")
    torch.manual_seed(9)
    assert torch.equal(LinearWithLoRA(linear, 2, 2).lora.A, expected.cuda())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_moves_while_it_is_merged_unmerges_exactly(kind: str) -> None:
    model = trained(kind).cuda()
    before = {name: tensor.cpu() for name, tensor in bits(model).items()}
    with merge_lora(model):
        model.cpu()
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert_same_bits(bits(model), before)
