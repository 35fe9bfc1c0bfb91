"""The small files of a Hugging Face directory: what the model is, how its tokenizer is opened, the model card."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from gpt_core import GPTConfig, parameter_shapes
from gpt_weights.tokenizer import TokenizerFile
from gpt_weights.weights import Weights

_GPT2_VOCABULARY, _GPT2_END = 50257, 50256


def config_json(
    weights: Weights, tokenizer: TokenizerFile | None, labels: Sequence[str] | None, dtype: torch.dtype
) -> bytes:
    """Return config.json; ``labels`` if it is a classifier."""
    config = weights.config
    end = _end_id(config, tokenizer)
    content: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel" if labels is None else "GPT2ForSequenceClassification"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,  # llama.cpp's converter reads this one
        "n_embd": config.emb_dim,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "resid_pdrop": config.drop_rate,
        "embd_pdrop": config.drop_rate,
        "attn_pdrop": config.drop_rate,
        "scale_attn_weights": True,
        "bos_token_id": end,
        "eos_token_id": end,
        # Of a classifier the head is not the embedding; transformers' own files leave its default here.
        "tie_word_embeddings": config.tie_weights,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if labels is not None:
        content |= {
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            "num_labels": len(labels),
            "problem_type": "single_label_classification",
            "pad_token_id": end,
        }
    return _json(content)


def tokenizer_files(config: GPTConfig, tokenizer: TokenizerFile | None) -> dict[str, bytes]:
    """Return {file name: content}: the tokenizer's, and how to generate."""
    is_classifier = config.n_classes is not None
    end = _end_id(config, tokenizer)
    files: dict[str, bytes] = {}
    if not is_classifier:
        # With a token for padding, generate() has nothing to warn of.
        ids = {} if end is None else {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
        files["generation_config.json"] = _json({**ids, "do_sample": False})
    if tokenizer is None:
        return files
    name = tokenizer.end_of_text[0] if tokenizer.end_of_text else None
    special = {"bos_token": name, "eos_token": name, "unk_token": name}
    if is_classifier:
        special["pad_token"] = name
    return files | {
        "tokenizer.json": tokenizer.data,
        "vocab.json": _json(tokenizer.vocabulary, indent=None),
        "merges.txt": "\n".join(["#version: 0.2", *tokenizer.merges, ""]).encode(),
        "tokenizer_config.json": _json({
            "tokenizer_class": "GPT2Tokenizer" if tokenizer.splits_as_gpt2 else "PreTrainedTokenizerFast",
            "model_max_length": config.context_length,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            **special,
        }),
        "special_tokens_map.json": _json({kind: token for kind, token in special.items() if token is not None}),
    }


def model_card(weights: Weights, name: str, notes: Sequence[str]) -> bytes:
    """Return README.md: what the weights themselves tell, and no more."""
    config = weights.config
    is_classifier = config.n_classes is not None
    task = "text-classification" if is_classifier else "text-generation"
    auto = "AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM"
    n_parameters = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    decided = "".join(f"* {note}\n" for note in (*weights.notes, *notes))
    return f"""---
library_name: transformers
pipeline_tag: {task}
tags:
- gpt2
---

# {name}

A GPT-2 with {n_parameters:,} parameters: {config.n_layers} blocks, {config.n_heads} heads, {config.emb_dim} wide, \
{config.context_length} tokens of context, {config.vocab_size:,} tokens in the vocabulary.

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

Written by gpt-weights {version("gpt-weights")} from {weights.path.name}. The weights do not tell what they were trained
on, how they were evaluated, nor their licence: write that here before you pass them on.
{f"{chr(10)}{decided}" if decided else ""}""".encode(errors="replace")  # a file's name may be no Unicode


def _end_id(config: GPTConfig, tokenizer: TokenizerFile | None) -> int | None:
    """Return the id of the token that ends a text; without a tokenizer, GPT-2's if the vocabulary has its size."""
    if tokenizer is not None:
        return tokenizer.end_of_text[1] if tokenizer.end_of_text else None
    return _GPT2_END if config.vocab_size == _GPT2_VOCABULARY else None


def _json(content: object, indent: int | None = 2) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=indent) + "\n").encode("utf-8")
