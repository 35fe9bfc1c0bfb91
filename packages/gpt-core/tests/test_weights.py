"""Weights: what is in the file, by safetensors' own reader, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt_core.checkpoint import load_checkpoint, save_checkpoint
from gpt_core.config import GPTConfig
from gpt_core.durable import CheckpointError
from gpt_core.model import GPTModel, GPTModelFast
from gpt_core.weights import (
    _entries,
    _read_tensors,
    load_weights,
    model_from_tensors,
    parameter_shapes,
    save_weights,
    tensors_to_save,
)

SIZES: dict[str, Any] = {"vocab_size": 11, "context_length": 4, "emb_dim": 4, "n_heads": 2, "n_layers": 2}
CONFIG = GPTConfig(**SIZES)
LATER: dict[str, Any] = {"n_kv_heads": 1, "sliding_window": 2, "positions": "rotary", "norm": "rmsnorm"}
CLASSES: dict[str, Any] = {"n_classes": 2}
CPU = torch.device("cpu")


def make_model(**changes: Any) -> GPTModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPTModel(GPTConfig(**{**SIZES, **changes}))


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True}, {"drop_rate": 0.3}, LATER, CLASSES])
def test_safetensors_own_reader_finds_the_state_dict(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = make_model(**changes)
    save_weights(tensors_to_save(model), tmp_path / "w")
    found, expected = load_file(tmp_path / "w"), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not [name for name in found if name.endswith("mask")]
    with safetensors.safe_open(tmp_path / "w", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_loading_undoes_saving_bit_for_bit_in_every_float_type(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    save_weights(tensors_to_save(model), tmp_path / "w")
    loaded = load_weights(tmp_path / "w", CONFIG, device=CPU)
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize("changes", [{"qkv_bias": True}, LATER, CLASSES], ids=["gpt2", "later", "classes"])
def test_a_loaded_model_computes_and_learns_like_the_saved_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, ids = make_model(**changes), torch.tensor([[1, 2, 3]])
    save_weights(tensors_to_save(model), tmp_path / "w")
    loaded = load_weights(tmp_path / "w", model.config, device=CPU)
    assert torch.equal(loaded(ids), model(ids))
    for each in (loaded, model):
        each(ids).square().sum().backward()
    for new, old in zip(loaded.parameters(), model.parameters(), strict=True):
        assert new.requires_grad
        assert new.grad is not None
        assert old.grad is not None
        assert torch.equal(new.grad, old.grad)


def test_a_loaded_model_does_not_depend_on_the_file(tmp_path: Path) -> None:
    model = make_model()
    save_weights(tensors_to_save(model), tmp_path / "w")
    loaded = load_weights(tmp_path / "w", CONFIG, device=CPU)
    size = (tmp_path / "w").stat().st_size
    with (tmp_path / "w").open("r+b") as file:
        file.write(b"\0" * size)
    assert torch.equal(loaded.tok_emb.weight, model.tok_emb.weight)


def test_tensors_of_any_order_and_metadata_are_read_where_they_lie(tmp_path: Path) -> None:
    tensors = {name: tensor.double() for name, tensor in reversed(tensors_to_save(make_model()).items())}
    tensors["final_norm.scale"] = tensors["final_norm.scale"].bfloat16()
    save_file(tensors, tmp_path / "w", metadata={"format": "pt", "é": "x" * 1001})
    loaded, expected = load_weights(tmp_path / "w", CONFIG, device=CPU).state_dict(), load_file(tmp_path / "w")
    assert all(torch.equal(loaded[name], expected[name]) for name in tensors)


def test_a_tied_head_is_left_out_and_tied_again(tmp_path: Path) -> None:
    model = make_model(tie_weights=True)
    save_weights(tensors_to_save(model), tmp_path / "w")
    assert "out_head.weight" not in load_file(tmp_path / "w")
    loaded = load_weights(tmp_path / "w", model.config, device=CPU)
    assert loaded.out_head.weight is loaded.tok_emb.weight
    assert loaded.n_parameters == model.n_parameters
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids), model(ids))


def test_a_head_that_should_be_tied_but_differs_is_not_thrown_away() -> None:
    model = make_model(tie_weights=True)
    model.out_head.weight = nn.Parameter(model.tok_emb.weight.detach() + 1)
    with pytest.raises(ValueError, match=r"tie_weights, but out_head\.weight differs"):
        tensors_to_save(model)


def test_a_tied_model_with_nan_in_it_is_saved_like_any_other(tmp_path: Path) -> None:
    model = make_model(tie_weights=True)
    with torch.no_grad():
        model.tok_emb.weight[0, 0] = torch.nan
    save_weights(tensors_to_save(model), tmp_path / "w")
    assert load_file(tmp_path / "w")["tok_emb.weight"].isnan().sum() == 1


def test_a_head_tied_by_hand_is_saved_as_a_copy(tmp_path: Path) -> None:
    model = make_model()
    model.out_head.weight = model.tok_emb.weight
    save_weights(tensors_to_save(model), tmp_path / "w")
    assert torch.equal(load_file(tmp_path / "w")["out_head.weight"], model.tok_emb.weight)


def test_tensors_that_are_not_contiguous_are_saved_as_they_are_seen(tmp_path: Path) -> None:
    model = make_model()
    weight = model.tok_emb.weight.detach().T.contiguous().T
    model.tok_emb.weight = nn.Parameter(weight)
    assert not model.tok_emb.weight.is_contiguous()
    save_weights(tensors_to_save(model), tmp_path / "w")
    assert torch.equal(load_file(tmp_path / "w")["tok_emb.weight"], weight)


def test_a_model_that_could_not_be_loaded_again_is_not_saved() -> None:
    classifier = make_model()
    classifier.out_head = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"not a GPTModel of its config: .*out_head\.bias"):
        tensors_to_save(classifier)
    with pytest.raises(ValueError, match=r"GPTModelFast is not a GPTModel of its config: .*att\.qkv\.weight"):
        tensors_to_save(GPTModelFast(CONFIG))
    with pytest.raises(ValueError, match="saves a GPTModel, got a Linear"):
        tensors_to_save(nn.Linear(2, 2))


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_head_replaced_by_hand_is_refused_with_the_way_to_classify(is_tied: bool) -> None:
    classifier = make_model(tie_weights=is_tied)
    classifier.out_head = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"to classify, build the model with GPTConfig\(\.\.\., n_classes=3") as caught:
        tensors_to_save(classifier)
    assert ("tie_weights=False" in str(caught.value)) == is_tied


def test_a_vocabulary_that_was_resized_by_hand_is_not_taken_for_classes() -> None:
    model = make_model()
    model.tok_emb, model.out_head = nn.Embedding(12, 4), nn.Linear(4, 12, bias=False)
    with pytest.raises(ValueError, match=r"tok_emb\.weight has shape \(12, 4\), expected \(11, 4\)$"):
        tensors_to_save(model)


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors_to_save(make_model()).items() if key != name}


QUERY = "trf_blocks.1.att.W_query.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without(QUERY), r"1 of 31 expected tensors are missing \(trf_blocks\.1\.att\.W_query\.weight\)"),
        (
            {**without(QUERY), "trf_blocks.1.attn.W_query.weight": torch.zeros(4, 4)},
            r"nearest to trf_blocks\.1\.attn\.W_query\.weight is trf_blocks\.1\.att\.W_query\.weight",
        ),
        ({**without(""), "extra": torch.zeros(1)}, r"1 tensors are not expected \(extra"),
        (
            {**without(""), QUERY: torch.zeros(4, 5)},
            r"W_query\.weight has shape \(4, 5\), expected .*\(4, 4\)",
        ),
        ({**without(""), QUERY: torch.zeros(4, 4, dtype=torch.int32)}, "has a dtype that is no float"),
        (
            {**without(""), "tok_emb.weight": torch.zeros(12, 4)},
            r"tok_emb\.weight has shape \(12, 4\), expected",
        ),
        (without("pos_emb.weight"), r"pos_emb\.weight is missing, found final_norm\.scale, "),
        ({"wte.weight": torch.zeros(11, 4)}, r"tok_emb\.weight is missing, found wte\.weight"),
        ({}, r"tok_emb\.weight is missing, found no tensor"),
    ],
)
def test_tensors_of_another_model_are_refused_by_name(
    tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "w", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path / "w", CONFIG, device=CPU)


def test_floats_that_a_reader_would_refuse_are_not_saved() -> None:
    model = make_model()
    model.final_norm.scale = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"final_norm\.scale has a dtype that is no float of 16 to 64 bits"):
        tensors_to_save(model)


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "tie_weights": True}, LATER, CLASSES])
def test_parameter_shapes_are_those_in_the_file_in_the_models_order(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = make_model(**changes)
    save_weights(tensors_to_save(model), tmp_path / "w")
    state, shapes = torch.get_rng_state(), parameter_shapes(model.config)
    assert torch.equal(torch.get_rng_state(), state)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "w").items()}
    assert list(shapes) == [name for name, _ in model.named_parameters()]
    assert parameter_shapes({**SIZES, **changes}) == shapes


def test_shapes_of_a_model_that_no_memory_would_hold_are_told() -> None:
    shapes = parameter_shapes({**SIZES, "vocab_size": 10**9, "emb_dim": 10**6})
    assert shapes["tok_emb.weight"] == (10**9, 10**6)


@pytest.mark.parametrize("changes", [{}, {"tie_weights": True}, LATER, CLASSES])
def test_a_model_from_tensors_has_them_as_its_parameters(changes: dict[str, Any]) -> None:
    model, ids = make_model(**{"drop_rate": 0.5, **changes}), torch.tensor([[1, 2, 3]])
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    made = model_from_tensors(model.config, tensors)
    assert torch.equal(made(ids), model.eval()(ids))
    assert not any(module.training for module in made.modules())
    assert all(parameter.requires_grad for parameter in made.parameters())
    assert {name: p.data_ptr() for name, p in made.named_parameters()} == {
        name: tensor.data_ptr() for name, tensor in tensors.items()}
    assert (made.out_head.weight is made.tok_emb.weight) == model.config.tie_weights


def test_a_model_from_tensors_draws_nothing_and_keeps_each_dtype() -> None:
    tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in parameter_shapes(CONFIG).items()}
    tensors["final_norm.scale"] = torch.ones(4)
    state = torch.get_rng_state()
    made = model_from_tensors(SIZES, tensors)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: tensor.dtype for name, tensor in made.state_dict().items()} == {
        name: tensor.dtype for name, tensor in tensors.items()}


def test_a_model_from_other_tensors_is_refused_by_name() -> None:
    renamed = {name.replace("att.", "attn."): tensor for name, tensor in without("").items()}
    for tensors, message in (
        (renamed, r"10 of 31 expected tensors are missing .*nearest to trf_blocks\.0\.attn\S+ is trf_blocks\.0\.att\."),
        (without("tok_emb.weight"), r"tok_emb\.weight is missing, found final_norm\.scale"),
        ({**without(""), QUERY: torch.zeros(5, 4)}, r"W_query\.weight has shape \(5, 4\), expected .*\(4, 4\)"),
        ({**without(""), QUERY: torch.zeros(4, 4, dtype=torch.int64)}, "has a dtype that is no float"),
    ):
        with pytest.raises(ValueError, match=f"the tensors are not those of the config: .*{message}"):
            model_from_tensors(CONFIG, tensors)
    with pytest.raises(ValueError, match=r"1 tensors are not expected \(out_head\.weight"):
        model_from_tensors({**SIZES, "tie_weights": True}, without(""))


@pytest.mark.parametrize("name", ["vocab_size", "context_length", "emb_dim", "n_layers", "n_classes"])
def test_a_config_of_absurd_size_is_refused_before_anything_is_built(tmp_path: Path, name: str) -> None:
    save_weights(tensors_to_save(make_model(**CLASSES)), tmp_path / "w")
    with pytest.raises(CheckpointError, match=r"has shape|are too few"):
        load_weights(tmp_path / "w", GPTConfig(**{**SIZES, **CLASSES, name: 2 * 10**18}), device=CPU)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 8, b"<!DOCTYPE html>", (2**62).to_bytes(8, "little"), bytes(8)]
)
def test_a_file_that_is_no_safetensors_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"w\.safetensors cannot be read"):
        load_weights(tmp_path / "w.safetensors", CONFIG, device=CPU)


def test_a_file_that_is_cut_while_it_is_read_is_refused_by_name(tmp_path: Path) -> None:
    save_weights(tensors_to_save(make_model()), tmp_path / "w")
    entries = _entries(tmp_path / "w")
    with (tmp_path / "w").open("r+b") as file:
        file.truncate(max(entry.start for entry in entries.values()))
    with pytest.raises(OSError, match="the file ends within "):
        _read_tensors(tmp_path / "w", entries, CPU)


def test_the_writer_refuses_what_its_reader_would(tmp_path: Path) -> None:
    model = make_model()
    model.config = GPTConfig(**{**SIZES, "n_layers": 3})
    with pytest.raises(ValueError, match=r"missing \(trf_blocks\.2\."):
        save_checkpoint(tmp_path / "x", model)
    assert not list(tmp_path.iterdir())


def test_loading_draws_no_random_number(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", make_model())
    state = torch.get_rng_state()
    load_checkpoint(tmp_path / "x")
    assert torch.equal(torch.get_rng_state(), state)


def test_the_header_is_json_that_names_every_tensor_once(tmp_path: Path) -> None:
    save_weights(tensors_to_save(make_model()), tmp_path / "w")
    data = (tmp_path / "w").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header.keys() - {"__metadata__"} == make_model().state_dict().keys()


def test_a_checkpoint_says_what_is_not_gpt2s_and_a_gpt2s_says_nothing_new(tmp_path: Path) -> None:
    written = {}
    for name, changes in (("plain", {}), ("later", LATER), ("classes", CLASSES)):
        model = make_model(**changes)
        save_checkpoint(tmp_path / name, model)
        written[name] = json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))["model"]
        assert load_checkpoint(tmp_path / name).model.config == model.config
    assert written["plain"].keys() == {*SIZES, "drop_rate", "qkv_bias", "tie_weights"}
    assert written["later"] == {**written["plain"], **LATER}
    assert written["classes"] == {**written["plain"], **CLASSES}


def test_weights_of_another_variant_are_refused_by_name(tmp_path: Path) -> None:
    save_weights(tensors_to_save(make_model()), tmp_path / "w")
    for changes, message in (
        ({"n_kv_heads": 1}, r"W_key\.weight has shape \(4, 4\), expected .*\(2, 4\)"),
        ({"positions": "rotary"}, r"1 tensors are not expected \(pos_emb\.weight"),
        ({"norm": "rmsnorm"}, r"5 tensors are not expected \(final_norm\.shift, "),
        ({"n_classes": 2}, r"out_head\.weight has shape \(11, 4\), expected \(2, 4\)"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_weights(tmp_path / "w", GPTConfig(**SIZES, **changes), device=CPU)
    save_weights(tensors_to_save(make_model(positions="rotary")), tmp_path / "w")
    with pytest.raises(CheckpointError, match=r"pos_emb\.weight is missing"):
        load_weights(tmp_path / "w", CONFIG, device=CPU)
