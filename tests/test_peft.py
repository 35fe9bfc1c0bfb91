"""Adapters go both ways between PEFT on transformers' GPT-2 and ours: the same logits, and no complaint."""

import dataclasses
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Model,
)
from transformers.utils import logging as transformers_logging

from gpt_core import GPTConfig, GPTModel, load_checkpoint, save_checkpoint
from gpt_finetune.adapter import load_adapter, save_adapter
from gpt_finetune.lora import LoRAConfig, add_lora, lora_parameters, replace_linear_with_lora
from gpt_finetune.merge import merge_lora
from gpt_tokenizer import BPETokenizer
from gpt_train import DataError
from gpt_weights import export_huggingface, open_weights

TEXT = "the cat sat on the mat, and the dog sat on the log; then they all sat still.\n" * 20
TOKENIZER = BPETokenizer.train([TEXT], vocab_size=280)
END = 279
UNTIED = GPTConfig(vocab_size=280, context_length=64, emb_dim=48, n_heads=4, n_layers=2, qkv_bias=True)
TIED = dataclasses.replace(UNTIED, tie_weights=True)
WITHOUT_BIAS = dataclasses.replace(UNTIED, qkv_bias=False)
CLASSIFIER = dataclasses.replace(UNTIED, n_classes=3)
IDS = torch.arange(48).reshape(2, 24) * 5
# PEFT has one setting for two kinds of layers, Conv1D and Linear, and says so when an adapter has both.
MIXED = "ignore:fan_in_fan_out is set to (True|False) but the target module is:UserWarning"
TIED_HEAD = "ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter:UserWarning"
SAVED_HEAD = "ignore:Setting `save_embedding_layers` to `True` as embedding layers found:UserWarning"
# PEFT asks transformers under a name that is on its way out.
RENAMED = "ignore:`is_gradient_checkpointing` is deprecated and will be removed in v6:FutureWarning"
pytestmark = pytest.mark.filterwarnings(RENAMED)


