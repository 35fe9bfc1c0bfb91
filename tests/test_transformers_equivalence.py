"""GPTModel is GPT-2, and with other settings the attention of Llama and Mistral: as transformers has them.

Logits, context vectors and gradients equal transformers' with the same random weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaModel, MistralConfig, MistralModel

from gpt_attention import KVCache
from gpt_core import GPTConfig, GPTModel, GPTModelFast, TransformerBlock

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


# Our own block has GPT-2's feed-forward, so it is the first half of a Llama block that is the same.
LATER_MODELS = {"vocab_size": 11, "hidden_size": 48, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 6, "rms_norm_eps": 1e-5, "max_position_embeddings": 32}


@pytest.mark.parametrize("window", [None, 1, 7, 40], ids=lambda window: f"window {window}")
@pytest.mark.parametrize("n_kv_heads", [1, 2, 6])
@pytest.mark.parametrize("explicit", [True, False])
def test_norm_and_attention_equal_llamas_and_mistrals(explicit: bool, n_kv_heads: int, window: int | None) -> None:
    settings: dict[str, Any] = {
        **LATER_MODELS, "num_key_value_heads": n_kv_heads, "attn_implementation": "eager",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    }
    torch.manual_seed(6)
    if window is None:
        theirs: torch.nn.Module = LlamaModel(LlamaConfig(**settings))
    else:
        theirs = MistralModel(MistralConfig(**settings, sliding_window=window))
    block = TransformerBlock(
        GPTConfig(
            vocab_size=11, context_length=32, emb_dim=48, n_heads=6, n_layers=1, n_kv_heads=n_kv_heads,
            sliding_window=window, positions="rotary", rope_base=500.0, norm="rmsnorm",
        ),
        explicit=explicit,
    )
    pairs = match_parameters(theirs.get_submodule("layers.0"), block)
    outputs = []
    theirs.get_submodule("layers.0.self_attn").register_forward_hook(lambda *call: outputs.append(call[2][0]))
    x = torch.randn(2, 32, 48)
    theirs(inputs_embeds=x)
    outputs.append(block.att(block.norm1(x)))
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    upstream = torch.randn(2, 32, 48)
    gradients = [torch.autograd.grad(out, [pair[n] for pair in pairs], upstream) for n, out in enumerate(outputs)]
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    cache = KVCache(1)
    with torch.no_grad():
        pieces = [block.att(block.norm1(piece), cache=cache) for piece in x.split([9, 1, 1, 21], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), outputs[0], atol=1e-5, rtol=1e-5)


def match_parameters(theirs: torch.nn.Module, ours: TransformerBlock) -> list[tuple[Tensor, Tensor]]:
    """Give both sides the same random weights, ours a bias of 0 that theirs lack; return the pairs."""
    names = {"input_layernorm.weight": "norm1.scale", "self_attn.o_proj.weight": "att.out_proj.weight"}
    names |= {f"self_attn.{n[0]}_proj.weight": f"att.W_{n}.weight" for n in ("query", "key", "value")}
    pairs = [(theirs.get_parameter(their), ours.get_parameter(our)) for their, our in names.items()]
    with torch.no_grad():
        ours.get_parameter("att.out_proj.bias").zero_()
        for their, our in pairs:
            our.copy_(their.add_(torch.randn(their.shape), alpha=0.2))
    return pairs


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
