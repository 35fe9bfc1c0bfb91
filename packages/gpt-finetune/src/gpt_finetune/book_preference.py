"""The book's functions of preference tuning with DPO (chapter 7's bonus): its signatures, lines and numbers.

``gpt_finetune.preference_training`` is what new code uses: there the reference is computed once, an answer's
log-probability is a sum as in the paper, its end is learned, and what does not fit is left out instead of cut off.

Shapes: B pairs, T tokens of the longest row and one of padding, V vocabulary.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid
from torch.optim import Optimizer
from torch.utils.data import Dataset

from gpt_finetune.encode import SupportsEncode, encode_text
from gpt_finetune.instruct import format_input
from gpt_train import generate_and_print_sample

Batch = Mapping[str, Any]
"""What ``collate_preferences`` returns: chosen, rejected and their masks (B, T), and the prompts."""


class PreferenceItem(TypedDict):
    """The ids of a prompt, and of prompt and answer for both answers."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class PreferenceDataset(Dataset[PreferenceItem]):
    """The ids of each entry's prompt, and of the prompt with its answers, ``chosen`` and ``rejected``: without an end.

    What looks like a special token is ordinary text (where the book raises).
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], tokenizer: SupportsEncode) -> None:
        self.data = data
        self.encoded_texts = [_encoded(entry, tokenizer) for entry in data]

    def __getitem__(self, index: int) -> PreferenceItem:
        return self.encoded_texts[index]

    def __len__(self) -> int:
        return len(self.data)


def collate_preferences(
    batch: Sequence[PreferenceItem],
    pad_token_id: int = 50256,
    allowed_max_length: int | None = None,
    mask_prompt_tokens: bool = True,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Return a batch: chosen and rejected (B, T) int64, their masks (B, T) bool, and the prompts, a list of tensors.

    Both are padded to one length, that of the longest row and one more, and cut to ``allowed_max_length``. A mask is
    True where a token counts: not in the padding, nor, with ``mask_prompt_tokens``, in the prompt and the two tokens
    after it. The book calls the function ``custom_collate_fn``, a name that chapter 7 has too. Raises ValueError for an
    empty batch.
    """
    if not batch:
        raise ValueError("batch is empty; give at least one item of a PreferenceDataset")
    width = 1 + max(len(ids) for item in batch for ids in (item["chosen"], item["rejected"]))
    n_prompt = torch.tensor([len(item["prompt"]) + 2 if mask_prompt_tokens else 0 for item in batch])
    collated: dict[str, Any] = {"prompt": [torch.tensor(item["prompt"], dtype=torch.int64) for item in batch]}
    positions = torch.arange(width)
    for name, sequences in (
        ("chosen", [item["chosen"] for item in batch]), ("rejected", [item["rejected"] for item in batch])
    ):
        rows = torch.tensor([[*ids, *[pad_token_id] * (width - len(ids))] for ids in sequences])            # (B, T)
        n_tokens = torch.tensor([len(ids) for ids in sequences])
        is_counted = (positions >= n_prompt[:, None]) & (positions < n_tokens[:, None])                     # (B, T)
        collated[name] = rows[:, :allowed_max_length].to(device)
        collated[f"{name}_mask"] = is_counted[:, :allowed_max_length].to(device)
    return collated


def compute_dpo_loss(
    model_chosen_logprobs: Tensor,
    model_rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    beta: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean loss of pairs (B,), and the mean rewards of chosen and rejected answers, each 0-d.

    loss = -log sigmoid(beta (chosen reward - rejected reward)), Rafailov et al. 2023, equation 7; a reward is how far
    the model's log-probability lies above the reference's, here without beta, and has no gradient.
    """
    chosen = model_chosen_logprobs - reference_chosen_logprobs
    rejected = model_rejected_logprobs - reference_rejected_logprobs
    loss = -logsigmoid(beta * (chosen - rejected)).mean()
    return loss, chosen.detach().mean(), rejected.detach().mean()


def compute_logprobs(
    logits: Tensor,
    labels: Tensor,
    selection_mask: Tensor | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Return each row's log-probability (B,) of ``labels`` (B, T) under ``logits`` (B, T, V) of the tokens before.

    It is the mean over the tokens that ``selection_mask`` (B, T) counts, nan if there is none; None counts all but the
    first. The paper's is the "sum".
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    following = labels[:, 1:]
    each = -cross_entropy(logits[:, :-1].transpose(1, 2), following, reduction="none")                      # (B, T - 1)
    is_counted = torch.ones_like(following, dtype=torch.bool) if selection_mask is None else selection_mask[:, 1:]
    sums = (each * is_counted).sum(dim=-1)
    return sums if reduction == "sum" else sums / is_counted.sum(dim=-1)


def compute_dpo_loss_batch(
    batch: Batch, policy_model: nn.Module, reference_model: nn.Module, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of a batch and the mean rewards, as ``compute_dpo_loss`` does, from both models' logits."""
    chosen, rejected = _batch_logprobs(batch, policy_model)
    with torch.no_grad():
        reference_chosen, reference_rejected = _batch_logprobs(batch, reference_model)
    return compute_dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=beta)


