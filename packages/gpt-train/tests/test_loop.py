import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gpt_train import DataError, TrainConfig, TrainState, train

V, T = 23, 6


class Tiny(nn.Module):
    """A model of a few parameters that looks back, with dropout."""

    def __init__(self, drop_rate=0.0):
        super().__init__()
        self.tok_emb = nn.Embedding(V, 8)
        self.drop = nn.Dropout(drop_rate)
        self.norm = nn.LayerNorm(8)
        self.out_head = nn.Linear(8, V)

    def forward(self, ids):
        return self.out_head(self.norm(self.drop(self.tok_emb(ids)).cumsum(1)))


def tiny(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Tiny(**kwargs)


def batches(n, *, batch_size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (n, batch_size, T + 1), generator=generator)
    return [(rows[:, :-1], rows[:, 1:].clone()) for rows in ids]


def config(max_steps, **kwargs):
    return TrainConfig(**({"max_steps": max_steps, "precision": "float32"} | kwargs))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run(model, data, cfg, **kwargs):
    return list(train(model, data, config=cfg, **kwargs))


def test_training_equals_a_plain_loop_written_by_hand():
    data, ours, theirs = batches(12), tiny(), tiny()
    cfg = config(12, lr=0.02, warmup_steps=3, grad_clip=0.5, weight_decay=0.3)
    reports = run(ours, data, cfg)

    decay = [theirs.tok_emb.weight, theirs.out_head.weight]
    rest = [theirs.norm.weight, theirs.norm.bias, theirs.out_head.bias]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    for s, (inputs, targets) in enumerate(data):
        lr = 0.02 * (s + 1) / 4 if s < 3 else 0.01 * (1 + math.cos(math.pi * (s - 3) / 9))
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = cross_entropy(theirs(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        assert reports[s].loss == pytest.approx(loss.item(), rel=1e-6)
        assert reports[s].grad_norm == pytest.approx(norm.item(), rel=1e-5)
        assert reports[s].lr == pytest.approx(lr, rel=1e-12)
    assert torch.allclose(weights(ours), weights(theirs), atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_accumulating_small_batches_equals_one_big_batch(accumulate):
    """Also where the small batches count different numbers of targets."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, V, (5, 8, T + 1), generator=generator)
    big = [(rows[:, :-1], rows[:, 1:].clone()) for rows in ids]
    for _, targets in big:
        targets[torch.rand(targets.shape, generator=generator) < 0.4] = -100
        targets[:1] = -100
    small = [pair for x, y in big for pair in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True)]

    one, other = tiny().double(), tiny().double()
    a = run(one, big, config(5, lr=0.05, grad_clip=0.1))
    b = run(other, small, config(5, lr=0.05, grad_clip=0.1, accumulate=accumulate))

    assert torch.allclose(weights(one), weights(other), rtol=0, atol=1e-9)
    for x, y in zip(a, b, strict=True):
        assert (x.loss, x.grad_norm) == pytest.approx((y.loss, y.grad_norm), abs=1e-9)
        assert x.tokens_seen == y.tokens_seen


def test_reports_count_steps_and_tokens():
    reports = run(tiny(), batches(6, batch_size=3), config(3, accumulate=2))

    assert [r.step for r in reports] == [1, 2, 3]
    assert [r.tokens for r in reports] == [2 * 3 * T] * 3
    assert [r.tokens_seen for r in reports] == [36, 72, 108]
    assert all(r.seconds > 0 and r.tokens_per_second == r.tokens / r.seconds for r in reports)


def test_it_takes_no_more_batches_than_it_needs():
    taken = []

    def endless():
        for k, batch in enumerate(batches(50)):
            taken.append(k)
            yield batch

    run(tiny(), endless(), config(4, accumulate=2))
    assert taken == list(range(8))


def test_it_ends_cleanly_when_the_batches_end_and_trains_on_an_incomplete_last_group():
    data, model, other = batches(5), tiny(), tiny()
    reports = run(model, iter(data), config(100, accumulate=2, schedule="constant"))

    merged = [tuple(torch.cat(x) for x in zip(*data[i : i + 2], strict=True)) for i in (0, 2, 4)]
    expected = run(other, merged, config(100, schedule="constant"))
    assert [r.tokens for r in reports] == [2 * 2 * T, 2 * 2 * T, 2 * T]
    assert torch.allclose(weights(model), weights(other), atol=1e-6)
    assert [r.loss for r in reports] == pytest.approx([r.loss for r in expected])


def test_clipping_can_be_turned_off_and_the_norm_is_still_reported():
    model = tiny()
    before = copy.deepcopy(model)
    [report] = run(model, batches(1), config(1, grad_clip=0, lr=0.1))
    x, y = batches(1)[0]
    cross_entropy(before(x).flatten(0, 1), y.flatten()).backward()
    norm = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in before.parameters()))

    assert report.grad_norm == pytest.approx(norm, rel=1e-5)


def test_validation_comes_at_its_interval_and_after_the_last_step():
    def evaluated(max_steps=7, **kwargs):
        reports = run(tiny(), batches(7), config(max_steps, **kwargs), val_batches=batches(2, seed=1))
        return [r.step for r in reports if r.val_loss is not None]

    assert evaluated(eval_every=3) == [3, 6, 7]
    assert evaluated() == [7]
    assert evaluated(max_steps=100) == [7]  # the list of batches says where it ends


def test_validation_loss_is_the_mean_over_counted_targets_without_dropout():
    val = batches(3, seed=1)
    val[0][1][:, 1:] = -100
    model = tiny(drop_rate=0.5)
    report = run(model, batches(1), config(1), val_batches=val)[-1]

    model.eval()
    x, y = (torch.cat(part) for part in zip(*val, strict=True))
    expected = cross_entropy(model(x).flatten(0, 1), y.flatten()).item()
    assert report.val_loss == pytest.approx(expected, rel=1e-5)


def test_validation_changes_nothing_of_the_training():
    """A shuffling loader draws random numbers, and dropout would draw others after it."""
    val = torch.utils.data.DataLoader(batches(4, seed=1), shuffle=True, batch_size=None)
    quiet, evaluated = tiny(drop_rate=0.5), tiny(drop_rate=0.5)
    torch.manual_seed(7)
    run(quiet, batches(6), config(6))
    torch.manual_seed(7)
    run(evaluated, batches(6), config(6, eval_every=1), val_batches=val)

    assert torch.equal(weights(quiet), weights(evaluated))
    assert evaluated.training


def test_validation_batches_that_can_be_read_only_once_are_refused():
    with pytest.raises(DataError, match="only once"):
        run(tiny(), batches(2), config(2), val_batches=iter(batches(1)))


def test_validation_batches_without_a_counted_target_are_refused():
    with pytest.raises(DataError, match="no counted target"):
        run(tiny(), batches(2), config(2), val_batches=[])


def test_the_generator_resumes_at_the_step_of_its_state():
    data, cfg = batches(8), config(8, lr=0.05, warmup_steps=2)
    whole, parts = tiny(), tiny()
    run(whole, data, cfg)
    state = TrainState(parts, cfg)
    for report in train(parts, data, config=cfg, state=state):
        if report.step == 5:
            break
    rest = run(parts, data[5:], cfg, state=state)

    assert [r.step for r in rest] == [6, 7, 8]
    assert torch.equal(weights(whole), weights(parts))
    assert run(parts, data, cfg, state=state) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(value):
    class Spoiled(Tiny):
        def forward(self, ids):
            return super().forward(ids) * (value if (ids == 0).all() else 1.0)

    torch.manual_seed(0)
    model = Spoiled()
    data = batches(6)
    data[5][0].zero_()
    state = TrainState(model, config(3, accumulate=2))
    reports = train(model, data, config=config(3, accumulate=2), state=state)
    seen = [(next(reports).step, weights(model)) for _ in range(2)]
    with pytest.raises(FloatingPointError, match="at step 3 in batch 5;"):
        next(reports)

    assert [step for step, _ in seen] == [1, 2]
    assert torch.equal(seen[-1][1], weights(model))
    assert state.step == 2
    assert all(torch.isfinite(v).all() for s in state.optimizer.state.values() for v in s.values())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change():
    model = tiny()
    model.norm.bias.register_hook(lambda gradient: gradient * math.inf)
    before = weights(model)

    with pytest.raises(FloatingPointError, match=r"norm is (inf|nan) at step 1 in batches 0 to 1;"):
        run(model, batches(2), config(1, accumulate=2))
    assert torch.equal(before, weights(model))


def test_a_step_without_a_counted_target_is_refused():
    x, y = batches(1)[0]

    with pytest.raises(DataError, match=r"step 1 \(batch 0\) has no counted target"):
        run(tiny(), [(x, torch.full_like(y, -100))], config(1))


def test_a_batch_the_model_cannot_take_raises_the_models_own_error():
    x, y = batches(1)[0]

    with pytest.raises(IndexError):
        run(tiny(), [(x + V, y)], config(1))


def test_another_loss_is_trained_and_evaluated():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    points = torch.randn(32, 2)
    batch = (points, (points @ torch.tensor([1.0, -2.0]) + 0.5))

    def squared_error(model, inputs, targets, *, reduction):
        return torch.nn.functional.mse_loss(model(inputs).squeeze(1), targets, reduction=reduction)

    config = TrainConfig(max_steps=300, lr=0.05, weight_decay=0.0, precision="float32")
    *_, last = train(model, [batch] * 300, config=config, val_batches=[batch], loss=squared_error)
    assert last.val_loss < 1e-4
    torch.testing.assert_close(model.weight[0], torch.tensor([1.0, -2.0]), atol=0.02, rtol=0)
