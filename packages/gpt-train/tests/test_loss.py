import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from gpt_train import calc_loss_batch, calc_loss_loader, evaluate_model, sequence_loss

V, T = 11, 4


def model(drop_rate=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(V, 8), nn.Dropout(drop_rate), nn.Linear(8, V))


def rows(n, seed=1):
    ids = torch.randint(0, V, (n, T + 1), generator=torch.Generator().manual_seed(seed))
    return [(row[:-1], row[1:].clone()) for row in ids]


def by_hand(net, inputs, targets):
    """Minus the logarithm of each counted target's probability."""
    probabilities = torch.softmax(net(inputs), dim=-1)
    return [
        -math.log(probabilities[b, t, targets[b, t]].item())
        for b in range(len(inputs))
        for t in range(T)
        if targets[b, t] != -100
    ]


@pytest.mark.parametrize("ignored", [0, 3])
def test_the_loss_is_minus_the_log_of_the_counted_targets_probabilities(ignored):
    net = model()
    inputs, targets = next(iter(DataLoader(rows(5), batch_size=5)))
    targets[1, :ignored] = -100
    expected = by_hand(net, inputs, targets)
    mean = pytest.approx(sum(expected) / len(expected), rel=1e-5)

    assert len(expected) == 5 * T - ignored
    assert sequence_loss(net, inputs, targets).item() == mean
    assert calc_loss_batch(inputs, targets, net, "cpu").item() == mean
    total = sequence_loss(net, inputs, targets, reduction="sum").item()
    assert total == pytest.approx(sum(expected), rel=1e-5)


def test_the_gradient_is_that_of_the_formula():
    net, inputs, targets = model().double(), *next(iter(DataLoader(rows(3), batch_size=3)))
    sequence_loss(net, inputs, targets).backward()
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    chosen = torch.log_softmax(net(inputs), dim=-1).gather(-1, targets[..., None])
    (-chosen.mean()).backward()

    for gradient, p in zip(found, net.parameters(), strict=True):
        assert torch.allclose(gradient, p.grad, atol=1e-12)


def test_the_mean_over_no_counted_target_is_nan_as_in_the_book():
    inputs, targets = next(iter(DataLoader(rows(1), batch_size=1)))

    assert math.isnan(sequence_loss(model(), inputs, torch.full_like(targets, -100)).item())


def test_a_loaders_loss_is_the_unweighted_mean_of_its_batches_losses():
    net, loader = model(), DataLoader(rows(5), batch_size=2)
    means = []
    for x, y in loader:
        losses = by_hand(net, x, y)
        means.append(sum(losses) / len(losses))

    assert len(means) == 3
    for n in (1, 2, 3, 7, None):
        expected = sum(means[:n]) / len(means[:n])
        assert calc_loss_loader(loader, net, "cpu", n) == pytest.approx(expected, rel=1e-5)


def test_an_empty_loader_gives_nan():
    assert math.isnan(calc_loss_loader([], model(), "cpu"))


@pytest.mark.parametrize("n", [0, -1])
def test_a_number_of_batches_below_one_is_refused(n):
    with pytest.raises(ValueError, match=f"got {n}"):
        calc_loss_loader(DataLoader(rows(2)), model(), "cpu", n)


def test_evaluation_has_no_dropout_and_no_gradient_and_ends_in_train_mode():
    net = model(drop_rate=0.9).eval()
    train, val = DataLoader(rows(6), batch_size=2), DataLoader(rows(4, seed=2), batch_size=2)
    expected = calc_loss_loader(train, net, "cpu", 2), calc_loss_loader(val, net, "cpu", 2)

    assert evaluate_model(net, train, val, "cpu", 2) == pytest.approx(expected)
    assert net.training
    assert all(p.grad is None for p in net.parameters())


def test_evaluating_a_shuffling_loader_draws_what_one_pass_over_it_draws():
    """The book's printed numbers rest on it: an evaluation moves the generator that shuffles the training."""
    loader, net = DataLoader(rows(6), batch_size=2, shuffle=True), model()
    torch.manual_seed(5)
    for _ in loader:
        pass
    after_pass = torch.get_rng_state()
    torch.manual_seed(5)
    calc_loss_loader(loader, net, "cpu", 1)

    assert torch.equal(torch.get_rng_state(), after_pass)