def compute_dpo_loss_loader(
    data_loader: Iterable[Batch],
    policy_model: nn.Module,
    reference_model: nn.Module,
    beta: float,
    num_batches: int | None = None,
) -> tuple[float, float, float]:
    """Return the means of loss and rewards over the first ``num_batches`` batches; None: over all.

    Every batch weighs the same. An empty loader gives nan. Raises ValueError if ``num_batches`` is below 1.
    """
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"num_batches must be at least 1 or None for all, got {num_batches}")
    found = [
        [value.item() for value in compute_dpo_loss_batch(batch, policy_model, reference_model, beta)]
        for batch in islice(data_loader, num_batches)
    ]
    if not found:
        return math.nan, math.nan, math.nan
    loss, chosen, rejected = (sum(values) / len(found) for values in zip(*found, strict=True))
    return loss, chosen, rejected


def evaluate_dpo_loss_loader(
    policy_model: nn.Module,
    reference_model: nn.Module,
    train_loader: Iterable[Batch],
    val_loader: Iterable[Batch],
    beta: float,
    eval_iter: int | None,
) -> dict[str, float]:
    """Return loss and rewards over ``eval_iter`` batches of each loader: train_loss, train_chosen_reward and so on.

    Without the policy's dropout; it is in train mode afterwards, as the book's training loop needs it.
    """
    policy_model.eval()
    found: dict[str, float] = {}
    with torch.no_grad():
        for name, loader in (("train", train_loader), ("val", val_loader)):
            means = compute_dpo_loss_loader(loader, policy_model, reference_model, beta, num_batches=eval_iter)
            found |= zip((f"{name}_loss", f"{name}_chosen_reward", f"{name}_rejected_reward"), means, strict=True)
    policy_model.train()
    return found


def train_model_dpo_simple(
    policy_model: nn.Module,
    reference_model: nn.Module,
    train_loader: Iterable[Batch],
    val_loader: Iterable[Batch],
    optimizer: Optimizer,
    num_epochs: int,
    beta: float,
    eval_freq: int,
    eval_iter: int | None,
    start_context: str,
    tokenizer: Any,
) -> dict[str, list[float]]:
    """Train as the book does; return losses, rewards and tokens seen, an entry for each evaluation.

    Evaluated is after the first step, called step 0, and every ``eval_freq`` steps from there. Each prints a line, each
    epoch a sample. The reference model is used in the mode that it is in: put it into eval mode before. Raises
    FloatingPointError, with the weights unchanged, if the loss is not finite.
    """
    track: dict[str, list[float]] = {
        "train_losses": [], "train_chosen_rewards": [], "train_rejected_rewards": [],
        "val_losses": [], "val_chosen_rewards": [], "val_rejected_rewards": [], "tokens_seen": [],
    }
    tokens_seen, step = 0, 0
    device = next(policy_model.parameters()).device
    for epoch in range(1, num_epochs + 1):
        policy_model.train()
        for batch in train_loader:
            optimizer.zero_grad()
            loss, _, _ = compute_dpo_loss_batch(batch, policy_model, reference_model, beta)
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {step}; the weights were not changed: lower the learning rate, "
                    "or look for an answer of which allowed_max_length leaves no token")
            loss.backward()
            optimizer.step()
            tokens_seen += batch["chosen"].numel()
            if step % eval_freq == 0:
                found = evaluate_dpo_loss_loader(
                    policy_model, reference_model, train_loader, val_loader, beta, eval_iter)
                for part in ("train", "val"):
                    track[f"{part}_losses"].append(found[f"{part}_loss"])
                    track[f"{part}_chosen_rewards"].append(found[f"{part}_chosen_reward"])
                    track[f"{part}_rejected_rewards"].append(found[f"{part}_rejected_reward"])
                track["tokens_seen"].append(tokens_seen)
                train_margin, val_margin = (
                    found[f"{part}_chosen_reward"] - found[f"{part}_rejected_reward"] for part in ("train", "val"))
                print(
                    f"Ep {epoch} (Step {step:06d}): "
                    f"Train loss {found['train_loss']:.3f}, Val loss {found['val_loss']:.3f}, "
                    f"Train reward margins {train_margin:.3f}, Val reward margins {val_margin:.3f}")
            step += 1
        generate_and_print_sample(policy_model, tokenizer, device, start_context)
    return track


def _encoded(entry: Mapping[str, Any], tokenizer: SupportsEncode) -> PreferenceItem:
    prompt = format_input(entry)
    chosen, rejected = (
        encode_text(tokenizer, f"{prompt}\n\n### Response:\n{entry[name]}") for name in ("chosen", "rejected"))
    return {"prompt": encode_text(tokenizer, prompt), "chosen": chosen, "rejected": rejected}


def _batch_logprobs(batch: Batch, model: nn.Module) -> tuple[Tensor, Tensor]:
    chosen, rejected = (
        compute_logprobs(model(batch[name]), labels=batch[name], selection_mask=batch[f"{name}_mask"])
        for name in ("chosen", "rejected"))
    return chosen, rejected
