"""The oracles are plain torch loops, written here after the book's description."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from gpt_core import GPTModel
from gpt_train import (
    create_dataloader_v1,
    find_highest_gradient,
    generate_and_print_sample,
    train_model,
    train_model_simple,
)

CONFIG = {
    "vocab_size": 128, "context_length": 8, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1,
    "qkv_bias": False,
}
TEXT = "Every effort moves you a little further along the way, one step after the other.\n" * 3


class Letters:
    """One id a character."""

    def encode(self, text, *, allowed_special=frozenset()):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(chr(i) for i in ids)


def setting():
    """What the book's chapter 5 sets up, small: model, loaders and optimizer under seed 123."""
    torch.manual_seed(123)
    model = GPTModel(CONFIG)
    loaders = [
        create_dataloader_v1(
            TEXT[part], 4, max_length=8, stride=8, shuffle=is_train, drop_last=is_train, tokenizer=Letters()
        )
        for part, is_train in ((slice(0, 200), True), (slice(200, None), False))
    ]
    return model, *loaders, torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.1)


def loss_of(model, batch):
    logits = model(batch[0])
    return cross_entropy(logits.flatten(0, 1), batch[1].flatten())


def mean_loss(model, loader, n):
    losses = []
    for i, batch in enumerate(loader):
        if i == min(n, len(loader)):
            break
        losses.append(loss_of(model, batch).item())
    return sum(losses) / len(losses)


def sample(model, start):
    """Fifty times the likeliest next token, without a cache."""
    model.eval()
    ids = torch.tensor([Letters().encode(start)])
    with torch.no_grad():
        for _ in range(50):
            ids = torch.cat([ids, model(ids[:, -8:])[:, -1].argmax(-1, keepdim=True)], dim=1)
    model.train()
    return Letters().decode(ids[0].tolist()).replace("\n", " ")


def plain_training(
    epochs, eval_freq, eval_iter, *, rate=lambda s, total: None, clip=lambda s: False, label="Step"
):
    """Return losses, tokens, rates, lines and the model: the book's loop."""
    model, train_loader, val_loader, optimizer = setting()
    train_losses, val_losses, tokens, rates, lines = [], [], [], [], []
    seen, s = 0, -1
    for epoch in range(epochs):
        model.train()
        for batch in train_loader:
            optimizer.zero_grad()
            s += 1
            if rate(s, len(train_loader) * epochs) is not None:
                rates.append(rate(s, len(train_loader) * epochs))
                optimizer.param_groups[0]["lr"] = rates[-1]
            loss_of(model, batch).backward()
            if clip(s):
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            seen += batch[0].numel()
            if s % eval_freq == 0:
                model.eval()
                with torch.no_grad():
                    train_losses.append(mean_loss(model, train_loader, eval_iter))
                    val_losses.append(mean_loss(model, val_loader, eval_iter))
                model.train()
                tokens.append(seen)
                lines.append(
                    f"Ep {epoch + 1} ({label} {s:06d}): Train loss {train_losses[-1]:.3f}, "
                    f"Val loss {val_losses[-1]:.3f}")
        lines.append(sample(model, "Every effort"))
    return train_losses, val_losses, tokens, rates, lines, model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_train_model_simple_gives_the_books_numbers_and_lines(capsys):
    train_losses, val_losses, tokens, _, lines, expected = plain_training(3, 4, 2)
    model, *loaders, optimizer = setting()
    found = train_model_simple(model, *loaders, optimizer, "cpu", 3, 4, 2, "Every effort", Letters())

    assert len(found[0]) == len(train_losses) > 3
    assert found[0] == pytest.approx(train_losses, abs=1e-5)
    assert found[1] == pytest.approx(val_losses, abs=1e-5)
    assert found[2] == tokens
    assert capsys.readouterr().out.splitlines() == lines
    assert torch.allclose(weights(model), weights(expected), atol=1e-5)


@pytest.mark.parametrize("warmup", [0, 1, 5, 100])
@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("least", [1e-5, 6e-3], ids=["falling", "rising above the peak"])
def test_train_model_gives_appendix_ds_numbers_lines_and_rates(capsys, warmup, original, least):
    def rate(s, total):
        if s < warmup:
            return 1e-4 + s * (4e-3 - 1e-4) / warmup
        return least + (4e-3 - least) * 0.5 * (1 + math.cos(math.pi * (s - warmup) / (total - warmup)))

    def clip(s):
        return s > warmup if original else s >= warmup

    expected = plain_training(3, 5, 1, rate=rate, clip=clip, label="Iter")
    model, *loaders, optimizer = setting()
    found = train_model(
        model, *loaders, optimizer, "cpu", 3, 5, 1, "Every effort", Letters(), warmup, 1e-4, least, original
    )

    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert found[1] == pytest.approx(expected[1], abs=1e-5)
    assert found[2] == expected[2]
    assert found[3] == pytest.approx(expected[3], rel=1e-12)
    assert capsys.readouterr().out.splitlines() == expected[4]
    assert torch.allclose(weights(model), weights(expected[5]), atol=1e-5)


def test_no_epoch_trains_nothing():
    model, *loaders, optimizer = setting()
    before = weights(model)

    assert train_model_simple(model, *loaders, optimizer, "cpu", 0, 1, 1, "a", Letters()) == ([], [], [])
    assert train_model(model, *loaders, optimizer, "cpu", 0, 1, 1, "a", Letters(), 2) == ([], [], [], [])
    assert torch.equal(weights(model), before)


def test_the_optimizers_own_groups_keep_their_rates_in_train_model_simple():
    model, *loaders, _ = setting()
    model.tok_emb.requires_grad_(True)
    groups = [{"params": [model.tok_emb.weight], "lr": 0.0}, {"params": [model.out_head.weight], "lr": 0.1}]
    before = copy.deepcopy(model)
    train_model_simple(
        model, *loaders, torch.optim.SGD(groups), "cpu", 1, 100, 1, "a", Letters()
    )

    assert torch.equal(model.tok_emb.weight, before.tok_emb.weight)
    assert not torch.equal(model.out_head.weight, before.out_head.weight)


def test_a_loss_that_is_not_finite_stops_the_book_loops_too():
    model, *loaders, optimizer = setting()
    with torch.no_grad():
        model.out_head.weight[0, 0] = math.nan

    with pytest.raises(FloatingPointError, match="at step 0 in batch 0"):
        train_model_simple(model, *loaders, optimizer, "cpu", 1, 1, 1, "a", Letters())


def test_a_sample_is_one_line_of_start_and_fifty_likeliest_tokens(capsys):
    model = setting()[0]
    expected = sample(model, "Every effort")
    model.eval()
    generate_and_print_sample(model, Letters(), "cpu", "Every effort")

    assert capsys.readouterr().out == expected + "\n"
    assert model.training


def test_the_highest_gradient_is_the_largest_signed_value():
    model = setting()[0]
    assert find_highest_gradient(model) is None
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, -1.0 - i)
    model.out_head.weight.grad[3, 5] = -0.25

    assert find_highest_gradient(model).item() == -0.25
    assert find_highest_gradient(model).shape == ()
