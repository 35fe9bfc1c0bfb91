"""Chapter 6's functions. The oracles are plain torch loops, written here after the book's description."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from gpt_core import GPTConfig, GPTModel
from gpt_finetune.classify import (
    calc_accuracy_loader,
    calc_loss_batch,
    calc_loss_loader,
    classify_review,
    evaluate_model,
    plot_values,
    train_classifier_simple,
)

CONFIG = {
    "vocab_size": 128, "context_length": 12, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1,
    "qkv_bias": True,
}
PAD = 127


class Letters:
    """One id a character; as tiktoken's, its ``encode`` refuses the name of a special token."""

    def encode(self, text):
        if "<|endoftext|>" in text:
            raise ValueError("disallowed special token")
        return self.encode_ordinary(text)

    def encode_ordinary(self, text):
        return [ord(letter) for letter in text]


class BareModel(nn.Module):
    """As the book's own: position embeddings and no ``config``. Class 1 where the last id is odd."""

    def __init__(self):
        super().__init__()
        self.pos_emb = nn.Embedding(12, 1)
        self.seen = []

    def forward(self, ids):
        self.seen.append(ids.tolist())
        is_odd = (ids % 2).float()
        return torch.stack([1 - is_odd, is_odd], dim=-1)


def books_model():
    """The book's way: a language model whose head is replaced, all frozen but head, last block and final norm."""
    torch.manual_seed(123)
    model = GPTModel(CONFIG)
    model.requires_grad_(False)
    model.out_head = nn.Linear(CONFIG["emb_dim"], 2)
    for part in (model.trf_blocks[-1], model.final_norm):
        part.requires_grad_(True)
    return model


def setting():
    """Model, loaders and optimizer under seed 123: 30 texts of 10 tokens, 9 held out."""
    model = books_model()
    ids = torch.randint(0, 127, (39, 10))
    classes = (ids[:, 3] > 60).long()
    torch.manual_seed(123)
    train_loader = DataLoader(TensorDataset(ids[:30], classes[:30]), batch_size=4, shuffle=True, drop_last=True)
    val_loader = DataLoader(TensorDataset(ids[30:], classes[30:]), batch_size=4)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, train_loader, val_loader, torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.1)


def first_batches(loader, n):
    """The book goes through a loader from the start, and leaves it after ``n`` batches."""
    batches = []
    for number, batch in enumerate(loader):
        if number == n:
            break
        batches.append(batch)
    return batches


def mean_loss(model, loader, n):
    losses = [cross_entropy(model(ids)[:, -1], classes).item() for ids, classes in first_batches(loader, n)]
    return sum(losses) / len(losses)


def accuracy(model, loader, n):
    batches = first_batches(loader, n)
    right = sum(int((model(ids)[:, -1].argmax(-1) == classes).sum()) for ids, classes in batches)
    return right / sum(len(classes) for _, classes in batches)


def plain_training(epochs, eval_freq, eval_iter):
    """Return what the book's loop returns, the lines it prints, and the model."""
    model, train_loader, val_loader, optimizer = setting()
    losses, accuracies, lines, examples, step = ([], []), ([], []), [], 0, -1
    for epoch in range(epochs):
        model.train()
        for ids, classes in train_loader:
            optimizer.zero_grad()
            cross_entropy(model(ids)[:, -1], classes).backward()
            optimizer.step()
            examples += len(ids)
            step += 1
            if step % eval_freq == 0:
                model.eval()
                with torch.no_grad():
                    losses[0].append(mean_loss(model, train_loader, eval_iter))
                    losses[1].append(mean_loss(model, val_loader, eval_iter))
                model.train()
                lines.append(
                    f"Ep {epoch + 1} (Step {step:06d}): Train loss {losses[0][-1]:.3f}, Val loss {losses[1][-1]:.3f}")
        model.eval()
        with torch.no_grad():
            accuracies[0].append(accuracy(model, train_loader, eval_iter))
            accuracies[1].append(accuracy(model, val_loader, eval_iter))
        lines.append(
            f"Training accuracy: {accuracies[0][-1] * 100:.2f}% | "
            f"Validation accuracy: {accuracies[1][-1] * 100:.2f}%")
    return *losses, *accuracies, examples, lines, model


@pytest.mark.parametrize(("eval_freq", "eval_iter"), [(5, 2), (3, 100), (1, 1)])
def test_train_classifier_simple_gives_the_books_numbers_and_lines(capsys, eval_freq, eval_iter):
    *expected, examples, lines, expected_model = plain_training(3, eval_freq, eval_iter)
    model, *loaders, optimizer = setting()
    *found, seen = train_classifier_simple(model, *loaders, optimizer, "cpu", 3, eval_freq, eval_iter)

    assert len(found[0]) == -(-21 // eval_freq)  # 7 steps an epoch; the first evaluation is after step 0
    for ours, books in zip(found, expected, strict=True):
        assert ours == pytest.approx(books, abs=1e-5)
    assert seen == examples == 3 * 28
    assert capsys.readouterr().out.splitlines() == lines
    for ours, books in zip(model.parameters(), expected_model.parameters(), strict=True):
        torch.testing.assert_close(ours, books, atol=1e-5, rtol=0)


def test_train_classifier_simple_changes_only_what_requires_a_gradient():
    model, *loaders, optimizer = setting()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_classifier_simple(model, *loaders, optimizer, "cpu", 1, 100, 1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}

    # A bias of the keys adds the same to each score of a query, which the softmax takes off again: its gradient is
    # rounding noise, which Adam may or may not follow.
    assert trained - {"trf_blocks.1.att.W_key.bias"} <= changed <= trained


def test_a_loss_that_is_not_finite_is_an_error_and_leaves_the_weights():
    model, *loaders, optimizer = setting()
    with torch.no_grad():
        model.out_head.bias[0] = math.nan
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        train_classifier_simple(model, *loaders, optimizer, "cpu", 1, 1, 1)

    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7), before[name].nan_to_num(7)), name


