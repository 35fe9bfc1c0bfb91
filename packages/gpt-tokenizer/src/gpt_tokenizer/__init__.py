"""Byte-level BPE tokenizers: train, load, encode and decode; needs tiktoken and nothing else."""
