"""Training a classifier. The oracles are plain torch loops in float64, and sums written out by hand."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from gpt_core import GPTConfig, GPTModel
from gpt_finetune.class_batches import ClassBatches
from gpt_finetune.classifier import Classifier
from gpt_finetune.labelled import LabelledTexts
from gpt_finetune.lora import LoRAConfig, add_lora
from gpt_finetune.trained_part import train_only_last_blocks
from gpt_finetune.training import ClassifierConfig, Scores, encode_labelled, train_classifier
from gpt_train import DataError

CONFIG = GPTConfig(vocab_size=256, context_length=48, emb_dim=24, n_heads=3, n_layers=2, n_classes=3)
LABELS = ["ham", "spam", "eggs"]


class Bytes:
    def encode(self, text):
        return list(text.encode())

    def save(self, path):
        path.write_text("{}", encoding="utf-8")


def made(seed=0, drop_rate=0.0, labels=LABELS, **changes):
    """A classifier with weights drawn from the seed."""
    torch.manual_seed(seed)
    settings = {**CONFIG.to_dict(), "n_classes": len(labels), "drop_rate": drop_rate, **changes}
    return Classifier(GPTModel(settings), Bytes(), labels=labels)


def texts_of(n, seed=0, labels=LABELS, shares=None):
    """Texts whose class is told by one word in them."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor(shares or [1.0] * len(labels))
    classes = torch.multinomial(weights, n, replacement=True, generator=generator).tolist()
    texts = []
    for number in classes:
        around = ["ab"[i] * 3 for i in torch.randint(2, (4,), generator=generator).tolist()]
        texts.append(" ".join([*around[: 1 + len(texts) % 4], labels[number][:2]]))
    return LabelledTexts(
        source="texts.csv", texts=tuple(texts), labels=tuple(labels[number] for number in classes),
        lines=tuple(range(2, n + 2)))