def test_calc_loss_batch_is_the_cross_entropy_at_the_last_position():
    model, ids, classes = books_model().eval(), torch.arange(24).reshape(3, 8), torch.tensor([0, 1, 1])
    probabilities = model(ids)[:, -1].double().softmax(dim=-1)
    by_hand = -sum(math.log(row[number]) for row, number in zip(probabilities.tolist(), [0, 1, 1], strict=True)) / 3

    assert calc_loss_batch(ids, classes, model, "cpu").item() == pytest.approx(by_hand, abs=1e-6)


def test_evaluate_model_gives_the_mean_losses_without_dropout_and_leaves_train_mode():
    model, train_loader, val_loader, _ = setting()
    torch.manual_seed(5)
    found = evaluate_model(model, train_loader, val_loader, "cpu", 2)
    assert model.training
    torch.manual_seed(5)
    model.eval()

    assert found == pytest.approx((mean_loss(model, train_loader, 2), mean_loss(model, val_loader, 2)), abs=1e-6)
    assert calc_loss_loader(val_loader, model, "cpu") == pytest.approx(mean_loss(model, val_loader, 100), abs=1e-6)


@pytest.mark.parametrize(("n", "expected"), [(1, 0.5), (2, 0.25), (3, 0.4), (None, 0.4), (99, 0.4)])
def test_calc_accuracy_loader_counts_examples_of_the_first_batches(n, expected):
    odd_and_even = [(torch.tensor([[4, 3], [4, 3]]), torch.tensor([1, 0])),     # one right
                    (torch.tensor([[4, 2], [4, 6]]), torch.tensor([1, 1])),     # none
                    (torch.tensor([[4, 7]]), torch.tensor([1]))]                # right: a short last batch
    model = BareModel().train()

    assert calc_accuracy_loader(odd_and_even, model, "cpu", n) == pytest.approx(expected)
    assert not model.training


def test_calc_accuracy_loader_refuses_no_batches_and_has_no_answer_for_an_empty_loader():
    with pytest.raises(ValueError, match="num_batches must be at least 1"):
        calc_accuracy_loader([], BareModel(), "cpu", 0)
    assert math.isnan(calc_accuracy_loader([], BareModel(), "cpu"))


@pytest.mark.parametrize(
    ("text", "max_length", "expected"),
    [
        ("abc", 5, [97, 98, 99, PAD, PAD]),
        ("abc", 3, [97, 98, 99]),
        ("abcdefgh", 3, [97, 98, 99]),
        ("abc", None, [97, 98, 99, *[PAD] * 9]),
        ("x" * 30, None, [120] * 12),
        ("<|endoftext|>", 4, [60, 124, 101, 110]),
        ("", 2, [PAD, PAD]),
    ],
)
def test_classify_review_cuts_or_pads_and_reads_the_last_position(text, max_length, expected):
    model = BareModel()
    found = classify_review(text, model, Letters(), "cpu", max_length, pad_token_id=PAD)

    assert model.seen == [[expected]]
    assert found == ("spam" if expected[-1] % 2 else "not spam")


def test_classify_review_pads_with_gpt2s_end_of_text_by_default():
    model = BareModel()
    assert classify_review("a", model, Letters(), "cpu", max_length=2) == "not spam"
    assert model.seen == [[[97, 50256]]]


@pytest.mark.parametrize(
    "make",
    [
        books_model,
        lambda: GPTModel(GPTConfig(**CONFIG, n_classes=2)),
        lambda: GPTModel(GPTConfig(**{**CONFIG, "drop_rate": 0.5}, n_classes=2, positions="rotary")),
    ],
    ids=["replaced head", "n_classes", "rotary"],
)
def test_classify_review_classifies_without_dropout(make):
    model = make().train()
    answers = [classify_review(text, model, Letters(), "cpu", pad_token_id=PAD) for text in ("ham", "spam", "eggs")]
    assert not model.training
    for text, answer in zip(("ham", "spam", "eggs"), answers, strict=True):
        ids = Letters().encode(text)
        logits = model(torch.tensor([ids + [PAD] * (12 - len(ids))]))[0, -1]
        assert answer == ("spam" if logits[1] > logits[0] else "not spam")


@pytest.mark.parametrize("make", [books_model, BareModel], ids=["GPTModel", "bare"])
@pytest.mark.parametrize("max_length", [0, -1, 13])
def test_classify_review_refuses_a_length_that_the_model_cannot_read(make, max_length):
    with pytest.raises(ValueError, match=f"between 1 and the model's context length 12, got {max_length}"):
        classify_review("abc", make(), Letters(), "cpu", max_length, pad_token_id=PAD)


def test_plot_values_draws_both_curves_and_writes_only_where_it_is_told(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    figure = plot_values([0.0, 1.0], [0, 28], [0.5, 0.9], [0.4, 0.8], label="accuracy")
    axes, examples = figure.axes

    assert [line.get_ydata().tolist() for line in axes.lines] == [[0.5, 0.9], [0.4, 0.8]]
    assert (axes.get_ylabel(), examples.get_xlabel()) == ("Accuracy", "Examples seen")
    assert list(tmp_path.iterdir()) == []
    plot_values([0.0, 1.0], [0, 28], [0.5, 0.9], [0.4, 0.8], path=tmp_path / "accuracy.pdf")
    assert (tmp_path / "accuracy.pdf").read_bytes().startswith(b"%PDF")
