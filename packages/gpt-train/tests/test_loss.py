import math
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import gpt_train.loss as module
from gpt_core import GPTModel, GPTModelFast
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


CONFIG = {
    "vocab_size": V, "context_length": T, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0,
    "qkv_bias": False,
}


class DoubledModel(GPTModel):
    def forward(self, *args, **kwargs):
        return 2 * super().forward(*args, **kwargs)


class DoubledLinear(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def doubled_by_instance(module):
    module.forward = MethodType(lambda self, x: 2 * type(self).forward(self, x), module)


def doubled_by_hook(module):
    module.register_forward_hook(lambda module, inputs, output: 2 * output)


def changed(net, change, part):
    change(net if part == "model" else net.out_head)
    return net


@pytest.mark.parametrize(
    "make",
    [
        lambda: GPTModel(CONFIG),
        lambda: DoubledModel(CONFIG),
        lambda: changed(GPTModel(CONFIG), doubled_by_instance, "model"),
        lambda: changed(GPTModel(CONFIG), doubled_by_instance, "head"),
        lambda: changed(GPTModel(CONFIG), doubled_by_hook, "model"),
        lambda: changed(GPTModel(CONFIG), doubled_by_hook, "head"),
        lambda: changed(GPTModel(CONFIG), lambda net: setattr(net, "out_head", DoubledLinear(8, V, False)), "model"),
        lambda: changed(GPTModel(CONFIG), lambda net: setattr(net, "out_head", nn.Linear(8, V)), "model"),
    ],
)
def test_the_loss_is_that_of_the_models_own_logits_however_they_come_about(make):
    torch.manual_seed(0)
    net, (inputs, targets) = make(), next(iter(DataLoader(rows(3), batch_size=3)))
    expected = cross_entropy(net(inputs).flatten(0, 1), targets.flatten())
    grads = torch.autograd.grad(expected, list(net.parameters()))
    found = sequence_loss(net, inputs, targets)

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, list(net.parameters())), grads)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # torch's: ids have no gradient
@pytest.mark.parametrize("part", ["model", "head"])
@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_is_called_as_it_is_without_the_fused_loss(part, kind):
    net, calls = GPTModel(CONFIG), []
    hooked = net if part == "model" else net.out_head
    getattr(hooked, kind)(lambda module, *grads: calls.append(module))
    sequence_loss(net, *next(iter(DataLoader(rows(3), batch_size=3)))).backward()

    assert calls == [hooked]


@pytest.mark.parametrize(
    "make", [GPTModel, lambda config: GPTModel(config, explicit=True), GPTModelFast, type("Named", (GPTModel,), {})]
)
def test_a_model_that_nobody_changed_never_computes_all_its_logits_at_once(make, monkeypatch):
    net = make(CONFIG)
    monkeypatch.setattr(module, "cross_entropy", None)  # calling it would fail
    sequence_loss(net, *next(iter(DataLoader(rows(3), batch_size=3)))).backward()

    assert all(p.grad is not None for p in net.parameters())


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
