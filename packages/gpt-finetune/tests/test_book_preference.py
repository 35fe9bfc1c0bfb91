"""The book's preference tuning. The oracles are plain loops over single tokens in float64."""

import copy
import math

import pytest
import torch
from torch.utils.data import DataLoader

from gpt_core import GPTConfig, GPTModel
from gpt_finetune.book_preference import (
    PreferenceDataset,
    collate_preferences,
    compute_dpo_loss,
    compute_dpo_loss_batch,
    compute_dpo_loss_loader,
    compute_logprobs,
    evaluate_dpo_loss_loader,
    train_model_dpo_simple,
)

PAD = 127
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n")
DATA = [
    {"instruction": f"Praise the {thing}.", "input": "", "chosen": "With pleasure.", "rejected": f"No{'!' * n}"}
    for n, thing in enumerate(["sea", "sky", "sun", "moon", "snow", "rose"])
]


class Letters:
    """One id a character; as tiktoken's, its ``encode`` refuses the name of a special token."""

    def encode(self, text, allowed_special=()):
        if "<|endoftext|>" in text and "<|endoftext|>" not in allowed_special:
            raise ValueError("disallowed special token")
        return self.encode_ordinary(text)

    def encode_ordinary(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def make(seed, **changes):
    torch.manual_seed(seed)
    return GPTModel(GPTConfig(**{
        "vocab_size": 128, "context_length": 256, "emb_dim": 16, "n_heads": 2, "n_layers": 1, **changes}))


def loader_of(data, batch_size=2):
    return DataLoader(
        PreferenceDataset(data, Letters()), batch_size=batch_size,
        collate_fn=lambda batch: collate_preferences(batch, pad_token_id=PAD))


@torch.no_grad()
def plain_logprob(model, ids, n_prompt):
    """The mean over the tokens behind the prompt and two more, as the book's mask has it."""
    logits = model(torch.tensor([ids]))[0].double().tolist()
    each = [
        logits[place - 1][ids[place]] - math.log(sum(map(math.exp, logits[place - 1])))
        for place in range(n_prompt + 2, len(ids))
    ]
    return sum(each) / len(each)


def plain_loss(policy, reference, data, beta):
    losses, chosen_rewards, rejected_rewards = [], [], []
    for item in PreferenceDataset(data, Letters()):
        chosen, rejected = (
            plain_logprob(policy, item[name], len(item["prompt"]))
            - plain_logprob(reference, item[name], len(item["prompt"])) for name in ("chosen", "rejected"))
        losses.append(math.log(1 + math.exp(-beta * (chosen - rejected))))
        chosen_rewards.append(chosen)
        rejected_rewards.append(rejected)
    return [sum(values) / len(data) for values in (losses, chosen_rewards, rejected_rewards)]


def test_an_item_is_the_prompt_and_the_prompt_with_each_answer():
    data = [{"instruction": "Hi", "input": "you", "chosen": "Hello.", "rejected": "<|endoftext|>"}]
    dataset = PreferenceDataset(data, Letters())
    prompt = f"{PROMPT}Hi\n\n### Input:\nyou"

    assert (len(dataset), dataset.data) == (1, data)
    assert {name: Letters().decode(ids) for name, ids in dataset[0].items()} == {
        "prompt": prompt, "chosen": f"{prompt}\n\n### Response:\nHello.",
        "rejected": f"{prompt}\n\n### Response:\n<|endoftext|>"}


ITEMS = [
    {"prompt": [1, 2, 3], "chosen": [1, 2, 3, 9, 9, 4], "rejected": [1, 2, 3, 9, 9, 5, PAD, 6]},
    {"prompt": [7], "chosen": [7, 9, 9, 8, 8], "rejected": [7, 9, 9, 3]},
]


def test_a_batch_is_padded_to_one_more_than_its_longest_row_and_masked_by_place():
    batch = collate_preferences(ITEMS, pad_token_id=PAD)

    assert [prompt.tolist() for prompt in batch["prompt"]] == [[1, 2, 3], [7]]
    assert batch["chosen"].tolist() == [[1, 2, 3, 9, 9, 4, PAD, PAD, PAD], [7, 9, 9, 8, 8, PAD, PAD, PAD, PAD]]
    assert batch["rejected"].tolist() == [[1, 2, 3, 9, 9, 5, PAD, 6, PAD], [7, 9, 9, 3, PAD, PAD, PAD, PAD, PAD]]
    assert batch["chosen_mask"].int().tolist() == [[0, 0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0]]
    assert batch["rejected_mask"].int().tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0, 0, 0]]
    assert (batch["chosen"].dtype, batch["chosen_mask"].dtype) == (torch.int64, torch.bool)