@pytest.fixture(autouse=True)
def _no_messages(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever transformers has to complain of is an error; pytest makes one of a warning."""
    transformers_logging.disable_progress_bar()
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.WARNING] == []


def based(folder: Path, config: GPTConfig) -> tuple[GPTModel, Path]:
    """A model whose parameters are all noise, and its folder for transformers."""
    torch.manual_seed(3)
    model = GPTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0.05 if name.endswith("emb.weight") else 1.0)
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    save_checkpoint(folder / "ours", model, tokenizer=TOKENIZER)
    labels = None if config.n_classes is None else ["ham", "spam", "eggs"]
    return model, export_huggingface(open_weights(folder / "ours"), folder / "hf", labels=labels).path


@torch.no_grad()
def trained(model: nn.Module) -> None:
    torch.manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)


def theirs(base: Path, config: GPTConfig) -> Any:
    kind = AutoModelForCausalLM if config.n_classes is None else AutoModelForSequenceClassification
    return kind.from_pretrained(base)


@torch.no_grad()
def their_logits(model: Any, config: GPTConfig) -> torch.Tensor:
    """Their logits; of a classifier those at the last token before the padding."""
    if config.n_classes is None:
        return model(IDS).logits
    padded = torch.cat([IDS, torch.full((2, 5), END)], dim=1)
    mask = (torch.arange(29) < 24).long().expand(2, -1)
    return model(padded, attention_mask=mask).logits


@torch.no_grad()
def our_logits(model: nn.Module, config: GPTConfig) -> torch.Tensor:
    logits = model(IDS)
    return logits if config.n_classes is None else logits[:, -1]


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


def assert_peft_computes_the_same(adapter: Path, base: Path, model: GPTModel, config: GPTConfig) -> None:
    expected = our_logits(model, config)
    unadapted = theirs(base, config)
    assert (their_logits(unadapted, config) - expected).abs().max() > 0.05  # what is compared is the adapters' work
    loaded = peft.PeftModel.from_pretrained(unadapted, adapter)
    assert_close(their_logits(loaded, config), expected)
    assert_close(their_logits(loaded.merge_and_unload(), config), expected)
    with merge_lora(model):
        assert_close(our_logits(model, config), expected)


EVERY, SOME = None, ("W_query", "1.att.W_key", "1.att.W_value", "ff.layers.0")


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (TIED, EVERY), (TIED, SOME), (TIED, ("W_query", "W_value")), (TIED, ("W_key", "0.ff.layers.2")),
        (TIED, ("out_proj",)), (UNTIED, EVERY), (WITHOUT_BIAS, SOME), (CLASSIFIER, EVERY), (CLASSIFIER, SOME),
    ],
)
def test_peft_opens_our_adapters(config: GPTConfig, layers: tuple[str, ...] | None, tmp_path: Path) -> None:
    model, base = based(tmp_path, config)
    add_lora(model, LoRAConfig(rank=3, alpha=7, dropout=0.1, layers=layers))
    trained(model)
    save_adapter(tmp_path / "adapter", model, base=base)
    assert_peft_computes_the_same(tmp_path / "adapter", base, model, config)


@pytest.mark.filterwarnings(MIXED)
@pytest.mark.filterwarnings(TIED_HEAD)
@pytest.mark.parametrize("config", [TIED, UNTIED, CLASSIFIER], ids=["tied", "untied", "classifier"])
def test_peft_opens_the_books_adapters_with_the_heads(config: GPTConfig, tmp_path: Path) -> None:
    model, base = based(tmp_path, config)
    model.requires_grad_(False)
    replace_linear_with_lora(model, rank=4, alpha=4)
    trained(model)
    save_adapter(tmp_path / "adapter", model)
    expected = our_logits(model, config)
    loaded = peft.PeftModel.from_pretrained(theirs(base, config), tmp_path / "adapter")
    assert_close(their_logits(loaded, config), expected)


@pytest.mark.parametrize(
    "parts", [("out_head",), ("out_head", "final_norm", "trf_blocks.1.norm2"), ("final_norm",)], ids=str
)
def test_peft_opens_a_classifier_whose_head_or_norms_were_trained(parts: tuple[str, ...], tmp_path: Path) -> None:
    model, base = based(tmp_path, CLASSIFIER)
    add_lora(model)
    for part in parts:
        model.get_submodule(part).requires_grad_(True)
    trained(model)
    save_adapter(tmp_path / "adapter", model)
    assert_peft_computes_the_same(tmp_path / "adapter", base, model, CLASSIFIER)
    again = load_checkpoint(tmp_path / "ours").model
    load_adapter(tmp_path / "adapter", again)
    assert_close(our_logits(again, CLASSIFIER), our_logits(model, CLASSIFIER))


def test_a_new_classifiers_adapter_fits_the_language_model_it_came_from(tmp_path: Path) -> None:
    """As with the hub's gpt2: the base has no head for classes, the adapter brings it."""
    body, base = based(tmp_path, TIED)
    model = GPTModel(CLASSIFIER).eval()
    model.load_state_dict(
        {name: tensor for name, tensor in body.state_dict().items() if not name.startswith("out_head")}, strict=False
    )
    add_lora(model)
    model.out_head.requires_grad_(True)
    trained(model)
    save_adapter(tmp_path / "adapter", model, base=base)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it says that the head is new
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "adapter", num_labels=3, pad_token_id=END
    ).eval()
    transformers_logging.set_verbosity(level)
    assert_close(their_logits(loaded, CLASSIFIER), our_logits(model, CLASSIFIER))


