"""GPT-2 weights in and out: OpenAI's, Hugging Face's, nanoGPT's and the book's files; safetensors and GGUF."""

from gpt_weights.book import (
    assign,
    download_and_load_gpt2,
    download_file,
    load_gpt2_params_from_tf_ckpt,
    load_weights_into_gpt,
)
from gpt_weights.convert import convert
from gpt_weights.download import RemoteFile, Timing, fetch
from gpt_weights.errors import WeightsError
from gpt_weights.export import Export
from gpt_weights.export_gguf import export_gguf
from gpt_weights.export_huggingface import export_huggingface
from gpt_weights.formats import open_weights
from gpt_weights.hub import cache_folder, fetch_from_hub, fetch_from_openai
from gpt_weights.inspection import Inspection, inspect
from gpt_weights.tokenizer import TokenizerFile, find_tokenizer
from gpt_weights.weights import Weights

__all__ = [
    "Export",
    "Inspection",
    "RemoteFile",
    "Timing",
    "TokenizerFile",
    "Weights",
    "WeightsError",
    "assign",
    "cache_folder",
    "convert",
    "download_and_load_gpt2",
    "download_file",
    "export_gguf",
    "export_huggingface",
    "fetch",
    "fetch_from_hub",
    "fetch_from_openai",
    "find_tokenizer",
    "inspect",
    "load_gpt2_params_from_tf_ckpt",
    "load_weights_into_gpt",
    "open_weights",
]
