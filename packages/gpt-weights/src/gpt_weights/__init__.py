"""GPT-2 weights in and out: OpenAI's, Hugging Face's, nanoGPT's and the book's files; safetensors and GGUF."""

from gpt_weights.convert import convert
from gpt_weights.errors import WeightsError
from gpt_weights.formats import open_weights
from gpt_weights.weights import Weights

__all__ = ["Weights", "WeightsError", "convert", "open_weights"]