MADE_BY_PEFT: dict[str, tuple[GPTConfig, dict[str, Any]]] = {
    "c_attn": (TIED, {"target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}),
    "all": (UNTIED, {"target_modules": ["c_attn", "c_proj", "c_fc"], "task_type": "CAUSAL_LM", "lora_dropout": 0.1}),
    "both c_proj": (TIED, {"target_modules": ["c_proj"]}),
    "one c_proj": (TIED, {"target_modules": ["attn.c_proj", "c_fc"], "layers_to_transform": [1]}),
    "patterns": (
        TIED,
        {
            "target_modules": ["c_attn", "c_proj"],
            "rank_pattern": {"attn.c_proj": 2, "h.1.attn.c_attn": 9},
            "alpha_pattern": {"c_proj": 3, "h.0.attn.c_attn": 0.5},
        },
    ),
    "head": (UNTIED, {"target_modules": ["c_attn", "lm_head"]}),
    "tied head": (TIED, {"target_modules": ["c_fc", "lm_head"]}),
    "norms": (UNTIED, {"target_modules": ["c_attn"], "modules_to_save": ["ln_f", "ln_1", "lm_head"]}),
    "classifier": (CLASSIFIER, {"target_modules": ["c_attn", "c_proj"], "task_type": "SEQ_CLS"}),
    "classifier's norm": (CLASSIFIER, {"target_modules": ["c_attn"], "modules_to_save": ["ln_f"]}),
    "classifier's head": (CLASSIFIER, {"target_modules": "all-linear"}),
    "classifier's body": (CLASSIFIER, {"target_modules": ["c_fc"]}),
}


@pytest.mark.filterwarnings(MIXED)
@pytest.mark.filterwarnings(TIED_HEAD)
@pytest.mark.filterwarnings(SAVED_HEAD)
@pytest.mark.parametrize("case", MADE_BY_PEFT)
def test_ours_opens_adapters_that_peft_made(case: str, tmp_path: Path) -> None:
    config, given = MADE_BY_PEFT[case]
    model, base = based(tmp_path, config)
    unadapted = our_logits(model, config)
    made = peft.get_peft_model(theirs(base, config), peft.LoraConfig(r=5, lora_alpha=8, **given)).eval()
    trained(made)
    expected = their_logits(made, config)
    made.save_pretrained(tmp_path / "adapter")
    names = load_adapter(tmp_path / "adapter", model)
    assert names
    assert (expected - unadapted).abs().max() > 0.05
    assert_close(our_logits(model, config), expected)
    # Saved by ours it is PEFT's again.
    save_adapter(tmp_path / "again", model)
    loaded = peft.PeftModel.from_pretrained(theirs(base, config), tmp_path / "again")
    assert_close(their_logits(loaded, config), expected)


def test_what_peft_trained_on_of_ours_comes_back(tmp_path: Path) -> None:
    model, base = based(tmp_path, TIED)
    add_lora(model, LoRAConfig(rank=2))
    trained(model)
    save_adapter(tmp_path / "adapter", model)
    loaded = peft.PeftModel.from_pretrained(theirs(base, TIED), tmp_path / "adapter", is_trainable=True).eval()
    trained(loaded)
    loaded.save_pretrained(tmp_path / "again")
    again = load_checkpoint(tmp_path / "ours").model
    load_adapter(tmp_path / "again", again)
    assert_close(our_logits(again, TIED), their_logits(loaded, TIED))


def test_ours_opens_an_adapter_of_the_model_without_a_head(tmp_path: Path) -> None:
    model, base = based(tmp_path, TIED)
    made = peft.get_peft_model(GPT2Model.from_pretrained(base), peft.LoraConfig(r=5, target_modules=["c_attn"],
                                                                               fan_in_fan_out=True)).eval()
    trained(made)
    made.save_pretrained(tmp_path / "adapter")
    load_adapter(tmp_path / "adapter", model)
    with torch.no_grad():
        assert_close(model.features(IDS), made(IDS).last_hidden_state)


OTHERS: dict[str, tuple[peft.PeftConfig, str]] = {
    "rslora": (peft.LoraConfig(use_rslora=True, target_modules=["c_attn"], fan_in_fan_out=True), "use_rslora=True"),
    "dora": (peft.LoraConfig(use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True), "use_dora=True"),
    "bias": (peft.LoraConfig(bias="all", target_modules=["c_attn"], fan_in_fan_out=True), "bias='all'"),
    "lora_bias": (peft.LoraConfig(lora_bias=True, target_modules=["c_attn"], fan_in_fan_out=True), "lora_bias=True"),
    "tokens": (
        peft.LoraConfig(trainable_token_indices=[1], target_modules=["c_attn"], fan_in_fan_out=True),
        "trainable_token_indices",
    ),
    "ia3": (
        peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True), "peft_type='IA3'"
    ),
    "vera": (peft.VeraConfig(target_modules=["c_attn"], fan_in_fan_out=True, d_initial=0.1), "peft_type='VERA'"),
    "prompt": (peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "peft_type='PROMPT_TUNING'"),
    "expressions": (
        peft.LoraConfig(
            target_modules=["c_attn"], fan_in_fan_out=True, rank_pattern={r"h\.\d\.attn\.c_attn": 2}
        ),
        "no layer's dotted name",
    ),
    "embedding": (peft.LoraConfig(target_modules=["c_attn", "wte"], fan_in_fan_out=True), "wte.*is no tensor of"),
    "saved layer": (
        peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["c_fc"]),
        "c_fc.*is no tensor of an adapter",
    ),
}


@pytest.mark.filterwarnings(TIED_HEAD)
@pytest.mark.filterwarnings(SAVED_HEAD)
@pytest.mark.parametrize("case", OTHERS)
def test_what_is_more_than_plain_lora_is_refused_by_name(case: str, tmp_path: Path) -> None:
    config, message = OTHERS[case]
    model, base = based(tmp_path, TIED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the other kinds' own complaints
        peft.get_peft_model(theirs(base, TIED), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(DataError, match=message):
        load_adapter(tmp_path / "adapter", model)
    assert lora_parameters(model) == []
