"""Causal self-attention from the first sketch to the fast form; needs torch and nothing else."""

from gpt_attention.cache import KVCache
from gpt_attention.causal import CausalAttention, MultiHeadAttentionWrapper
from gpt_attention.functional import attend, causal_mask
from gpt_attention.multi_head import MultiHeadAttention, PyTorchMultiHeadAttention
from gpt_attention.products import Linear, PreparedLinear, linear
from gpt_attention.rotary import rotary_angles, rotate
from gpt_attention.self_attention import SelfAttention_v1, SelfAttention_v2
from gpt_attention.slots import OpenSlots, SlotCache

__all__ = [
    "CausalAttention",
    "KVCache",
    "Linear",
    "MultiHeadAttention",
    "MultiHeadAttentionWrapper",
    "OpenSlots",
    "PreparedLinear",
    "PyTorchMultiHeadAttention",
    "SelfAttention_v1",
    "SelfAttention_v2",
    "SlotCache",
    "attend",
    "causal_mask",
    "linear",
    "rotary_angles",
    "rotate",
]
