"""The name table: both ways of every layout undo each other, and their names are those that others write."""

import dataclasses

import pytest
import torch

from gpt_core import GPTConfig, GPTModel, gpt2_config, parameter_shapes
from gpt_weights import WeightsError
from gpt_weights.mapping import FAST, GGUF, HUGGINGFACE, NANOGPT, OPENAI, OURS, Layout, links, name_in

CONFIG = GPTConfig(vocab_size=13, context_length=5, emb_dim=8, n_heads=2, n_layers=2, qkv_bias=True)
LAYOUTS = [OURS, FAST, HUGGINGFACE, NANOGPT, OPENAI, GGUF]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


@each_layout
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("head", [{"tie_weights": True}, {"tie_weights": False}, {"n_classes": 3}], ids=str)
def test_there_and_back_gives_the_same_tensors(layout: Layout, qkv_bias: bool, head: dict[str, int]) -> None:
    config = dataclasses.replace(CONFIG, qkv_bias=qkv_bias, **head)
    ours = {name: torch.randn(shape) for name, shape in parameter_shapes(config).items()}
    back = {}
    for link in links(layout, config):
        theirs = link.to_theirs([ours[name] for name in link.ours])
        assert theirs.shape == link.shape
        assert theirs.is_contiguous()
        back |= dict(zip(link.ours, link.to_ours(theirs), strict=True))
    assert back.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize(
    ("layout", "some"),
    [
        # As openai/gpt-2's checkpoints, transformers' state dicts, nanoGPT's and llama.cpp's loaders name them.
        (OPENAI, {"wte": (13, 8), "h1/attn/c_attn/w": (8, 24), "h0/mlp/c_proj/w": (32, 8), "ln_f/g": (8,)}),
        (HUGGINGFACE, {"wpe.weight": (5, 8), "h.1.attn.c_attn.weight": (8, 24), "h.0.mlp.c_fc.weight": (8, 32),
                       "h.0.ln_2.bias": (8,), "lm_head.weight": (13, 8)}),
        (NANOGPT, {"h.1.attn.c_attn.weight": (24, 8), "h.0.mlp.c_fc.weight": (32, 8), "lm_head.weight": (13, 8)}),
        (GGUF, {"token_embd.weight": (13, 8), "position_embd.weight": (5, 8), "blk.1.attn_qkv.weight": (24, 8),
                "blk.0.ffn_down.weight": (8, 32), "output_norm.bias": (8,), "output.weight": (13, 8)}),
    ],
    ids=lambda value: value.name if isinstance(value, Layout) else None,
)
def test_names_and_shapes_are_the_formats(layout: Layout, some: dict[str, tuple[int, ...]]) -> None:
    shapes = {link.theirs: link.shape for link in links(layout, CONFIG)}
    assert {name: shapes[name] for name in some} == some
    assert len(shapes) == 5 + 12 * 2


def test_the_fast_variants_names_are_its_own_parameters() -> None:
    from gpt_core import GPTModelFast

    state = GPTModelFast(CONFIG).state_dict()
    assert {link.theirs: link.shape for link in links(FAST, CONFIG)} == {n: tuple(t.shape) for n, t in state.items()}


def test_the_order_is_our_models_own() -> None:
    assert [link.theirs for link in links(OURS, CONFIG)] == list(GPTModel(CONFIG).state_dict())


def test_gpt2s_sizes_have_openais_number_of_tensors() -> None:
    assert [len(links(OPENAI, gpt2_config(size))) for size in ("124M", "355M", "774M", "1558M")] == [148, 292, 436, 580]


def test_a_classifiers_head_is_called_score_by_hugging_face() -> None:
    names = [link.theirs for link in links(HUGGINGFACE, dataclasses.replace(CONFIG, n_classes=2))]
    assert names[-2:] == ["score.weight", "score.bias"]


def test_a_name_can_be_asked_for_alone() -> None:
    assert name_in(HUGGINGFACE, "trf_blocks.7.att.W_key.bias") == "h.7.attn.c_attn.bias"
    assert name_in(OURS, "trf_blocks.7.att.W_key.bias") == "trf_blocks.7.att.W_key.bias"
    assert name_in(GGUF, "tok_emb.weight") == "token_embd.weight"


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=lambda layout: layout.name)
def test_what_gpt2_has_not_is_refused_by_name(layout: Layout) -> None:
    config = dataclasses.replace(CONFIG, positions="rotary", sliding_window=4)
    with pytest.raises(WeightsError, match="the model has sliding_window=4, positions='rotary': no GPT-2"):
        links(layout, config)
    assert links(OURS, config)
