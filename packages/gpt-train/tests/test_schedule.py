import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from gpt_train import TrainConfig, learning_rate_at


def rates(config, n):
    return [learning_rate_at(step, config) for step in range(n)]


def test_it_gives_appendix_ds_example():
    config = TrainConfig(max_steps=6, warmup_steps=2, initial_lr=1e-5, lr=1e-3, min_lr=1e-5)

    expected = [1e-05, 0.000505, 0.001, 0.000855017856687341, 0.000505, 0.000154982143312659]
    assert rates(config, 6) == pytest.approx(expected, rel=1e-12)


@given(warmup=st.integers(1, 20), length=st.integers(1, 50), least=st.floats(0, 1))
def test_it_equals_torchs_linear_warm_up_followed_by_cosine_annealing(warmup, length, least):
    lr = 0.125
    config = TrainConfig(
        max_steps=warmup + length, warmup_steps=warmup, initial_lr=lr / 5, lr=lr, min_lr=lr * least
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=1 / 5, total_iters=warmup),
            CosineAnnealingLR(optimizer, T_max=length, eta_min=lr * least),
        ],
        milestones=[warmup],
    )
    expected = []
    for _ in range(warmup + length):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()

    assert rates(config, warmup + length) == pytest.approx(expected, abs=1e-9)


def test_without_an_initial_rate_the_ramp_is_even_and_no_step_has_rate_zero():
    config = TrainConfig(max_steps=10, warmup_steps=4, lr=0.5)

    assert rates(config, 5) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_without_warm_up_it_begins_at_the_peak():
    assert learning_rate_at(0, TrainConfig(max_steps=10, lr=0.5)) == 0.5


def test_from_the_last_step_on_the_rate_stays_at_its_minimum():
    config = TrainConfig(max_steps=10, lr=0.5, min_lr=0.01)

    assert learning_rate_at(9, config) > 0.01
    assert [learning_rate_at(step, config) for step in (10, 11, 10**9)] == [0.01] * 3


def test_a_constant_schedule_keeps_the_peak_after_the_warm_up():
    config = TrainConfig(max_steps=10, lr=0.5, warmup_steps=1, min_lr=0.1, schedule="constant")

    assert rates(config, 12) == [0.25] + [0.5] * 11


def test_a_warm_up_longer_than_the_run_is_simply_cut_off():
    config = TrainConfig(max_steps=4, warmup_steps=8, initial_lr=0.0, lr=0.8)

    assert rates(config, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="-1"):
        learning_rate_at(-1, TrainConfig(max_steps=4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_steps": 0}, {"max_steps": 1.5}, {"max_steps": True}, {"max_steps": "9"}, {"accumulate": 0},
        {"warmup_steps": -1}, {"eval_every": -1}, {"lr": -1e-3}, {"lr": math.nan}, {"lr": math.inf},
        {"min_lr": 0.5}, {"initial_lr": -1.0}, {"weight_decay": math.nan}, {"beta1": 1.0}, {"beta2": 1.0},
        {"eps": 0}, {"grad_clip": -1.0}, {"schedule": "linear"}, {"precision": "float16"}, {"compile": 1},
    ],
)
def test_a_setting_that_breaks_its_rule_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig(**({"max_steps": 10} | wrong))