def test_a_batch_may_count_the_prompt_and_may_be_cut():
    batch = collate_preferences(ITEMS, PAD, allowed_max_length=4, mask_prompt_tokens=False)

    assert batch["rejected"].tolist() == [[1, 2, 3, 9], [7, 9, 9, 3]]
    assert all(batch[name].shape == (2, 4) for name in ("chosen", "chosen_mask", "rejected_mask"))
    assert batch["rejected_mask"].all()
    with pytest.raises(ValueError, match="batch is empty"):
        collate_preferences([])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_logprobs_are_the_counted_tokens_and_no_others(reduction):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    mask = torch.tensor([[True, True, False, True, False], [False, False, False, False, True]])
    for selected in (mask, None):
        expected = []
        for row in range(2):
            each = [
                math.log(torch.softmax(logits[row, place - 1].double(), 0)[labels[row, place]])
                for place in range(1, 5) if selected is None or selected[row, place]
            ]
            expected.append(sum(each) / (len(each) if reduction == "mean" else 1))
        found = compute_logprobs(logits, labels, selected, reduction=reduction)
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(compute_logprobs(logits, labels, mask), compute_logprobs(logits, labels, mask, reduction="mean"))
    assert compute_logprobs(logits, labels, torch.zeros_like(mask)).isnan().all()
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'max'"):
        compute_logprobs(logits, labels, reduction="max")


def test_the_loss_is_the_papers_and_the_rewards_have_no_gradient():
    policy_chosen, policy_rejected = torch.tensor([-1.0, -4.0], requires_grad=True), torch.tensor([-2.0, -3.0])
    loss, chosen, rejected = compute_dpo_loss(
        policy_chosen, policy_rejected, torch.tensor([-1.5, -4.5]), torch.tensor([-1.0, -5.0]), beta=0.3)
    margins = [0.5 - (-1.0), 0.5 - 2.0]

    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(-0.3 * margin)) for margin in margins) / 2)
    assert (chosen.item(), rejected.item()) == (0.5, 0.5)
    assert (loss.requires_grad, chosen.requires_grad, rejected.requires_grad) == (True, False, False)
    same = torch.tensor([-1.0])
    assert compute_dpo_loss(same, same, same, same)[0].item() == pytest.approx(math.log(2))


