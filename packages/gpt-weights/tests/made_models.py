"""Small models of ours with noise in every parameter, saved, and a tokenizer for them."""

import json
from pathlib import Path
from typing import Any

import torch

from gpt_core import GPTConfig, GPTModel, save_checkpoint
from gpt_weights import TokenizerFile, Weights, open_weights
from gpt_weights.tokenizer import tokenizer_of

CONFIG = GPTConfig(vocab_size=260, context_length=16, emb_dim=32, n_heads=4, n_layers=2, qkv_bias=True)


def saved(folder: Path, config: GPTConfig = CONFIG, dtype: torch.dtype = torch.float32, **given: Any) -> Weights:
    """Save a model with noise on every parameter, biases too, and open it."""
    torch.manual_seed(3)
    model = GPTModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    save_checkpoint(folder / "model", model.to(dtype), **given)
    return open_weights(folder / "model")


def byte_tokenizer(**changes: Any) -> TokenizerFile:
    """A tokenizer of all bytes, as GPT-2 writes them, three merges and the end of the text."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in visible] + [chr(256 + i) for i in range(68)]
    tokens = [*alphabet, "th", "the", "\u0120the", "<|endoftext|>"]
    made = tokenizer_of(Path("made"), {t: i for i, t in enumerate(tokens)}, ["t h", "th e", "\u0120 the"])
    return TokenizerFile(Path("made"), json.dumps({**json.loads(made.data), **changes}).encode())
