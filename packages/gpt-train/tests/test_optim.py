import pytest
import torch
from torch import nn

from gpt_train import TrainConfig, make_optimizer

CONFIG = TrainConfig(max_steps=1, lr=0.1, weight_decay=0.5, beta1=0.8, beta2=0.9, eps=1e-6)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_matrices_decay_and_vectors_do_not_and_a_tied_tensor_appears_once():
    model = Tied()
    decay, rest = make_optimizer(model, CONFIG).param_groups

    assert [id(p) for p in decay["params"]] == [id(model.embedding.weight), id(model.hidden.weight)]
    vectors = (model.norm.weight, model.norm.bias, model.hidden.bias)
    assert [id(p) for p in rest["params"]] == [id(p) for p in vectors]
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.5, 0.0)


def test_steps_equal_adamw_computed_by_hand():
    torch.manual_seed(0)
    model = Tied().double()
    optimizer = make_optimizer(model, CONFIG)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    mean = {name: torch.zeros_like(p) for name, p in expected.items()}
    square = {name: torch.zeros_like(p) for name, p in expected.items()}
    for t in (1, 2, 3):
        for name, p in model.named_parameters():
            p.grad = g = torch.randn_like(p)
            mean[name] = 0.8 * mean[name] + 0.2 * g
            square[name] = 0.9 * square[name] + 0.1 * g * g
            direction = mean[name] / (1 - 0.8**t) / ((square[name] / (1 - 0.9**t)).sqrt() + 1e-6)
            decay = 0.5 if p.dim() == 2 else 0.0
            expected[name] = expected[name] * (1 - 0.1 * decay) - 0.1 * direction
        optimizer.step()

    for name, p in model.named_parameters():
        assert torch.allclose(p, expected[name], rtol=0, atol=1e-12)


def test_frozen_parameters_are_left_out_and_a_group_without_any_too():
    model = nn.Linear(3, 3)
    model.weight.requires_grad_(False)
    [group] = make_optimizer(model, CONFIG).param_groups

    assert [id(p) for p in group["params"]] == [id(model.bias)]


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_optimizer(nn.Linear(3, 3).requires_grad_(False), CONFIG)
