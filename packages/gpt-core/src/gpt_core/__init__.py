"""The GPT model, text generation and the checkpoint directory."""

from gpt_core.config import GPT_CONFIG_124M, GPTConfig, gpt2_config
from gpt_core.layers import GELU, FeedForward, FeedForwardFast, LayerNorm, TransformerBlock, TransformerBlockFast
from gpt_core.model import GPTModel, GPTModelFast, initialize_gpt2

__all__ = [
    "GELU",
    "GPT_CONFIG_124M",
    "FeedForward",
    "FeedForwardFast",
    "GPTConfig",
    "GPTModel",
    "GPTModelFast",
    "LayerNorm",
    "TransformerBlock",
    "TransformerBlockFast",
    "gpt2_config",
    "initialize_gpt2",
]
