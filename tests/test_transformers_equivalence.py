"""GPTModel is GPT-2: logits and every gradient equal transformers' with the same random weights."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_core import GPTConfig, GPTModel, GPTModelFast

TINY = {"vocab_size": 101, "n_positions": 32, "n_embd": 64, "n_layer": 3, "n_head": 4}
GPT2_SMALL_WIDTH = {"vocab_size": 503, "n_positions": 48, "n_embd": 768, "n_layer": 2, "n_head": 12}
TOLERANCE = 1e-4

Build = Callable[[GPTConfig], GPTModel]
FORMS: dict[str, Build] = {
    "explicit": lambda config: GPTModel(config, explicit=True),
    "fused": lambda config: GPTModel(config, explicit=False),
    "fast": GPTModelFast,
}


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=FORMS)
def build(request: pytest.FixtureRequest) -> Build:
    return FORMS[request.param]


@pytest.mark.parametrize("sizes", [TINY, GPT2_SMALL_WIDTH], ids=["tiny", "gpt2-small-width"])
def test_logits_and_all_gradients_equal_transformers(sizes: dict[str, int], tied: bool, build: Build) -> None:
    theirs, ours, ids = reference(sizes, tied=tied), build(our_config(sizes, tied=tied)), some_ids(sizes)
    ours.load_state_dict(in_our_names(theirs.state_dict(), ours))
    their_logits, our_logits = theirs(ids[:, :-1]).logits, ours(ids[:, :-1])
    for logits in (their_logits, our_logits):
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = in_our_names({name: given(p.grad) for name, p in theirs.named_parameters()}, ours)
    gradients = {name: given(p.grad) for name, p in ours.named_parameters()}
    assert gradients.keys() == expected.keys()
    torch.testing.assert_close(our_logits, their_logits, atol=TOLERANCE, rtol=0)
    for name, gradient in gradients.items():
        # Relative to a tensor's largest gradient; a key's bias has none (softmax ignores it).
        largest = max(float(expected[name].abs().max()), 1e-4)
        assert float((gradient - expected[name]).abs().max()) < TOLERANCE * min(largest, 1), name


@pytest.mark.parametrize("chunks", [[1] * 20, [13, 1, 1, 5], [20]], ids=str)
def test_cached_logits_equal_those_of_transformers_without_a_cache(build: Build, chunks: list[int]) -> None:
    theirs, ours = reference(TINY, tied=True), build(our_config(TINY, tied=True)).eval()
    ours.load_state_dict(in_our_names(theirs.state_dict(), ours))
    ids, cache = some_ids(TINY)[:, :20], ours.new_cache()
    with torch.no_grad():
        cached = torch.cat([ours(part, cache=cache) for part in ids.split(chunks, dim=1)], dim=1)
        torch.testing.assert_close(cached, theirs(ids, use_cache=False).logits, atol=TOLERANCE, rtol=0)
    assert cache.length == 20


def reference(sizes: dict[str, int], *, tied: bool) -> GPT2LMHeadModel:
    """Return transformers' model with noise on every weight: its own initialisation leaves biases at 0."""
    settings = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(**sizes, **settings, tie_word_embeddings=tied, attn_implementation="eager")
    torch.manual_seed(4)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    return model


def our_config(sizes: dict[str, int], *, tied: bool) -> GPTConfig:
    return GPTConfig(
        vocab_size=sizes["vocab_size"],
        context_length=sizes["n_positions"],
        emb_dim=sizes["n_embd"],
        n_heads=sizes["n_head"],
        n_layers=sizes["n_layer"],
        qkv_bias=True,
        tie_weights=tied,
    )


def some_ids(sizes: dict[str, int]) -> Tensor:
    shape = (2, sizes["n_positions"] + 1)
    return torch.randint(sizes["vocab_size"], shape, generator=torch.Generator().manual_seed(5))


def given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def in_our_names(theirs: Mapping[str, Any], model: GPTModel) -> dict[str, Tensor]:
    """Rename transformers' weights, or gradients, to ours; its Conv1D is (in, out), our Linear (out, in)."""
    weight, bias = ("weight", "bias") if isinstance(model, GPTModelFast) else ("scale", "shift")
    renamed = {
        "tok_emb.weight": theirs["transformer.wte.weight"],
        "pos_emb.weight": theirs["transformer.wpe.weight"],
    }
    for n in range(model.config.n_layers):
        source, target = f"transformer.h.{n}.", f"trf_blocks.{n}."
        for kind in ("weight", "bias"):
            joint = theirs[f"{source}attn.c_attn.{kind}"].t()
            if isinstance(model, GPTModelFast):
                renamed[f"{target}att.qkv.{kind}"] = joint
            else:
                for name, part in zip(("W_query", "W_key", "W_value"), joint.chunk(3), strict=True):
                    renamed[f"{target}att.{name}.{kind}"] = part
            projection = "att.proj" if isinstance(model, GPTModelFast) else "att.out_proj"
            renamed[f"{target}{projection}.{kind}"] = theirs[f"{source}attn.c_proj.{kind}"].t()
            renamed[f"{target}ff.layers.0.{kind}"] = theirs[f"{source}mlp.c_fc.{kind}"].t()
            renamed[f"{target}ff.layers.2.{kind}"] = theirs[f"{source}mlp.c_proj.{kind}"].t()
        for ours, norm in (("norm1", "ln_1"), ("norm2", "ln_2")):
            renamed[f"{target}{ours}.{weight}"] = theirs[f"{source}{norm}.weight"]
            renamed[f"{target}{ours}.{bias}"] = theirs[f"{source}{norm}.bias"]
    renamed[f"final_norm.{weight}"] = theirs["transformer.ln_f.weight"]
    renamed[f"final_norm.{bias}"] = theirs["transformer.ln_f.bias"]
    if "lm_head.weight" in theirs:
        renamed["out_head.weight"] = theirs["lm_head.weight"]
    return renamed
