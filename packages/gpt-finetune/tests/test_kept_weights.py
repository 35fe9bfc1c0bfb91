"""Which weights a run ends with. The oracle of the average is a loop over Python floats."""

import pytest
import torch
from torch import nn

from gpt_finetune.kept_weights import KeptWeights


def module_and_steps(n_steps, average=0.0):
    """A module of two trained parameters and a frozen one, after steps whose values are given back."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2).double()
    module.register_parameter("frozen", nn.Parameter(torch.ones(2), requires_grad=False))
    kept = KeptWeights(module, ema_decay=average)
    values = [flat(module)]
    for _ in range(n_steps):
        step(module)
        kept.follow()
        values.append(flat(module))
    return module, kept, values


def step(module):
    with torch.no_grad():
        module.weight.add_(torch.randn(2, 3))
        module.bias.add_(torch.randn(2))


def flat(module):
    return [*module.weight.detach().flatten().tolist(), *module.bias.detach().tolist()]


def polyak(values, average):
    """The mean of each number, from the values before the first step on."""
    means = list(values[0])
    for number, current in enumerate(values[1:], start=1):
        decay = min(average, (1 + number) / (10 + number))
        means = [decay * mean + (1 - decay) * value for mean, value in zip(means, current, strict=True)]
    return means


@pytest.mark.parametrize("average", [0.1, 0.5, 0.99])
def test_the_average_is_polyaks_and_stands_within_the_block_only(average):
    module, kept, values = module_and_steps(30, average)
    with kept.averaged():
        assert flat(module) == pytest.approx(polyak(values, average), abs=1e-12)
    assert flat(module) == values[-1]


def test_training_goes_on_from_the_weights_themselves_not_from_their_average():
    module, kept, values = module_and_steps(5, 0.9)
    with kept.averaged():
        pass
    for _ in range(5):
        step(module)
        kept.follow()
        values.append(flat(module))
    kept.restore()

    assert flat(module) == pytest.approx(polyak(values, 0.9), abs=1e-12)


def test_an_error_within_the_block_leaves_the_weights_themselves():
    module, kept, values = module_and_steps(3, 0.9)
    with pytest.raises(RuntimeError, match="stop"), kept.averaged():
        raise RuntimeError("stop")
    assert flat(module) == values[-1]


def test_without_an_average_the_block_changes_nothing():
    module, kept, values = module_and_steps(3)
    with kept.averaged():
        assert flat(module) == values[-1]


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_what_was_kept_comes_back(average):
    module, kept, _ = module_and_steps(3, average)
    with kept.averaged():
        best = flat(module)
        kept.keep()
    for _ in range(3):
        step(module)
        kept.follow()
    kept.restore()

    assert flat(module) == best


def test_restoring_without_anything_kept_gives_the_average_or_leaves_the_last():
    module, kept, values = module_and_steps(4)
    kept.restore()
    assert flat(module) == values[-1]
    module, kept, values = module_and_steps(4, 0.5)
    kept.restore()
    assert flat(module) == pytest.approx(polyak(values, 0.5), abs=1e-12)


def test_what_is_frozen_is_neither_followed_nor_set():
    module, kept, _ = module_and_steps(2, 0.9)
    with torch.no_grad():
        module.frozen.fill_(5.0)
    with kept.averaged():
        assert module.frozen.tolist() == [5.0, 5.0]
    kept.restore()
    assert module.frozen.tolist() == [5.0, 5.0]
    assert module.weight.requires_grad


def test_the_average_of_16_bit_weights_moves_too():
    """Kept in bfloat16 itself it would stand still: a thousandth of the change is rounded to nothing."""
    module = torch.nn.Linear(4, 4).to(torch.bfloat16)
    start = torch.ones(4, 4)
    kept_module = module
    with torch.no_grad():
        module.weight.copy_(start)
    kept = KeptWeights(kept_module, ema_decay=0.999)
    with torch.no_grad():
        module.weight.fill_(2.0)
    for _ in range(5000):
        kept.follow()
    with kept.averaged():
        assert module.weight.float().mean().item() > 1.9
