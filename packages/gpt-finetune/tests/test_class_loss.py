"""The class loss. The oracle goes text by text through torch's cross_entropy in float64, without any padding."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from gpt_core import GPTConfig, GPTModel
from gpt_finetune.class_batches import class_batch
from gpt_finetune.class_loss import ClassLoss
from gpt_finetune.trained_part import TrainedPart

CONFIG = GPTConfig(vocab_size=256, context_length=48, emb_dim=24, n_heads=3, n_layers=2, n_classes=3)
SEQUENCES = [[5, 6, 7, 8], [9], [10, 11], [12, 13, 14, 15, 16, 17]]
CLASSES = [2, 0, 1, 1]
TERMS = [{}, {"lm_weight": 0.5}, {"every_token": 0.3}, {"every_token": 0.6, "lm_weight": 0.2}]


def made():
    torch.manual_seed(0)
    return GPTModel(CONFIG)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(found, expected):
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-10, rtol=0, msg=name)


@pytest.mark.parametrize("class_weights", [None, (1.0, 1.0, 1.0), (0.2, 3.0, 0.7)])
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_loss_and_gradient_are_those_of_torchs_cross_entropy_text_by_text(class_weights, terms):
    model = made().double()
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    every_token, lm_weight = terms.get("every_token", 0.0), terms.get("lm_weight", 0.0)
    at_last, at_every, next_sum, n_next = 0.0, 0.0, 0.0, 0
    for ids, number in zip(SEQUENCES, CLASSES, strict=True):
        vectors = model.features(torch.tensor([ids]))[0]
        losses = [
            cross_entropy(logits[None], torch.tensor([number]), weight=weight, reduction="sum")
            for logits in model.out_head(vectors)
        ]
        at_last = at_last + losses[-1]
        at_every = at_every + sum(
            loss * place for place, loss in enumerate(losses, start=1)) / sum(range(1, len(ids) + 1))
        if len(ids) > 1:
            logits = vectors[:-1] @ model.tok_emb.weight.T
            next_sum = next_sum + cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
            n_next += len(ids) - 1
    expected = (1 - every_token) * at_last + every_token * at_every
    expected = expected + lm_weight * len(SEQUENCES) * next_sum / n_next
    expected.backward()
    by_hand = gradients(model)
    model.zero_grad(set_to_none=True)
    part = TrainedPart(model).train()
    loss = ClassLoss(weight, **terms)
    inputs, targets = class_batch(SEQUENCES, CLASSES)
    found = loss(part, inputs, targets, reduction="sum")
    found.backward()

    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    assert loss(part, inputs, targets, reduction="mean").item() == pytest.approx(expected.item() / 4, abs=1e-9)
    assert gradients(model).keys() == by_hand.keys()
    assert_same(gradients(model), by_hand)


@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_padding_changes_neither_loss_nor_gradient(terms):
    model = made().double()
    part, loss = TrainedPart(model).train(), ClassLoss(None, **terms)
    inputs, targets = class_batch(SEQUENCES, CLASSES)
    seen = []
    for n_columns, pad in ((6, 0), (6, 255), (40, 77)):
        wide = torch.full((4, n_columns), pad)
        is_real = torch.arange(6) < torch.tensor([[len(ids)] for ids in SEQUENCES])
        wide[:, :6] = torch.where(is_real, inputs, pad)
        wide_targets = torch.full((4, n_columns), -100)
        wide_targets[:, :6] = targets
        model.zero_grad(set_to_none=True)
        value = loss(part, wide, wide_targets, reduction="sum")
        value.backward()
        seen.append((value.item(), gradients(model)))

    for value, gradient in seen[1:]:
        assert value == pytest.approx(seen[0][0], abs=1e-10)
        assert_same(gradient, seen[0][1])


def test_texts_of_one_token_have_no_next_token_and_no_other_than_the_last():
    part = TrainedPart(made()).train()
    inputs, targets = class_batch([[5], [6]], [0, 1])
    with_both, without = (
        ClassLoss(None, lm_weight=w, every_token=w)(part, inputs, targets, reduction="sum") for w in (0.5, 0.0))
    assert with_both.item() == pytest.approx(without.item(), abs=1e-6)


def test_a_loss_of_bfloat16_weights_is_computed_in_float32():
    part = TrainedPart(made().bfloat16()).train()
    inputs, targets = class_batch(SEQUENCES, CLASSES)
    loss = ClassLoss(None, every_token=0.5, lm_weight=0.1)
    assert loss(part, inputs, targets, reduction="sum").dtype == torch.float32