def test_batch_loader_and_evaluation_are_plain_sums():
    policy, reference = make(1), make(2)
    batch = next(iter(loader_of(DATA[:3], batch_size=3)))
    loss, *rewards = compute_dpo_loss_batch(batch, policy, reference, beta=0.5)
    loss.backward()

    assert [loss.item(), *(reward.item() for reward in rewards)] == pytest.approx(
        plain_loss(policy, reference, DATA[:3], 0.5), abs=1e-5)
    assert all(parameter.grad is None for parameter in reference.parameters())

    whole = compute_dpo_loss_loader(loader_of(DATA), policy, reference, 0.5)
    assert whole == pytest.approx(plain_loss(policy, reference, DATA, 0.5), abs=1e-5)
    first = compute_dpo_loss_loader(loader_of(DATA), policy, reference, 0.5, num_batches=2)
    assert first == pytest.approx(plain_loss(policy, reference, DATA[:4], 0.5), abs=1e-5)
    assert all(map(math.isnan, compute_dpo_loss_loader([], policy, reference, 0.5)))
    with pytest.raises(ValueError, match="num_batches must be at least 1"):
        compute_dpo_loss_loader(loader_of(DATA), policy, reference, 0.5, num_batches=0)

    found = evaluate_dpo_loss_loader(policy, reference, loader_of(DATA[:4]), loader_of(DATA[4:]), 0.5, eval_iter=1)
    names = ("loss", "chosen_reward", "rejected_reward")
    for part, data in (("train", DATA[:2]), ("val", DATA[4:])):
        assert [found.pop(f"{part}_{name}") for name in names] == pytest.approx(
            plain_loss(policy, reference, data, 0.5), abs=1e-5)
    assert (found, policy.training) == ({}, True)


def test_training_follows_a_plain_loop_and_prints_its_lines(capsys):
    policy, reference = make(1, drop_rate=0.1), make(1)
    plain = copy.deepcopy(policy)
    reference.eval()
    # Lists: a loader would draw a random number each time, and dropout others.
    batches, held_out = list(loader_of(DATA[:4])), list(loader_of(DATA[4:]))
    torch.manual_seed(7)
    track = train_model_dpo_simple(
        policy, reference, batches, held_out, torch.optim.AdamW(policy.parameters(), lr=1e-3),
        num_epochs=2, beta=0.1, eval_freq=3, eval_iter=2, start_context="Praise", tokenizer=Letters())

    optimizer, expected = torch.optim.AdamW(plain.parameters(), lr=1e-3), []
    torch.manual_seed(7)
    for step, batch in enumerate([*batches, *batches]):
        optimizer.zero_grad()
        compute_dpo_loss_batch(batch, plain.train(), reference, 0.1)[0].backward()
        optimizer.step()
        if step % 3 == 0:
            plain.eval()
            expected.append([
                *plain_loss(plain, reference, DATA[:4], 0.1), *plain_loss(plain, reference, DATA[4:], 0.1)])
    names = [f"{part}_{name}" for part in ("train", "val") for name in ("losses", "chosen_rewards", "rejected_rewards")]
    for name, values in zip(names, zip(*expected, strict=True), strict=True):
        assert track[name] == pytest.approx(values, abs=1e-4), name
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(policy.get_parameter(name), parameter, atol=1e-6, rtol=0, msg=name)
    numels = [batch["chosen"].numel() for batch in batches]
    assert track["tokens_seen"] == [numels[0], 2 * sum(numels)]

    lines = capsys.readouterr().out.splitlines()
    margins = [
        track[f"{part}_chosen_rewards"][1] - track[f"{part}_rejected_rewards"][1] for part in ("train", "val")]
    evaluations = [line for line in lines if line.startswith("Ep ")]
    assert [line[:18] for line in evaluations] == ["Ep 1 (Step 000000)", "Ep 2 (Step 000003)"]
    assert evaluations[1] == (
        f"Ep 2 (Step 000003): Train loss {track['train_losses'][1]:.3f}, Val loss {track['val_losses'][1]:.3f}, "
        f"Train reward margins {margins[0]:.3f}, Val reward margins {margins[1]:.3f}")
    assert sum(line.startswith("Praise") for line in lines) == 2


def test_an_answer_that_is_cut_off_wholly_stops_the_training_before_it_spoils_the_weights():
    policy = make(1)
    before = copy.deepcopy(policy.state_dict())
    batch = collate_preferences(ITEMS, PAD, allowed_max_length=4)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 0; .*allowed_max_length"):
        train_model_dpo_simple(
            policy, make(2), [batch], [batch], torch.optim.SGD(policy.parameters(), lr=1.0), 1, 0.1, 1, 1, "a",
            Letters())
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, before[name])
