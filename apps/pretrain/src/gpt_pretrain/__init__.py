"""Train a GPT from raw text on your own machine and let it write."""