def partly_wrong(n, seed=1):
    """Held-out texts of which a quarter have the wrong label: the surer a model grows, the more that costs."""
    texts = texts_of(n, seed)
    wrong = [LABELS[LABELS.index(label) - 1] for label in texts.labels[: n // 4]]
    return replace(texts, labels=(*wrong, *texts.labels[n // 4 :]))


def run(classifier, texts, held_out=None, **settings):
    config = ClassifierConfig(**{"epochs": 2, "batch_size": 4, "lr": 1e-3, **settings})
    return list(train_classifier(classifier, texts, validation=held_out, config=config))


def weights(classifier):
    return {name: tensor.clone() for name, tensor in classifier.model.state_dict().items()}


def assert_same(found, expected, atol=0.0):
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=atol, rtol=0, msg=name)


@torch.no_grad()
def judged(classifier, texts):
    """The scores, by Python sums over each text's own forward pass."""
    classifier.model.eval()
    losses, n_right, n_of = [], Counter(), Counter()
    for text, label in zip(texts.texts, texts.labels, strict=True):
        logits = classifier.model(torch.tensor([list(text.encode())]))[0, -1].double().tolist()
        right = classifier.labels.index(label)
        losses.append(math.log(sum(map(math.exp, logits))) - logits[right])
        n_of[label] += 1
        n_right[label] += max(logits) == logits[right]
    return Scores(
        loss=sum(losses) / len(losses), accuracy=n_right.total() / n_of.total(),
        balanced_accuracy=sum(n_right[label] / n_of[label] for label in n_of) / len(n_of))


def assert_scores(found, expected, abs=1e-5):
    for name in ("loss", "accuracy", "balanced_accuracy"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=abs), name


# --- a run against a plain loop


@pytest.mark.parametrize("is_balanced", [True, False], ids=["balanced", "none"])
@pytest.mark.parametrize("n_blocks", [1, 2])
def test_a_run_is_a_plain_loop_of_adamw_over_the_same_batches(is_balanced, n_blocks):
    texts = texts_of(18, shares=[6.0, 2.0, 1.0])
    ours, plain = made(), made()
    for classifier in (ours, plain):
        classifier.model.double()
        train_only_last_blocks(classifier.model, n_blocks)
    n_steps = 2 * 5
    reports = run(ours, texts, class_weights="balanced" if is_balanced else "none", weight_decay=0.3)

    counts = [texts.labels.count(label) for label in LABELS]
    weight = torch.tensor([18 / (3 * n) if is_balanced else 1.0 for n in counts], dtype=torch.float64)
    parameters = [p for p in plain.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.3},
         {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95))
    sequences, classes = encode_labelled(plain, texts)
    losses = []
    for step, (inputs, targets) in enumerate(ClassBatches(sequences, classes, batch_size=4, seed=123).epochs(2)):
        rows = (targets >= 0).nonzero()
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = reports[step].lr
        optimizer.zero_grad()
        logits = plain.model(inputs)[rows[:, 0], rows[:, 1]]
        right = targets[rows[:, 0], rows[:, 1]]
        # torch's weighted mean divides by the weights; here each step follows the mean over its texts.
        loss = cross_entropy(logits, right, weight=weight, reduction="sum") / len(inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())

    assert [report.loss for report in reports] == pytest.approx(losses, abs=1e-6)  # class weights are float32
    assert_same(weights(ours), weights(plain), atol=1e-6)
    assert len(reports) == n_steps


def test_balanced_weights_give_each_class_the_same_sum():
    texts = texts_of(40, shares=[8.0, 3.0, 1.0])
    classifier = made()
    found = run(classifier, texts, epochs=1, batch_size=40, lr=0.0)[0].loss
    of_class = [judged(classifier, texts.select(i for i, label in enumerate(texts.labels) if label == name)).loss
                for name in LABELS]

    assert len(set(texts.labels)) == 3
    assert found == pytest.approx(sum(of_class) / 3, abs=1e-5)


def test_reports_tell_step_epoch_rate_and_scores():
    texts, held_out = texts_of(18), texts_of(7, seed=1)
    classifier = made()
    reports = run(classifier, texts, held_out, epochs=3, lr=2e-3)

    assert [report.step for report in reports] == list(range(1, 16))
    assert {report.n_steps for report in reports} == {15}
    assert [report.epoch for report in reports] == [1] * 5 + [2] * 5 + [3] * 5
    assert [report.step for report in reports if report.validation] == [5, 10, 15]
    assert [report.step for report in reports if report.training] == [5, 10, 15]
    assert max(report.lr for report in reports) == pytest.approx(2e-3)
    assert reports[-1].lr < reports[7].lr < reports[0].lr
    assert all(report.seconds >= 0 for report in reports)
    best = min((report for report in reports if report.validation), key=lambda report: report.validation.loss)
    assert [report for report in reports if report.is_best][-1] is best


def test_scores_are_those_of_the_weights_that_the_model_holds_meanwhile():
    texts, held_out = texts_of(9), texts_of(12, seed=1, shares=[6.0, 2.0, 1.0])
    for average in (0.0, 0.5):
        classifier = made(drop_rate=0.3)
        config = ClassifierConfig(epochs=3, batch_size=4, lr=3e-3, ema_decay=average)
        for report in train_classifier(classifier, texts, validation=held_out, config=config):
            if report.validation:
                assert_scores(report.validation, judged(classifier, held_out))
                assert_scores(report.training, judged(classifier, texts))  # fewer than held out: all of them


def test_the_training_texts_that_are_judged_are_drawn_not_every_second_one():
    in_turns = LabelledTexts(
        source="turns", texts=("ab",) * 40, labels=("ham", "spam") * 20, lines=tuple(range(2, 42)))
    classifier = made(labels=["ham", "spam"])
    with torch.no_grad():
        classifier.model.out_head.bias.copy_(torch.tensor([100.0, 0.0]))  # whatever it reads is ham
    report = run(classifier, in_turns, in_turns.select(range(20)), epochs=1, lr=0.0)[-1]

    assert report.training.balanced_accuracy == 0.5  # 1.0 if only ham had been judged


def test_each_epoch_is_read_by_the_tokenizer_that_is_given_for_it():
    """Training texts only: the held-out ones, and what is judged, by the classifier's own."""

    class Shifted(Bytes):
        def __init__(self, shift):
            self.shift = shift

        def encode(self, text):
            return [(ids + self.shift) % 256 for ids in super().encode(text)]

    texts, held_out = texts_of(12), texts_of(9, seed=1)
    asked = []

    def of_epoch(number):
        asked.append(number)
        return Shifted(number)

    config = ClassifierConfig(epochs=3, batch_size=12, lr=0.0, class_weights="none")
    for is_partly_frozen in (False, True):
        classifier, found = made(), []
        if is_partly_frozen:
            train_only_last_blocks(classifier.model)
        training = train_classifier(
            classifier, texts, validation=held_out, config=config, epoch_tokenizer=of_epoch)
        for report in training:
            found.append(report.loss)
            assert_scores(report.validation, judged(classifier, held_out))
        expected = []
        for number in range(3):
            classifier.tokenizer = Shifted(number)
            logits = classifier.logits(texts.texts)
            expected.append(cross_entropy(logits, torch.tensor([LABELS.index(label) for label in texts.labels])).item())
        assert found == pytest.approx(expected, abs=1e-5)
        assert len(set(found)) == 3
    assert asked == [0, 1, 2] * 2


def test_the_loss_at_every_token_is_trained_behind_a_reused_trunk_too():
    weights_of = []
    for reuse_trunk in (True, False):
        classifier = made()
        train_only_last_blocks(classifier.model)
        run(classifier, texts_of(12), every_token=0.5, reuse_trunk=reuse_trunk)
        weights_of.append(weights(classifier))
    plain = made()
    train_only_last_blocks(plain.model)
    run(plain, texts_of(12))

    assert_same(*weights_of, atol=1e-5)
    assert not torch.allclose(weights_of[0]["out_head.weight"], weights(plain)["out_head.weight"], atol=1e-4)


# --- which weights are kept


@pytest.mark.parametrize(("lr", "drop_rate"), [(0.01, 0.0), (0.05, 0.3)], ids=["one valley", "up and down"])
def test_keep_best_ends_with_the_weights_of_the_lowest_validation_loss(lr, drop_rate):
    texts, held_out = texts_of(12), partly_wrong(12)
    classifier, reports, seen = made(drop_rate=drop_rate), [], []
    config = ClassifierConfig(epochs=8, batch_size=4, lr=lr)
    for report in train_classifier(classifier, texts, validation=held_out, config=config):
        if report.validation:
            reports.append(report)
            seen.append(weights(classifier))
    losses = [report.validation.loss for report in reports]
    best = losses.index(min(losses))

    assert best < len(losses) - 1
    assert_same(weights(classifier), seen[best])
    assert_scores(judged(classifier, held_out), reports[best].validation)
    assert [report.is_best for report in reports] == [loss == min(losses[: i + 1]) for i, loss in enumerate(losses)]


def test_without_keep_best_the_last_weights_stay():
    texts, held_out = texts_of(12), partly_wrong(12)
    classifier, seen = made(), []
    config = ClassifierConfig(epochs=8, batch_size=4, lr=0.01, keep_best=False)
    for report in train_classifier(classifier, texts, validation=held_out, config=config):
        if report.validation:
            seen.append(weights(classifier))
    assert_same(weights(classifier), seen[-1])


def test_patience_stops_after_so_many_epochs_without_a_lower_loss():
    texts, held_out = texts_of(12), partly_wrong(12)
    endless = [report.validation.loss for report in run(made(), texts, held_out, epochs=15, lr=0.01)
               if report.validation]
    n_since, expected = 0, 0
    for number, loss in enumerate(endless):
        n_since = 0 if loss < min(endless[:number], default=math.inf) else n_since + 1
        if n_since == 2:
            expected = number + 1
            break
    reports = run(made(), texts, held_out, epochs=15, lr=0.01, patience=2)

    assert 2 < expected < 15
    assert reports[-1].epoch == expected
    assert [report.validation.loss for report in reports if report.validation] == endless[:expected]


def test_patience_without_validation_texts_is_refused():
    with pytest.raises(ValueError, match="patience=2 goes by validation texts"):
        run(made(), texts_of(8), patience=2)


def test_average_ends_with_polyaks_mean():
    texts = texts_of(12)
    classifier = made()
    means, number = weights(classifier), 0
    config = ClassifierConfig(epochs=3, batch_size=4, lr=1e-2, ema_decay=0.9)
    for number, _ in enumerate(train_classifier(classifier, texts, config=config), start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        means = {name: decay * means[name] + (1 - decay) * tensor for name, tensor in weights(classifier).items()}
    assert number == 9
    assert_same(weights(classifier), means, atol=1e-6)


@pytest.mark.parametrize("stop_at", [2, 4, 5, 9])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_caller_who_stops_early_gets_what_was_kept(stop_at, average):
    texts, held_out = texts_of(12), partly_wrong(12)
    classifier = made(drop_rate=0.1)
    config = ClassifierConfig(epochs=4, batch_size=4, lr=0.05, ema_decay=average)  # an epoch is three steps
    training = train_classifier(classifier, texts, validation=held_out, config=config)
    kept, means = None, weights(classifier)
    for report in training:
        if report.is_best:
            kept = weights(classifier)
        if not report.validation:
            decay = min(average, (1 + report.step) / (10 + report.step))
            current = weights(classifier)
            means = {name: decay * means[name] + (1 - decay) * current[name] for name in means}
        if report.step == stop_at:
            training.close()
            break
    expected = means if kept is None else kept  # before the first epoch's end nothing was judged

    assert_same(weights(classifier), expected, atol=1e-6)
    assert not classifier.model.training


def test_a_caller_may_classify_between_steps_without_changing_the_run():
    """Classifying leaves the model in eval mode; training goes on with dropout all the same."""
    texts, held_out = texts_of(12), partly_wrong(12)
    for n_blocks in (1, 2):
        quiet, asked = made(drop_rate=0.3), made(drop_rate=0.3)
        for classifier in (quiet, asked):
            train_only_last_blocks(classifier.model, n_blocks)
        run(quiet, texts, held_out)
        config = ClassifierConfig(epochs=2, batch_size=4, lr=1e-3)
        for _ in train_classifier(asked, texts, validation=held_out, config=config):
            asked.classify(["ham", "eggs"])
        assert_same(weights(asked), weights(quiet))


# --- what else must hold


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    texts, held_out = texts_of(12), texts_of(9, seed=1)
    runs = []
    for seed in (1, 1, 2):
        classifier = made(drop_rate=0.2)
        torch.manual_seed(len(runs))  # what was drawn before does not matter
        runs.append(([report.loss for report in run(classifier, texts, held_out, seed=seed)], weights(classifier)))

    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


@pytest.mark.parametrize("reuse_trunk", [True, False])
def test_a_small_task_is_learned_to_the_last_text(reuse_trunk):
    texts, held_out = texts_of(60), texts_of(30, seed=1)
    classifier = made(emb_dim=48)
    if reuse_trunk:
        train_only_last_blocks(classifier.model)
    reports = run(classifier, texts, held_out, epochs=12, lr=3e-3, reuse_trunk=reuse_trunk)

    assert reports[-1].loss < reports[0].loss / 10
    best = [report for report in reports if report.is_best][-1]
    assert (best.validation.accuracy, best.validation.balanced_accuracy) == (1.0, 1.0)
    assert [prediction.label for prediction in classifier.classify(held_out.texts)] == list(held_out.labels)


def test_lora_alone_is_trained_where_it_alone_requires_a_gradient():
    classifier = made()
    add_lora(classifier.model, LoRAConfig(rank=2))
    before = weights(classifier)
    run(classifier, texts_of(12))
    changed = {name for name, tensor in weights(classifier).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith((".lora.A", ".lora.B"))}


def test_a_loss_that_is_not_finite_is_an_error_and_changes_no_weight():
    texts = texts_of(12)
    classifier = made()
    with torch.no_grad():
        classifier.model.tok_emb.weight[ord("h")] = math.nan  # of "ham" only
    before = weights(classifier)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1 .*weights were not changed"):
        run(classifier, texts, batch_size=12)
    for name, tensor in weights(classifier).items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7)), name


def test_an_unknown_label_and_an_empty_text_are_told_with_file_and_line():
    texts = LabelledTexts(source="mail.csv", texts=("a", "b"), labels=("ham", "beans"), lines=(2, 5))
    with pytest.raises(DataError, match=r"^mail\.csv:5: unknown label 'beans'; the classifier knows ham, spam, eggs$"):
        run(made(), texts)
    with pytest.raises(DataError, match=r"^mail\.csv:5: unknown label"):
        run(made(), texts_of(4), texts)
    empty = LabelledTexts(source="mail.csv", texts=("a", ""), labels=("ham", "ham"), lines=(2, 7))
    with pytest.raises(DataError, match=r"^mail\.csv:7: .*empty"):
        run(made(), empty)


def test_no_text_at_all_and_nothing_to_train_are_refused():
    with pytest.raises(DataError, match=r"texts\.csv has no text to train on"):
        run(made(), texts_of(4).select([]))
    classifier = made()
    classifier.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        run(classifier, texts_of(4))


def test_longer_texts_are_cut_as_the_classifier_cuts_them():
    classifier = made()
    classifier.max_length = 3
    with pytest.warns(UserWarning, match="5 of 5 texts to learn from or to choose by are longer than 3 tokens"):
        sequences, classes = encode_labelled(classifier, texts_of(5))
    assert all(len(ids) == 3 for ids in sequences)
    assert [LABELS[number] for number in classes] == list(texts_of(5).labels)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("epochs", 0, "at least 1"), ("epochs", 1.5, "whole number"), ("batch_size", True, "whole number"),
        ("patience", -1, "at least 0"), ("seed", -1, "at least 0"), ("seed", 2**63, r"below 2\*\*63"),
        ("lr", -1e-5, "at least 0"), ("lr", math.nan, "finite"), ("weight_decay", math.inf, "finite"),
        ("lm_weight", "0.5", "finite"), ("ema_decay", 1.0, "below 1"), ("ema_decay", True, "below 1"),
        ("every_token", 1.0, "below 1"), ("every_token", -0.1, "at least 0"),
        ("class_weights", "even", "balanced, none"), ("precision", "float16", "auto, float32, bfloat16"),
        ("keep_best", 1, "True or False"), ("reuse_trunk", "yes", "True or False"),
    ],
)
def test_a_setting_that_breaks_its_rule_is_refused_by_its_name(field, value, rule):
    with pytest.raises(ValueError, match=f"^{field} must be .*{rule}"):
        ClassifierConfig(**{field: value})
