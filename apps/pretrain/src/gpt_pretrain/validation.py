"""Validation loss per token, and per character: the latter compares different vocabularies."""

import torch

from gpt_pretrain.data import TrainingData


class Validation:
    """The first ``most_tokens`` of the validation text as whole batches (at least one), and what its loss means.

    Attributes: ``batches``, a list-like of (inputs, targets); ``n_tokens`` scored; ``n_characters`` they
    spell; ``opening``, the first words, which the model has not seen ("" if there are none).
    """

    def __init__(self, data: TrainingData, *, batch_size: int, context_length: int, most_tokens: int) -> None:
        windows = data.val.windows(batch_size=batch_size, context_length=context_length)
        n_batches = max(1, most_tokens // (batch_size * context_length))
        self.batches = windows if len(windows) <= n_batches else windows[:n_batches]
        targets = torch.cat([targets.flatten() for _, targets in self.batches])
        scored = targets[targets >= 0]  # -100 fills up the last window
        self.n_tokens = len(scored)
        # The end-of-text tokens between documents are scored, yet spell nothing.
        spelled = scored[scored != data.tokenizer.eot_token].tolist()
        self.n_characters = len(data.tokenizer.decode_bytes(spelled).decode("utf-8", errors="ignore"))
        inputs, targets = self.batches[0]
        words = data.tokenizer.decode(inputs[targets >= 0].tolist()).split()
        # Held out is often the end of a text, which then begins within a word.
        self.opening = " ".join(words[:3] if words and words[0][:1].isupper() else words[1:4])

    def per_character(self, loss: float) -> float:
        """Return the mean ``loss`` in nats a token as nats a character."""
        return loss * self.n_tokens / max(self.n_characters, 1)

    def line(self, step: int, loss: float) -> str:
        """Return the line that tells a person of an evaluation."""
        return (
            f"step {step:,}: validation loss {loss:.3f} nats a token, {self.per_character(loss):.3f} nats a character"
        )
