"""Adapters in files: what is saved comes back, bit for bit, and what does not fit changes nothing."""

import contextlib
import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gpt_core import GPTConfig, GPTModel, GPTModelFast, initialize_gpt2
from gpt_finetune.adapter import load_adapter, save_adapter
from gpt_finetune.lora import (
    LinearWithLoRA,
    LoRAConfig,
    add_lora,
    lora_parameters,
    remove_lora,
    replace_linear_with_lora,
)
from gpt_finetune.merge import merge_lora
from gpt_train import DataError

CONFIG = GPTConfig(vocab_size=90, context_length=32, emb_dim=32, n_heads=4, n_layers=2, qkv_bias=True)
TIED = dataclasses.replace(CONFIG, tie_weights=True)
CLASSIFIER = dataclasses.replace(CONFIG, n_classes=3)
IDS = torch.arange(24).reshape(2, 12) * 3
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
BLOCK = "base_model.model.transformer.h.0"


def base(config: GPTConfig = CONFIG) -> GPTModel:
    model = GPTModel(config).eval()
    initialize_gpt2(model, seed=1)
    return model


def adapted(config: GPTConfig = CONFIG, lora: LoRAConfig | None = None) -> GPTModel:
    model = base(config)
    torch.manual_seed(0)
    add_lora(model, lora or LoRAConfig(rank=4, alpha=6))
    return trained(model)


