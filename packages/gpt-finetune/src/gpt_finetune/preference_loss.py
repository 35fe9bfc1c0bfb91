"""Direct preference optimization (Rafailov et al. 2023, equation 7): a better answer is to become likelier.

loss = -log sigmoid(margin), margin = reward(chosen) - reward(rejected),
reward(answer) = beta (log p(answer | prompt) - log p_reference(answer | prompt)).

Shapes: B pairs, R rows (two a pair), T tokens of the longest, N tokens of all answers, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid
from torch.utils.checkpoint import checkpoint

from gpt_core import GPTModel
from gpt_finetune.padding import padded
from gpt_finetune.preference_pairs import PreferencePairs, rectangles, rows_of

_AT_ONCE = 32  # rows of a batch without gradients
_MOST_LOGITS = 2**25  # held at a time, 128 MB: all of a batch's could be many GB


@dataclass(frozen=True, kw_only=True)
class PreferenceScores:
    """How well a model tells chosen answers from rejected ones; each pair weighs the same."""

    loss: float
    """Mean of -log sigmoid(margin), in nats: ln 2 where model and reference agree."""
    margin: float
    """Mean reward of the chosen answers less that of the rejected ones."""
    accuracy: float
    """Share of the pairs, 0 to 1, whose margin is above 0."""
    chosen_reward: float
    """Mean of beta times what the chosen answer's log-probability has gained over the reference's."""
    rejected_reward: float
    """The same of the rejected answers."""


class PreferenceLoss:
    """The loss of pairs, a ``gpt_train.Loss`` of batches as in ``preference_pairs``: "sum" over the pairs.

    ``reference`` (R,) are the reference's log-probabilities of all rows. ``reduction`` says what an answer's
    log-probability is: the "sum" over its tokens, or their "mean", which does not favour short answers.
    """

    def __init__(
        self, pairs: PreferencePairs, reference: Tensor, *, beta: float, reduction: Literal["sum", "mean"]
    ) -> None:
        self._lengths = [len(row) for row in pairs.rows]
        self._starts, self._reference = pairs.starts, reference
        self._beta, self._reduction = beta, reduction
        self._rewards: dict[bool, list[Tensor]] = {True: [], False: []}

    def __call__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, *, reduction: Literal["mean", "sum"]
    ) -> Tensor:
        """Return the loss as a 0-d tensor, and take note of the rewards."""
        rows = rows_of(targets.tolist())
        lengths, starts = [self._lengths[row] for row in rows], [self._starts[row] for row in rows]
        parts, order = [], []
        for places in rectangles(lengths):
            order += places
            parts.append(
                answer_log_probabilities(
                    cast(GPTModel, model), inputs[places, : lengths[places[0]]], [starts[place] for place in places],
                    [lengths[place] for place in places], reduction=self._reduction,
                ))
        found = torch.cat(parts)[torch.tensor(order, device=inputs.device).argsort()]                   # (2B,)
        gained = found - self._reference[rows].to(found)
        rewards = self._beta * gained.view(-1, 2)                                                       # (B, 2)
        self._rewards[model.training].append(rewards.detach())
        losses = -logsigmoid(rewards[:, 0] - rewards[:, 1])                                             # (B,)
        return losses.sum() if reduction == "sum" else losses.mean()

    def take_scores(self, *, training: bool) -> PreferenceScores:
        """Return the scores of what was computed in train or in eval mode since this was asked last."""
        rewards = torch.cat(self._rewards[training]).float()                                            # (B, 2)
        self._rewards[training].clear()
        margins = rewards[:, 0] - rewards[:, 1]
        means = torch.stack([-logsigmoid(margins), margins, (margins > 0).float(), rewards[:, 0], rewards[:, 1]])
        loss, margin, accuracy, chosen, rejected = means.mean(dim=1).tolist()
        return PreferenceScores(
            loss=loss, margin=margin, accuracy=accuracy, chosen_reward=chosen, rejected_reward=rejected)


@torch.no_grad()
def pair_log_probabilities(
    model: GPTModel, pairs: PreferencePairs, *, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Return the log-probability of each row's answer (R,), on the CPU: without dropout, the mode stays as it was."""
    was_training = model.training
    model.eval()
    found = torch.zeros(len(pairs.rows), dtype=torch.promote_types(model.tok_emb.weight.dtype, torch.float32))
    order = sorted(range(len(pairs.rows)), key=lambda row: len(pairs.rows[row]))
    try:
        for first in range(0, len(order), _AT_ONCE):
            rows = order[first : first + _AT_ONCE]
            inputs, lengths = padded([pairs.rows[row] for row in rows])
            starts = [pairs.starts[row] for row in rows]
            found[rows] = answer_log_probabilities(
                model, inputs.to(model.device), starts, lengths.tolist(), reduction=reduction).cpu()
    finally:
        model.train(was_training)
    return found


def answer_log_probabilities(
    model: GPTModel,
    inputs: Tensor,
    starts: Sequence[int],
    lengths: Sequence[int],
    *,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Return the log-probability (R,) of each row of ``inputs`` (R, T) from its start up to its length.

    "mean" divides by the number of those tokens. Only their positions go through the head, a part at a time, which is
    computed again for the gradient.
    """
    first, end = (torch.tensor(places, device=inputs.device)[:, None] for places in (starts, lengths))  # (R, 1)
    positions = torch.arange(1, inputs.shape[1], device=inputs.device)
    is_answer = (positions >= first) & (positions < end)                                            # (R, T - 1)
    vectors = model.features(inputs[:, :-1])[is_answer]                                             # (N, D)
    targets = inputs[:, 1:][is_answer]                                                              # (N,)
    size = max(1, _MOST_LOGITS // model.config.vocab_size)
    each = torch.cat([
        checkpoint(_log_probabilities, model.out_head, *part, use_reentrant=False)
        for part in zip(vectors.split(size), targets.split(size), strict=True)
    ])                                                                                              # (N,)
    # Not by index_add: on CUDA its order, and so the last bits, would change from run to run.
    sums = each.new_zeros(is_answer.shape).masked_scatter(is_answer, each).sum(dim=1)               # (R,)
    return sums if reduction == "sum" else sums / is_answer.sum(dim=1)


def _log_probabilities(head: nn.Module, vectors: Tensor, targets: Tensor) -> Tensor:
    logits = head(vectors)                                                                          # (N, V)
    # float32 at least: a bfloat16 softmax over 50,257 classes keeps only 8 bits of each probability.
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -cross_entropy(wide, targets, reduction="none")
