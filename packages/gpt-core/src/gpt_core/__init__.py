"""The GPT model, text generation and the checkpoint directory."""
