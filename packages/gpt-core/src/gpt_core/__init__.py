"""The GPT model, text generation and the checkpoint directory."""

from gpt_core.checkpoint import (
    Checkpoint,
    CheckpointFiles,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from gpt_core.config import GPT_CONFIG_124M, GPTConfig, gpt2_config
from gpt_core.durable import CheckpointError, force_to_disk, remove_abandoned
from gpt_core.engine import Engine
from gpt_core.estimate import Estimate, estimate
from gpt_core.generate import (
    generate,
    generate_batch,
    generate_text_simple,
    generate_text_simple_stream,
    generate_tokens,
    trim_input_tensor,
)
from gpt_core.inference import InferenceModel
from gpt_core.layers import (
    GELU,
    FeedForward,
    FeedForwardFast,
    LayerNorm,
    RMSNorm,
    TransformerBlock,
    TransformerBlockFast,
)
from gpt_core.model import GPTModel, GPTModelFast, initialize_gpt2
from gpt_core.quantize import quantize
from gpt_core.sampling import Sampling, next_token
from gpt_core.sequence import GeneratedToken
from gpt_core.speculate import Drafter, DraftModel, PromptLookup
from gpt_core.text import TextStream, decode_stream, text_to_token_ids, token_ids_to_text
from gpt_core.weights import model_from_tensors, parameter_shapes

__all__ = [
    "GELU",
    "GPT_CONFIG_124M",
    "Checkpoint",
    "CheckpointError",
    "CheckpointFiles",
    "DraftModel",
    "Drafter",
    "Engine",
    "Estimate",
    "FeedForward",
    "FeedForwardFast",
    "GPTConfig",
    "GPTModel",
    "GPTModelFast",
    "GeneratedToken",
    "InferenceModel",
    "LayerNorm",
    "PromptLookup",
    "RMSNorm",
    "Sampling",
    "TextStream",
    "TransformerBlock",
    "TransformerBlockFast",
    "decode_stream",
    "estimate",
    "force_to_disk",
    "generate",
    "generate_batch",
    "generate_text_simple",
    "generate_text_simple_stream",
    "generate_tokens",
    "gpt2_config",
    "initialize_gpt2",
    "list_checkpoints",
    "load_checkpoint",
    "model_from_tensors",
    "next_token",
    "parameter_shapes",
    "prune_checkpoints",
    "quantize",
    "read_checkpoint",
    "remove_abandoned",
    "save_checkpoint",
    "text_to_token_ids",
    "token_ids_to_text",
    "trim_input_tensor",
    "verify_checkpoint",
]
