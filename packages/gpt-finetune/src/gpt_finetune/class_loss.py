"""What a classifier is trained by: the cross-entropy of the class, at a text's last token or at each.

Shapes: B texts, T tokens of the longest, C classes, D width, N tokens of all texts of the batch.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from gpt_finetune.class_batches import last_tokens
from gpt_finetune.trained_part import TrainedPart


class ClassLoss:
    """Cross-entropy of the class at each text's last token, weighted; beside it, if asked for, two more terms.

    ``weights`` (C,) of the classes, or None. ``every_token`` is the share of the same loss at every token of a text,
    position p of L weighing (p + 1) / L: what is read so far should tell the class, the more so the later.
    ``lm_weight`` adds the mean loss of the next token, told by the token embedding's own matrix: no second head.
    It is a ``gpt_train.Loss`` of a ``TrainedPart``: "sum" over the texts.
    """

    def __init__(self, weights: Tensor | None, *, every_token: float = 0.0, lm_weight: float = 0.0) -> None:
        self.weights, self.every_token, self.lm_weight = weights, every_token, lm_weight

    def __call__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, *, reduction: Literal["mean", "sum"]
    ) -> Tensor:
        """Return the loss as a 0-d tensor."""
        assert isinstance(model, TrainedPart)
        rows, classes = last_tokens(targets)
        if self.every_token or self.lm_weight:
            every = model(inputs)                                                   # (B, T, D)
            vectors = every[torch.arange(len(rows), device=rows.device), rows]
        else:
            every, vectors = None, model(inputs, rows)                              # (B, D)
        total = self._losses(model, vectors, classes).sum()
        if every is not None and self.every_token:
            at_every = self._at_every_token(model, every, rows, classes)
            total = (1 - self.every_token) * total + self.every_token * at_every
        if every is not None and self.lm_weight:
            total = total + self.lm_weight * len(rows) * _next_token_loss(model, every, inputs, rows)
        return total if reduction == "sum" else total / len(rows)

    def _losses(self, model: TrainedPart, vectors: Tensor, classes: Tensor) -> Tensor:
        losses = cross_entropy(_widened(model.model.out_head(vectors)), classes, reduction="none")
        return losses if self.weights is None else losses * self.weights.to(losses.device)[classes]

    def _at_every_token(self, model: TrainedPart, every: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
        """Return the sum over the texts of the weighted mean over their tokens."""
        positions = torch.arange(every.shape[1], device=every.device)
        is_own = positions <= rows.unsqueeze(1)                                     # (B, T)
        of_text = classes.unsqueeze(1).expand(is_own.shape)[is_own]                 # (N,)
        losses = self._losses(model, every[is_own], of_text)
        shares = (positions + 1).to(losses.dtype) * is_own
        shares = shares / shares.sum(dim=1, keepdim=True)                           # (B, T), each row sums to 1
        return (losses * shares[is_own]).sum()


def _next_token_loss(model: TrainedPart, every: Tensor, inputs: Tensor, rows: Tensor) -> Tensor:
    """Return the mean over all tokens that follow another in their text; 0 if there is none."""
    is_followed = torch.arange(inputs.shape[1] - 1, device=inputs.device) < rows.unsqueeze(1)           # (B, T - 1)
    logits = linear(every[:, :-1][is_followed], model.model.tok_emb.weight)
    if not len(logits):
        return logits.sum()
    return cross_entropy(_widened(logits), inputs[:, 1:][is_followed])


def _widened(logits: Tensor) -> Tensor:
    """Return 16-bit logits as float32: a bfloat16 softmax keeps only 8 bits of each probability."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
