"""GPT-2 weights in and out: OpenAI's, Hugging Face's, nanoGPT's and the book's files; safetensors and GGUF."""