@torch.no_grad()
def trained(model: GPTModel) -> GPTModel:
    """Change whatever may be trained."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape).to(parameter.dtype), alpha=0.1)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(IDS)


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(found: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    assert list(found.state_dict()) == list(expected)
    assert [name for name, tensor in found.state_dict().items() if not torch.equal(tensor, expected[name])] == []


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / SETTINGS).read_bytes())


@pytest.mark.parametrize("config", [CONFIG, TIED, CLASSIFIER], ids=["untied", "tied", "classifier"])
@pytest.mark.parametrize(
    "layers",
    [None, ("W_query", "W_value"), ("W_key",), ("ff.layers.0", "1.att.out_proj"), ("W_query", "1.att.W_value")],
    ids=str,
)
def test_adapters_come_back_bit_for_bit(config: GPTConfig, layers: tuple[str, ...] | None, tmp_path: Path) -> None:
    model = adapted(config, LoRAConfig(rank=4, alpha=6, dropout=0.25, layers=layers))
    save_adapter(tmp_path / "adapter", model)
    again = base(config)
    state = torch.get_rng_state()
    names = load_adapter(tmp_path / "adapter", again)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_bits(again, bits(model))
    assert torch.equal(logits(again), logits(model))
    assert set(names) == {name for name, module in model.named_modules() if isinstance(module, LinearWithLoRA)}
    assert {p.requires_grad for p in lora_parameters(again)} == {True}
    assert sum(p.requires_grad for p in again.parameters()) == len(lora_parameters(again))
    assert {module.lora.dropout.p for module in again.modules() if isinstance(module, LinearWithLoRA)} == {0.25}
    save_adapter(tmp_path / "again", again)
    for name in (WEIGHTS, SETTINGS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_new_adapters_come_back_as_the_zero_they_are(tmp_path: Path) -> None:
    model = base()
    add_lora(model, LoRAConfig(rank=3, alpha=3, layers=("W_query", "W_key")))
    save_adapter(tmp_path / "adapter", model)
    again = base()
    load_adapter(tmp_path / "adapter", again)
    assert_same_bits(again, bits(model))


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_the_books_adapters_come_back_with_the_heads(config: GPTConfig, tmp_path: Path) -> None:
    model = base(config)
    model.requires_grad_(False)
    replace_linear_with_lora(model, rank=4, alpha=4)
    save_adapter(tmp_path / "adapter", trained(model))
    again = base(config)
    load_adapter(tmp_path / "adapter", again)
    assert_same_bits(again, bits(model))
    assert (again.out_head.linear.weight is again.tok_emb.weight) == config.tie_weights


def test_adapters_of_unlike_scale_in_one_block_compute_the_same(tmp_path: Path) -> None:
    model = base()
    add_lora(model, LoRAConfig(rank=2, alpha=7, layers=("W_query", "0.ff.layers.0")))
    replace_linear_with_lora(model.trf_blocks, rank=5, alpha=3)
    for module in model.modules():
        if isinstance(module, LinearWithLoRA):
            module.linear.requires_grad_(False)
    save_adapter(tmp_path / "adapter", trained(model))
    again = base()
    load_adapter(tmp_path / "adapter", again)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_values_take_the_models_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = base().to(dtype)
    add_lora(model, LoRAConfig(rank=2))
    save_adapter(tmp_path / "adapter", trained(model))
    again = base().to(dtype)
    load_adapter(tmp_path / "adapter", again)
    assert_same_bits(again, bits(model))
    wide = base()
    load_adapter(tmp_path / "adapter", wide)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


def test_only_adapters_are_in_the_file(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    model = adapted()
    save_adapter(tmp_path / "adapter", model)
    tensors = safetensors.torch.load_file(tmp_path / "adapter" / WEIGHTS)
    assert all(".lora_" in name for name in tensors)
    size = (tmp_path / "adapter" / WEIGHTS).stat().st_size
    whole = 4 * sum(parameter.numel() for parameter in base().parameters())
    record_property("adapter_bytes", size)
    record_property("model_bytes", whole)
    # B of queries, keys and values is two thirds zeros, the header takes 130 bytes a tensor.
    adapters = 4 * sum(parameter.numel() for parameter in lora_parameters(model))
    assert adapters < size < 1.5 * adapters + 4000 < whole


def test_the_settings_are_pefts(tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", adapted(), base="some/base")
    found = settings(tmp_path / "adapter")
    qkv = [f"transformer.h.{n}.attn.c_attn" for n in range(2)]
    assert {key: found[key] for key in ("peft_type", "task_type", "bias", "fan_in_fan_out", "r", "lora_alpha")} == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "fan_in_fan_out": True, "r": 4, "lora_alpha": 6
    }
    assert found["base_model_name_or_path"] == "some/base"
    assert found["rank_pattern"] == dict.fromkeys(qkv, 12)
    assert found["alpha_pattern"] == dict.fromkeys(qkv, 18)
    assert len(found["target_modules"]) == 8
    assert found["modules_to_save"] is None


@pytest.mark.parametrize("parts", [("out_head",), ("final_norm",), ("out_head", "final_norm", "trf_blocks.1.norm1")])
def test_what_was_trained_in_full_comes_back_with_a_classifier(parts: tuple[str, ...], tmp_path: Path) -> None:
    model = adapted(CLASSIFIER)
    for part in parts:
        model.get_submodule(part).requires_grad_(True)
    trained(model)
    model.out_head.bias.data += 1.5
    save_adapter(tmp_path / "adapter", model)
    again = base(CLASSIFIER)
    again.out_head.bias.data += 1.5 if "out_head" not in parts else 9.0  # a new head replaces any other
    load_adapter(tmp_path / "adapter", again)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=0)
    assert not again.out_head.bias.any()
    saved = {*parts, "final_norm"}  # which takes up the bias
    names = {name.rpartition(".")[0] for name, p in again.named_parameters() if p.requires_grad}
    assert {name for name in names if not name.endswith("lora")} == saved
    save_adapter(tmp_path / "again", again)
    third = base(CLASSIFIER)
    load_adapter(tmp_path / "again", third)
    assert torch.equal(logits(third), logits(again))


def test_a_classifier_whose_head_has_adapters_comes_back(tmp_path: Path) -> None:
    model = base(CLASSIFIER)
    model.requires_grad_(False)
    model.out_head.bias.data += 1.5
    expected = bits(model)
    replace_linear_with_lora(model, 2, 4)
    save_adapter(tmp_path / "adapter", trained(model))
    again = base(CLASSIFIER)
    again.load_state_dict(expected)
    load_adapter(tmp_path / "adapter", again)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=0)


def test_a_head_put_in_by_hand_is_a_classifiers(tmp_path: Path) -> None:
    model = adapted()
    model.out_head = nn.Linear(32, 2)
    save_adapter(tmp_path / "adapter", model)
    assert settings(tmp_path / "adapter")["task_type"] == "SEQ_CLS"
    again = base()
    again.out_head = nn.Linear(32, 2)
    load_adapter(tmp_path / "adapter", again)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=0)


def test_an_untied_head_that_was_trained_comes_back(tmp_path: Path) -> None:
    model = adapted()
    model.out_head.requires_grad_(True)
    save_adapter(tmp_path / "adapter", trained(model))
    again = base()
    load_adapter(tmp_path / "adapter", again)
    assert_same_bits(again, bits(model))
    with pytest.raises(DataError, match="head is the embedding's matrix; build it with tie_weights=False"):
        load_adapter(tmp_path / "adapter", base(TIED))


def test_a_file_that_changes_a_head_whose_bias_cannot_be_moved_is_refused(tmp_path: Path) -> None:
    model = adapted(CLASSIFIER)
    model.out_head.requires_grad_(True)
    save_adapter(tmp_path / "adapter", model)
    tensors = safetensors.torch.load_file(tmp_path / "adapter" / WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if "ln_f" not in name}  # PEFT saves what was asked for
    (tmp_path / "adapter" / WEIGHTS).write_bytes(safetensors.torch.save(kept, metadata={"format": "pt"}))
    again = base(CLASSIFIER)
    with torch.no_grad():
        again.out_head.weight[1] = again.out_head.weight[0]
        again.out_head.bias.copy_(torch.tensor([1.0, -1.0, 0.0]))
    before = bits(again)
    with pytest.raises(DataError, match=r"adapter changes the head, .* set out_head.bias to zero first"):
        load_adapter(tmp_path / "adapter", again)
    assert_same_bits(again, before)
    again.out_head.bias.data.zero_()
    load_adapter(tmp_path / "adapter", again)


def test_a_head_whose_bias_cannot_be_moved_is_refused(tmp_path: Path) -> None:
    model = adapted(CLASSIFIER)
    model.out_head.requires_grad_(True)
    with torch.no_grad():
        model.out_head.weight[1] = model.out_head.weight[0]
        model.out_head.bias.copy_(torch.tensor([1.0, -1.0, 0.0]))
    with pytest.raises(ValueError, match="rows of its weight depend on one another"):
        save_adapter(tmp_path / "adapter", model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "thaw", ["tok_emb", "pos_emb", "trf_blocks.1.att.out_proj.linear", "trf_blocks.0.ff.layers.0", "out_head"]
)
def test_what_the_layout_cannot_hold_is_refused(thaw: str, tmp_path: Path) -> None:
    model = adapted(TIED, LoRAConfig(layers=("out_proj",)))
    model.get_submodule(thaw).requires_grad_(True)
    with pytest.raises(ValueError, match=r"requires a gradient, but .* save the whole model with save_checkpoint"):
        save_adapter(tmp_path / "adapter", model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: GPTModelFast(CONFIG), "those of a GPTModel, got a GPTModelFast"),
        (lambda: nn.Linear(2, 2), "got a Linear"),
        (lambda: GPTModel(dataclasses.replace(CONFIG, positions="rotary")), "no positions='rotary'"),
    ],
)
def test_other_models_are_refused(model: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", adapted())
    with pytest.raises(ValueError, match=message):
        save_adapter(tmp_path / "new", model())
    with pytest.raises(ValueError, match=message):
        load_adapter(tmp_path / "adapter", model())


def test_a_layer_that_gpt2_has_not_is_refused(tmp_path: Path) -> None:
    model = base()
    model.extra = nn.Linear(32, 2)
    add_lora(model)
    with pytest.raises(ValueError, match="extra has LoRA, but Hugging Face's GPT-2 has no such layer"):
        save_adapter(tmp_path / "adapter", model)


def test_a_model_without_lora_or_merged_saves_none_and_one_with_lora_loads_none(tmp_path: Path) -> None:
    model = adapted()
    save_adapter(tmp_path / "adapter", model)
    with pytest.raises(ValueError, match="holds LoRA already"):
        load_adapter(tmp_path / "adapter", model)
    with merge_lora(model), pytest.raises(ValueError, match="or it is merged"):
        save_adapter(tmp_path / "new", model)
    remove_lora(model)
    with pytest.raises(ValueError, match="the model holds no LoRA"):
        save_adapter(tmp_path / "new", model)
    load_adapter(tmp_path / "adapter", model)


def test_what_is_there_is_not_replaced_and_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    save_adapter(tmp_path / "empty", adapted())
    before = (tmp_path / "empty" / WEIGHTS).read_bytes()
    with pytest.raises(ValueError, match="is there already and is not replaced; choose a new name"):
        save_adapter(tmp_path / "empty", adapted(TIED))
    assert (tmp_path / "empty" / WEIGHTS).read_bytes() == before

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(tmp_path / "deep" / "new", adapted())
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_leftover_is_removed_and_no_adapter_can_have_the_name_of_one(tmp_path: Path) -> None:
    (tmp_path / "adapter.tmp-4194999").mkdir()  # Linux has no process of that number
    for name in ("other.tmp-4194999", "adapter.tmp-mine"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"tmp-4194999 cannot be an adapter, because names like \*.tmp-1 mark"):
        save_adapter(tmp_path / "adapter.tmp-4194999", adapted())
    save_adapter(tmp_path / "adapter", adapted())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "adapter.tmp-mine", "other.tmp-4194999"]


def test_another_writers_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one comes between looking for leftovers and beginning: a process of our number in another container."""
    other = tmp_path / f"adapter.tmp-{os.getpid()}"

    def arrive(*_: object) -> None:
        other.mkdir()
        (other / WEIGHTS).write_bytes(b"half")

    monkeypatch.setattr("gpt_finetune.adapter.remove_abandoned", arrive)
    with pytest.raises(FileExistsError):
        save_adapter(tmp_path / "adapter", adapted())
    assert (other / WEIGHTS).read_bytes() == b"half"


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot force a folder to the disk")
def test_files_their_folder_and_its_parent_are_forced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[int] = []
    fsync = os.fsync

    def recording(descriptor: int) -> None:
        forced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    folder = tmp_path / "adapter"
    save_adapter(folder, adapted())
    assert forced == [path.stat().st_ino for path in (folder / SETTINGS, folder / WEIGHTS, folder, tmp_path)]


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
Q = f"{BLOCK}.attn.c_attn.lora_A.weight"


