"""What is exported opens unchanged in other programs: transformers, and llama.cpp where it is installed."""

import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)
from transformers.utils import logging as transformers_logging

from gpt_core import GPTConfig, GPTModel, generate_tokens, save_checkpoint
from gpt_tokenizer import BPETokenizer
from gpt_weights import Weights, convert, export_gguf, export_huggingface, open_weights

TEXT = "the cat sat on the mat, and the dog sat on the log; then they all sat still.\n" * 20
TEXTS = ["the cat sat", "  two  spaces\n\n\ttab", "it's we'll 123", "na\u00efve \u65e5\u672c\u8a9e"]
TOKENIZER = BPETokenizer.train([TEXT], vocab_size=280)
CONFIG = GPTConfig(vocab_size=280, context_length=64, emb_dim=64, n_heads=4, n_layers=3)
CLASSIFIER = dataclasses.replace(CONFIG, n_classes=3, qkv_bias=True)
IDS = torch.arange(48).reshape(2, 24) * 5


@pytest.fixture(autouse=True)
def _no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever transformers has to complain of is an error."""
    transformers_logging.disable_progress_bar()
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    logger.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.WARNING] == []


def saved(folder: Path, config: GPTConfig, tokenizer: BPETokenizer | None = TOKENIZER) -> Weights:
    """Save a model whose greedy choices are clear: noise on every parameter, a large head."""
    torch.manual_seed(3)
    model = GPTModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    save_checkpoint(folder, model, tokenizer=tokenizer)
    return open_weights(folder)


@pytest.mark.parametrize("qkv_bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_transformers_computes_the_same_and_generates_the_same(tied: bool, qkv_bias: bool, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tie_weights=tied, qkv_bias=qkv_bias)
    source = saved(tmp_path / "ours", config)
    theirs = AutoModelForCausalLM.from_pretrained(export_huggingface(source, tmp_path / "hf").path)
    assert isinstance(theirs, GPT2LMHeadModel)
    assert not theirs.training
    ours = source.model()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, ours(IDS), atol=1e-4, rtol=0)
        prompt = IDS[:1, :8]
        answer = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, eos_token_id=None)
    expected = [token.id for token in generate_tokens(ours, prompt[0].tolist(), max_new_tokens=40)]
    assert answer[0, 8:].tolist() == expected


def test_transformers_tokenizer_gives_our_ids(tmp_path: Path) -> None:
    folder = export_huggingface(saved(tmp_path / "ours", CONFIG), tmp_path / "hf").path
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == TOKENIZER.n_vocab
    assert (theirs.eos_token_id, theirs.model_max_length) == (TOKENIZER.eot_token, 64)
    for text in [*TEXTS, "\U0001f642", ""]:
        assert theirs(text)["input_ids"] == TOKENIZER.encode(text)
        assert theirs.decode(TOKENIZER.encode(text)) == text
    with_end = "the cat<|endoftext|>the dog"
    assert theirs(with_end)["input_ids"] == TOKENIZER.encode(with_end, allowed_special={"<|endoftext|>"})


def test_the_slow_pair_of_files_gives_the_same_ids(tmp_path: Path) -> None:
    folder = export_huggingface(saved(tmp_path / "ours", CONFIG), tmp_path / "hf").path
    (folder / "tokenizer.json").unlink()
    assert AutoTokenizer.from_pretrained(folder)("the cat sat still")["input_ids"] == TOKENIZER.encode(
        "the cat sat still"
    )


def test_transformers_finds_the_added_tokens_that_lay_beside_the_pair(tmp_path: Path) -> None:
    source = saved(tmp_path / "ours", dataclasses.replace(CONFIG, vocab_size=282))
    folder = export_huggingface(source, tmp_path / "hf").path
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text('{"<user>": 280, "<pad>": 281}', encoding="utf-8")
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "<pad>"}}', encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(export_huggingface(open_weights(folder), tmp_path / "again").path)
    ids = theirs("the cat<user>sat<pad>")["input_ids"]
    assert ids == [*TOKENIZER.encode("the cat"), 280, *TOKENIZER.encode("sat"), 281]
    assert theirs.decode(ids, skip_special_tokens=True) == "the cat<user>sat"


def test_a_tokenizer_without_an_end_of_the_text_gains_no_token(tmp_path: Path) -> None:
    bare = BPETokenizer.train([TEXT], vocab_size=280, special_tokens=())
    folder = export_huggingface(saved(tmp_path / "ours", CONFIG, bare), tmp_path / "hf").path
    theirs = AutoTokenizer.from_pretrained(folder)
    assert (len(theirs), theirs.eos_token) == (280, None)
    assert AutoModelForCausalLM.from_pretrained(folder).config.eos_token_id is None


def test_transformers_classifies_as_we_do(tmp_path: Path) -> None:
    source = saved(tmp_path / "ours", CLASSIFIER)
    folder = export_huggingface(source, tmp_path / "hf", labels=["ham", "spam", "eggs"]).path
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(theirs, GPT2ForSequenceClassification)
    assert theirs.config.id2label == {0: "ham", 1: "spam", 2: "eggs"}
    texts = ["the cat sat on the mat", "then"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = theirs(**batch).logits
        expected = [source.model()(torch.tensor([TOKENIZER.encode(text)]))[0, -1] for text in texts]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)


SIZES = {"vocab_size": 280, "n_positions": 32, "n_embd": 48, "n_layer": 2, "n_head": 4}


def transformers_model(kind: Any, dtype: torch.dtype, **given: Any) -> Any:
    torch.manual_seed(5)
    ends = {"bos_token_id": 279, "eos_token_id": 279, "pad_token_id": 279}
    model = kind(GPT2Config(**SIZES, **ends, **given)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape).to(dtype), alpha=0.1)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (GPT2LMHeadModel, {"tie_word_embeddings": True}),
        (GPT2LMHeadModel, {"tie_word_embeddings": False}),
        (GPT2ForSequenceClassification, {"num_labels": 4}),
    ],
    ids=["tied", "untied", "classifier"],
)
def test_transformers_to_ours_to_transformers_keeps_every_tensor(
    kind: Any, given: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    transformers_model(kind, dtype, **given).save_pretrained(tmp_path / "first")
    ours = open_weights(convert(open_weights(tmp_path / "first"), tmp_path / "ours"))
    export = export_huggingface(ours, tmp_path / "second")
    assert export.largest_difference == 0
    assert_same_file(tmp_path / "first", tmp_path / "second")
    again = kind.from_pretrained(tmp_path / "second")
    again.save_pretrained(tmp_path / "third")
    assert_same_file(tmp_path / "first", tmp_path / "third")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_hubs_names_and_buffers_become_transformers_own(dtype: torch.dtype, tmp_path: Path) -> None:
    """The hub's first GPT-2 files have no prefix, and masks among their tensors."""
    transformers_model(GPT2LMHeadModel, dtype).save_pretrained(tmp_path / "first")
    tensors = safetensors.torch.load_file(tmp_path / "first" / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for n in range(2):
        bare[f"h.{n}.attn.bias"] = torch.ones(32, 32).tril().reshape(1, 1, 32, 32)
        bare[f"h.{n}.attn.masked_bias"] = torch.tensor(-1e4)
    (tmp_path / "hub").mkdir()
    safetensors.torch.save_file(bare, tmp_path / "hub" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "first" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    export = export_huggingface(open_weights(tmp_path / "hub"), tmp_path / "second")
    assert export.largest_difference == 0
    assert_same_file(tmp_path / "first", tmp_path / "second")


def assert_same_file(first: Path, second: Path) -> None:
    one, other = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    assert all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


@pytest.mark.skipif(sys.platform == "win32", reason="llama.cpp writes through its own C runtime there")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_llama_cpp_generates_our_tokens_from_a_float32_file(tied: bool, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    source = saved(tmp_path / "ours", dataclasses.replace(CONFIG, tie_weights=tied))
    path = export_gguf(source, tmp_path / "model.gguf", kind="f32").path
    theirs = llama_cpp.Llama(str(path), n_ctx=64, verbose=False, n_threads=1)
    for text in TEXTS:
        assert theirs.tokenize(text.encode(), add_bos=False) == TOKENIZER.encode(text)
    prompt = TOKENIZER.encode("the dog sat on")
    answer = theirs.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0)
    found = [next(answer) for _ in range(40)]
    assert found == [token.id for token in generate_tokens(source.model(), prompt, max_new_tokens=40)]
