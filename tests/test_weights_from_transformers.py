"""What transformers saves comes in whole: the same logits, the same greedy tokens, whatever form it was saved in."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model

from gpt_core import generate_tokens, load_checkpoint
from gpt_weights import WeightsError, convert, open_weights

TINY = {"vocab_size": 101, "n_positions": 96, "n_embd": 64, "n_layer": 3, "n_head": 4}
SMALL = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}


def reference(sizes: dict[str, int], kind: Any = GPT2LMHeadModel, **settings: Any) -> Any:
    """Return transformers' model with noise on every weight: its own initialisation leaves biases at 0."""
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **settings)
    torch.manual_seed(4)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    return model


def assert_same_logits_and_tokens(folder: Path, theirs: GPT2LMHeadModel) -> None:
    ours = load_checkpoint(folder).model
    ids = torch.randint(theirs.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)
        answer = theirs.generate(ids[:1], max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0,
                                 attention_mask=torch.ones_like(ids[:1]))
    # With min_new_tokens transformers never chooses its end token, so its id is one that no answer holds.
    found = [token.id for token in generate_tokens(ours, ids[0].tolist(), max_new_tokens=64)]
    assert found == answer[0, 24:].tolist()


def sharded(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def as_the_hub_has_it(model: Any, folder: Path) -> None:
    """Names without ``transformer.``, mask buffers of both kinds among the tensors."""
    model.transformer.save_pretrained(folder)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(not name.startswith("transformer.") for name in tensors)
    for layer in range(model.config.n_layer):
        C = model.config.n_positions
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, C, C).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def as_pickle(model: Any, folder: Path) -> None:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("save", [lambda model, folder: model.save_pretrained(folder), sharded, as_pickle],
                         ids=["single", "sharded", "pickle"])
def test_logits_and_greedy_tokens_are_transformers(
    save: Callable[[Any, Path], None], tied: bool, tmp_path: Path
) -> None:
    theirs = reference(TINY, tie_word_embeddings=tied)
    save(theirs, tmp_path / "hf")
    weights = open_weights(tmp_path / "hf")
    assert weights.config.tie_weights is tied
    assert_same_logits_and_tokens(convert(weights, tmp_path / "ours"), theirs)
    assert str(load_checkpoint(tmp_path / "ours").provenance["layout"]) == "huggingface"


def test_the_hubs_own_form_loads_and_its_mask_buffers_are_left_out(tmp_path: Path) -> None:
    theirs = reference(TINY)
    as_the_hub_has_it(theirs, tmp_path / "hf")
    weights = open_weights(tmp_path / "hf")
    assert weights.notes == ("6 mask buffers are left out",)
    assert_same_logits_and_tokens(convert(weights, tmp_path / "ours"), theirs)


@pytest.mark.slow
def test_the_124m_shape_gives_transformers_logits_and_tokens(tmp_path: Path) -> None:
    theirs = reference(SMALL)
    theirs.save_pretrained(tmp_path / "hf")
    assert_same_logits_and_tokens(convert(open_weights(tmp_path / "hf"), tmp_path / "ours"), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_as_it_is_unless_another_type_is_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = reference(TINY).to(dtype)
    theirs.save_pretrained(tmp_path / "hf")
    weights = open_weights(tmp_path / "hf")
    kept, widened = dict(weights.tensors()), dict(weights.tensors(dtype=torch.float32))
    assert {tensor.dtype for tensor in kept.values()} == {dtype}
    assert {tensor.dtype for tensor in widened.values()} == {torch.float32}
    for name, tensor in widened.items():
        assert torch.equal(tensor, kept[name].float())
    assert torch.equal(kept["tok_emb.weight"], theirs.transformer.wte.weight)


@pytest.mark.parametrize("labels", [None, ["ham", "spam", "neither"]])
def test_a_classifier_gives_transformers_logits_of_the_last_token(labels: list[str] | None, tmp_path: Path) -> None:
    named: dict[str, Any] = {}
    if labels is not None:
        named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    theirs = reference(TINY, GPT2ForSequenceClassification, num_labels=3, pad_token_id=0, **named)
    theirs.save_pretrained(tmp_path / "hf")
    weights = open_weights(tmp_path / "hf")
    assert weights.config.n_classes == 3
    assert weights.labels == (labels or ["LABEL_0", "LABEL_1", "LABEL_2"])
    ids = torch.randint(1, 101, (4, 24), generator=torch.Generator().manual_seed(5))
    model = load_checkpoint(convert(weights, tmp_path / "ours")).model
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[:, -1], theirs(ids).logits, atol=1e-5, rtol=0)
    assert open_weights(tmp_path / "ours").labels == weights.labels


def test_a_mapped_model_computes_the_same_and_leaves_the_file_alone(tmp_path: Path) -> None:
    theirs = reference(TINY)
    theirs.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    weights = open_weights(tmp_path)
    mapped, copied = weights.model(mapped=True), weights.model()
    ids = torch.arange(24)[None]
    with torch.no_grad():
        torch.testing.assert_close(mapped(ids), copied(ids), atol=1e-5, rtol=0)
        mapped.tok_emb.weight.zero_()
    assert not any(parameter.requires_grad for parameter in mapped.parameters())
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in copied.parameters())
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"n_inner": 100}, "n_inner is 100, but a GPT-2 64 wide has 256"),
    ],
)
def test_a_gpt2_that_computes_otherwise_is_refused(setting: dict[str, Any], named: str, tmp_path: Path) -> None:
    reference(TINY, **setting).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=named):
        open_weights(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(reference(TINY), tmp_path)
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(WeightsError, match=f"{lost.name} is missing"):
        open_weights(tmp_path)


def test_a_shard_under_another_ones_name_is_found_out(tmp_path: Path) -> None:
    sharded(reference(TINY), tmp_path)
    first, second, *_ = sorted(tmp_path.glob("model-*.safetensors"))
    shutil.copy(first, second)
    with pytest.raises(WeightsError, match=r"stands in .* and in"):
        open_weights(tmp_path)


def test_an_unconnected_model_type_is_refused_by_name(tmp_path: Path) -> None:
    reference(TINY, GPT2Model).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"gpt2"', '"llama"'), encoding="utf-8")
    with pytest.raises(WeightsError, match="model of type 'llama'"):
        open_weights(tmp_path)