def _put(values: dict[str, Any], **given: Any) -> None:
    values.update(given)


DAMAGED: dict[str, tuple[Change, str]] = {
    "rslora": (lambda c, t: _put(c, use_rslora=True), "use_rslora=True, which is more than plain LoRA; merge it"),
    "dora": (lambda c, t: _put(c, use_dora=True), "use_dora=True"),
    "unknown": (lambda c, t: _put(c, new_idea={"a": 1}), "new_idea={'a': 1}, which is more than plain LoRA"),
    "other type": (lambda c, t: _put(c, peft_type="IA3"), "peft_type='IA3', but only 'LORA' can be read"),
    "bias": (lambda c, t: _put(c, bias="all"), "bias='all', but only 'none' can be read"),
    "pissa": (lambda c, t: _put(c, init_lora_weights="pissa_niter_4"), "init_lora_weights='pissa_niter_4'"),
    "list": (lambda c, t: _put(c, peft_type=["LORA"]), r"peft_type=\['LORA'\]"),
    "rank text": (lambda c, t: _put(c, r="4"), "the rank r must be a whole number"),
    "rank": (lambda c, t: _put(c, r=5), r"has shape \(4, 32\), but model and adapter_config.json ask for \(5, 32\)"),
    "alpha": (lambda c, t: _put(c, lora_alpha=float("inf")), "lora_alpha must be a finite number above 0, got inf"),
    "long alpha": (lambda c, t: _put(c, lora_alpha=10**400), "lora_alpha must be a finite number"),
    "dropout": (lambda c, t: _put(c, lora_dropout=1.5), "lora_dropout must be a number from 0"),
    "pattern": (lambda c, t: _put(c, rank_pattern=[1]), "rank_pattern must be an object"),
    "regular expression": (lambda c, t: _put(c, alpha_pattern={"(a+)+$": 1}), "no layer's dotted name"),
    "half": (lambda c, t: t.pop(Q), "c_attn.lora_A.weight is missing, but its other half is there"),
    "shape": (lambda c, t: _put(t, **{Q: torch.zeros(12, 31)}), r"has shape \(12, 31\)"),
    "vector": (lambda c, t: _put(t, **{Q: torch.zeros(12)}), r"has shape \(12,\)"),
    "dtype": (lambda c, t: _put(t, **{Q: torch.zeros(12, 32, dtype=torch.int32)}), "is torch.int32, but adapters are"),
    "prefix": (lambda c, t: _put(t, **{"lora_A.weight": torch.zeros(1)}), "does not begin with base_model.model."),
    "block": (lambda c, t: _put(t, **{Q.replace("h.0", "h.2"): torch.zeros(12, 32)}), "no tensor of an adapter for"),
    "typo": (lambda c, t: _put(t, **{Q.replace("lora_A", "lora_C"): t.pop(Q)}), "nearest is transformer.h.0.attn"),
    "embedding": (
        lambda c, t: _put(t, **{"base_model.model.transformer.wte.lora_embedding_A": torch.zeros(2, 2)}),
        "wte.lora_embedding_A' is no tensor of an adapter",
    ),
    "twice": (lambda c, t: _put(t, **{Q.replace("transformer.", ""): t[Q].clone()}), "with and without 'transformer.'"),
    "half a norm": (
        lambda c, t: _put(t, **{f"{BLOCK}.ln_1.weight": torch.ones(32)}), "ln_1.bias is missing, but the module's other"
    ),
    "norm's shape": (lambda c, t: _put(t, **{f"{BLOCK}.ln_1.weight": torch.ones(31)}), r"has shape \(31,\)"),
    "head twice": (
        lambda c, t: _put(t, **{
            "base_model.model.lm_head.weight": torch.zeros(90, 32),
            "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32),
            "base_model.model.lm_head.lora_B.weight": torch.zeros(90, 4),
        }),
        "lm_head is there whole and as an adapter",
    ),
    "other head": (
        lambda c, t: _put(t, **{"base_model.model.lm_head.base_layer.weight": torch.zeros(90, 32)}),
        "differs from the model's head",
    ),
    "head of another base": (
        lambda c, t: _put(t, **{"base_model.model.lm_head.base_layer.weight": torch.zeros(91, 32)}),
        "differs from the model's head",
    ),
    "nothing": (lambda c, t: t.clear(), "holds no adapter of a linear layer"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_does_not_fit_is_refused_and_changes_nothing(case: str, tmp_path: Path) -> None:
    change, message = DAMAGED[case]
    folder = tmp_path / "adapter"
    save_adapter(folder, adapted())
    content, tensors = settings(folder), safetensors.torch.load_file(folder / WEIGHTS)
    change(content, tensors)
    (folder / SETTINGS).write_text(json.dumps(content), encoding="utf-8")
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    model = base()
    before = bits(model)
    with pytest.raises(DataError, match=message):
        load_adapter(folder, model)
    assert_same_bits(model, before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (SETTINGS, None, "adapter_config.json is missing: give the folder of an adapter"),
        (SETTINGS, b"{", "is damaged: it is no JSON"),
        (SETTINGS, b"\xff", "is damaged: it is no JSON"),
        (SETTINGS, b"[" * 100_000, "is damaged: it is no JSON"),
        (SETTINGS, b"[]", "holds no JSON object"),
        (SETTINGS, b" " * (2 << 20), "holds no JSON object of at most 1,048,576 bytes"),
        (WEIGHTS, None, "adapter_model.safetensors is missing: give the folder"),
        (WEIGHTS, b"", "cannot be read"),
        (WEIGHTS, b"\xff" * 64, "cannot be read"),
    ],
)
def test_damaged_files_are_refused_by_name(name: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(folder, adapted())
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        load_adapter(folder, base())


class Explosive:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_adapter(tmp_path / "adapter", adapted())
    (tmp_path / "adapter" / WEIGHTS).rename(tmp_path / "aside")
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(DataError, match=r"adapter_model.bin is not opened, because a pickle can run any code"):
        load_adapter(tmp_path / "adapter", base())
    assert not (tmp_path / "exploded").exists()


@pytest.fixture(scope="module")
def file_and_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, GPTModel]:
    folder = tmp_path_factory.mktemp("damaged") / "adapter"
    save_adapter(folder, adapted())
    return folder, (folder / WEIGHTS).read_bytes(), base()


@given(position=st.integers(0, 2400), value=st.integers(0, 255))
def test_a_changed_byte_of_the_header_is_refused_or_changes_no_form(
    file_and_model: tuple[Path, bytes, GPTModel], position: int, value: int
) -> None:
    folder, data, model = file_and_model
    (folder / WEIGHTS).write_bytes(data[:position] + bytes([value]) + data[position + 1 :])
    before = bits(model)
    with contextlib.suppress(DataError):
        load_adapter(folder, model)
        assert len(lora_parameters(model)) == 24
        remove_lora(model)
    assert_same_bits(model, before)


@pytest.mark.parametrize("ranks", ["{}", "[]", '{"transformer.h.0.attn.c_attn": [4, -4, 12]}', "{", '{"a": [1.5]}'])
def test_without_sound_ranks_in_the_header_the_adapters_still_compute_the_same(ranks: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(folder, adapted())
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, metadata={"gpt_finetune.ranks": ranks}))
    model = base()
    load_adapter(folder, model)
    assert model.trf_blocks[0].att.W_query.lora.rank == 12
    torch.testing.assert_close(logits(model), logits(adapted()), atol=1e-5, rtol=0)


def test_values_outside_the_blocks_are_not_lost(tmp_path: Path) -> None:
    """A program that trained a saved adapter on, and kept the header, has filled B's zeros."""
    folder = tmp_path / "adapter"
    save_adapter(folder, adapted())
    with safetensors.safe_open(folder / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    name = Q.replace("lora_A", "lora_B")
    tensors[name] = torch.randn(tensors[name].shape)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, metadata=metadata))
    model = base()
    load_adapter(folder, model)
    layer = model.trf_blocks[0].att.W_value
    expected = layer.linear.weight + 18 / 12 * tensors[name][64:] @ tensors[Q]
    torch.testing.assert_close(layer.merged_weight(), expected)
    assert model.trf_blocks[1].att.W_value.lora.rank == 4
