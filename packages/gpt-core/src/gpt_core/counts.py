"""How many parameters, weights and operations a config stands for.

Products are counted as in Kaplan et al. 2020, section 2.1: 2 operations for each multiply-add. Norms, softmax and
activations are left out, they are below 1 % of a GPT-2.

Sizes: B sequences, T tokens of each, D width, V vocabulary.
"""

from __future__ import annotations

from gpt_core.config import GPTConfig


def n_parameters(config: GPTConfig) -> int:
    """Return how many parameters a model of this config has, a tied head counted once."""
    D, V = config.emb_dim, config.vocab_size
    norm = 2 * D if config.norm == "layernorm" else D
    biases = (qkv_width(config) if config.qkv_bias else 0) + 6 * D
    positions = config.context_length * D if config.positions == "learned" else 0
    head = 0 if config.tie_weights else config.n_outputs * D + (config.n_classes or 0)
    return V * D + head + positions + config.n_layers * (n_block_weights(config) + biases + 2 * norm) + norm


def n_kv_heads(config: GPTConfig) -> int:
    """Return how many heads keys and values have."""
    return config.n_kv_heads or config.n_heads


def qkv_width(config: GPTConfig) -> int:
    """Return the width of queries, keys and values together."""
    return config.emb_dim + 2 * n_kv_heads(config) * config.head_dim


def n_block_weights(config: GPTConfig) -> int:
    """Return how many numbers the matrices of one block have: each is multiplied once for each token."""
    D = config.emb_dim
    return D * qkv_width(config) + 9 * D * D


def forward_flops(config: GPTConfig, B: int, T: int, *, n_logits: int) -> int:
    """Return the operations of B sequences of T tokens, of which ``n_logits`` in all get logits."""
    products = B * T * config.n_layers * n_block_weights(config) + n_logits * config.n_outputs * config.emb_dim
    return 2 * products + 4 * config.n_layers * config.emb_dim * B * n_pairs(config, T)


def n_seen(config: GPTConfig, T: int) -> int:
    """Return how many of T tokens the last one looks at."""
    return min(config.sliding_window or T, T)


def n_pairs(config: GPTConfig, T: int) -> int:
    """Return how many (query, key) pairs T tokens have: each looks at itself and those before, in its window."""
    seen = n_seen(config, T)
    return seen * (seen + 1) // 2 + (T - seen) * seen
