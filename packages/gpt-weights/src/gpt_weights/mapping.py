"""One table of GPT-2's tensor names, walked in both directions: OpenAI's, Hugging Face's, nanoGPT's, llama.cpp's, ours.

Beside the names the layouts differ in two ways. Ours keeps queries, keys and values apart, the others in one tensor
three times as wide. OpenAI and Hugging Face (``Conv1D``) keep matrices as (in, out), the others, as ``torch.nn.Linear``
does, as (out, in).

Shapes: E embedding width, V vocabulary size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_core import GPTConfig, parameter_shapes
from gpt_weights.errors import WeightsError

# A star stands for query, key and value.
_MODEL_TABLE = """
ours                  huggingface         openai         fast                 gguf
tok_emb.weight        wte.weight          wte            tok_emb.weight       token_embd.weight
pos_emb.weight        wpe.weight          wpe            pos_emb.weight       position_embd.weight
final_norm.scale      ln_f.weight         ln_f/g         final_norm.weight    output_norm.weight
final_norm.shift      ln_f.bias           ln_f/b         final_norm.bias      output_norm.bias
out_head.weight       lm_head.weight      lm_head/w      out_head.weight      output.weight
out_head.bias         lm_head.bias        lm_head/b      out_head.bias        output.bias
"""
_BLOCK_TABLE = """
trf_blocks.{}.        h.{}.               h{}/           trf_blocks.{}.       blk.{}.
norm1.scale           ln_1.weight         ln_1/g         norm1.weight         attn_norm.weight
norm1.shift           ln_1.bias           ln_1/b         norm1.bias           attn_norm.bias
att.W_*.weight        attn.c_attn.weight  attn/c_attn/w  att.qkv.weight       attn_qkv.weight
att.W_*.bias          attn.c_attn.bias    attn/c_attn/b  att.qkv.bias         attn_qkv.bias
att.out_proj.weight   attn.c_proj.weight  attn/c_proj/w  att.proj.weight      attn_output.weight
att.out_proj.bias     attn.c_proj.bias    attn/c_proj/b  att.proj.bias        attn_output.bias
norm2.scale           ln_2.weight         ln_2/g         norm2.weight         ffn_norm.weight
norm2.shift           ln_2.bias           ln_2/b         norm2.bias           ffn_norm.bias
ff.layers.0.weight    mlp.c_fc.weight     mlp/c_fc/w     ff.layers.0.weight   ffn_up.weight
ff.layers.0.bias      mlp.c_fc.bias       mlp/c_fc/b     ff.layers.0.bias     ffn_up.bias
ff.layers.2.weight    mlp.c_proj.weight   mlp/c_proj/w   ff.layers.2.weight   ffn_down.weight
ff.layers.2.bias      mlp.c_proj.bias     mlp/c_proj/b   ff.layers.2.bias     ffn_down.bias
"""


@dataclass(frozen=True)
class Layout:
    """A way of keeping a GPT-2 in named tensors: a column of the table, and the order of a matrix's axes."""

    name: str
    column: str
    is_in_out: bool = False


OURS = Layout("gpt-core", "ours")
FAST = Layout("the book's GPTModelFast", "fast")
HUGGINGFACE = Layout("huggingface", "huggingface", is_in_out=True)
NANOGPT = Layout("nanogpt", "huggingface")
OPENAI = Layout("openai", "openai", is_in_out=True)
GGUF = Layout("gguf", "gguf")


@dataclass(frozen=True)
class Link:
    """One tensor of theirs, and what it is in ours: one tensor, or query, key and value."""

    theirs: str
    ours: tuple[str, ...]
    shape: tuple[int, ...]
    """Of theirs."""
    is_turned: bool
    """Whether theirs is a matrix (in, out)."""

    def to_ours(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return our tensors as views of theirs."""
        turned = tensor.t() if self.is_turned else tensor                       # (3E, E) or (3E,), if there are three
        return turned.chunk(len(self.ours))

    def to_theirs(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return their tensor, contiguous; a copy where it is put together or turned."""
        joined = torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
        return (joined.t() if self.is_turned else joined).contiguous()


def links(layout: Layout, config: GPTConfig) -> list[Link]:
    """Return a link for each tensor that a model of this config has in ``layout``, in our order; a tied head has none.

    Raises WeightsError if the config has what GPT-2 has not, such as rotary positions, and the layout is not ours.
    """
    ours = parameter_shapes(config)
    if layout == OURS:
        return [Link(name, (name,), shape, is_turned=False) for name, shape in ours.items()]
    if others := [f"{name}={value!r}" for name, value in config.variants.items() if name != "n_classes"]:
        raise WeightsError(f"the model has {', '.join(others)}: no GPT-2, so the layout {layout.name} cannot hold it")
    found: dict[str, Link] = {}
    for name, shape in ours.items():
        theirs = name_in(layout, name)
        if layout.column == "huggingface" and config.n_classes is not None:
            theirs = theirs.replace("lm_head.", "score.")
        before = found[theirs].ours if theirs in found else ()
        # Ours is a Linear's; a bias or an embedding has one order only.
        is_turned = layout.is_in_out and len(shape) == 2 and name.startswith("trf_blocks.")
        whole = ((len(before) + 1) * shape[0], *shape[1:])
        found[theirs] = Link(theirs, (*before, name), whole[::-1] if is_turned else whole, is_turned)
    return list(found.values())


def name_in(layout: Layout, ours: str) -> str:
    """Return what the layout calls our tensor ``ours``; query, key and value have one name together in all but ours."""
    pattern, number = _pattern_of(ours)
    return ours if layout == OURS else _patterns(layout)[pattern].format(number)


def _pattern_of(name: str) -> tuple[str, str]:
    """Return our name as it stands in the table, and the block's number or ""."""
    for kind in ("query", "key", "value"):
        name = name.replace(f".W_{kind}.", ".W_*.")
    parts = name.split(".")
    if parts[0] != "trf_blocks":
        return name, ""
    number, parts[1] = parts[1], "{}"
    return ".".join(parts), number


@functools.cache
def _patterns(layout: Layout) -> dict[str, str]:
    """Return {our pattern: theirs}."""
    head, *model = [line.split() for line in _MODEL_TABLE.split("\n") if line]
    prefixes, *block = [line.split() for line in _BLOCK_TABLE.split("\n") if line]
    at = head.index(layout.column)
    return {row[0]: row[at] for row in model} | {prefixes[0] + row[0]: prefixes[at] + row[at] for row in block}
