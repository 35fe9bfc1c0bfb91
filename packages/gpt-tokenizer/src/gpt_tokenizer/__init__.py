"""Byte-level BPE tokenizers: train, load, encode and decode; tiktoken is all they need."""

from gpt_tokenizer.bpe import BPETokenizer
from gpt_tokenizer.gpt2 import GPT2Tokenizer, get_tokenizer
from gpt_tokenizer.protocol import Tokenizer
from gpt_tokenizer.simple import SimpleTokenizerV1, SimpleTokenizerV2, build_vocab

__all__ = [
    "BPETokenizer",
    "GPT2Tokenizer",
    "SimpleTokenizerV1",
    "SimpleTokenizerV2",
    "Tokenizer",
    "build_vocab",
    "get_tokenizer",
]
