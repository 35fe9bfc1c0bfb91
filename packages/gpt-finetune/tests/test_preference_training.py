"""Direct preference optimization. The oracles are the paper's formula on full logits, in float64, a row at a time."""

import copy
import math

import pytest
import torch

from gpt_core import GPTConfig, GPTModel, initialize_gpt2
from gpt_finetune.chat import ChatModel
from gpt_finetune.conversation import Conversation
from gpt_finetune.lora import LoRAConfig, add_lora, remove_lora
from gpt_finetune.preference import Preference, Preferences
from gpt_finetune.preference_loss import PreferenceLoss, pair_log_probabilities
from gpt_finetune.preference_pairs import PreferenceBatches, encode_preferences, preference_batch
from gpt_finetune.preference_training import PreferenceConfig, train_preferences
from gpt_finetune.trained_part import train_only_last_blocks
from gpt_tokenizer import BPETokenizer
from gpt_train import DataError

THINGS = ["sky", "grass", "sun", "snow", "sea", "rose", "coal", "moon", "leaf", "lemon", "cherry", "night"]
POLITE, RUDE = ["Gladly: look at it, please.", "Look at it, please."], ["No! Go away.", "Who cares, go away and read."]
ASKED = [f"Which colour has the {thing}?" for thing in THINGS]
TOKENIZER = BPETokenizer.train([*POLITE, *RUDE, *ASKED], vocab_size=300)


def preferences_of(*wishes):
    return Preferences(source="wishes.jsonl", preferences=wishes, lines=tuple(range(1, len(wishes) + 1)))


WISHES = [
    Preference(Conversation.of(asked), POLITE[n % 2], RUDE[n // 2 % 2]) for n, asked in enumerate(ASKED)
]
TRAINING, HELD_OUT = preferences_of(*WISHES[:9]), preferences_of(*WISHES[9:])
# One of the three is to be answered rudely: the surer the model grows, the more that costs.
CONTRARY = preferences_of(Preference(WISHES[9].prompt, WISHES[9].rejected, WISHES[9].chosen), *WISHES[10:])


def make(seed=1, drop_rate=0.0, context_length=64):
    model = GPTModel(GPTConfig(
        vocab_size=300, context_length=context_length, emb_dim=24, n_heads=2, n_layers=2, drop_rate=drop_rate))
    initialize_gpt2(model, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # GPT-2's first weights make all tokens about as likely
    return ChatModel.from_base(model, TOKENIZER, template="chatml")


def train_on(chat, preferences, *, validation=None, **arguments):
    held_out = None if validation is None else encode_preferences(chat, validation.preferences)
    return train_preferences(
        chat, encode_preferences(chat, preferences.preferences), validation=held_out, **arguments)


def run(chat, held_out=None, reference=None, preferences=TRAINING, **settings):
    config = PreferenceConfig(**{"epochs": 2, "batch_size": 4, "lr": 1e-3, **settings})
    return list(train_on(chat, preferences, validation=held_out, config=config, reference=reference))


def weights(chat):
    return {name: tensor.clone() for name, tensor in chat.model.state_dict().items()}


def assert_same(found, expected, atol=0.0):
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=atol, rtol=0, msg=name)


def plain_log_probability(model, row, start, reduction):
    probabilities = model(torch.tensor([row[:-1]]))[0].double().softmax(dim=-1)
    of_answer = torch.stack([probabilities[place - 1, row[place]] for place in range(start, len(row))]).log()
    return of_answer.sum() if reduction == "sum" else of_answer.sum() / (len(row) - start)


def plain_rewards(model, reference, pairs, numbers, beta, reduction):
    rewards = []
    for row in (row for number in numbers for row in (2 * number, 2 * number + 1)):
        ids, start = pairs.rows[row], pairs.starts[row]
        with torch.no_grad():
            before = plain_log_probability(reference, ids, start, reduction)
        rewards.append(beta * (plain_log_probability(model, ids, start, reduction) - before))
    return torch.stack(rewards).view(-1, 2)


def plain_loss(rewards):
    return -torch.log(1 / (1 + torch.exp(rewards[:, 1] - rewards[:, 0])))


@torch.no_grad()
def plain_scores(model, reference, pairs, beta, reduction):
    rewards = plain_rewards(model.eval(), reference, pairs, range(len(pairs)), beta, reduction)
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "loss": plain_loss(rewards).mean().item(), "margin": margins.mean().item(),
        "accuracy": (margins > 0).double().mean().item(), "chosen_reward": rewards[:, 0].mean().item(),
        "rejected_reward": rewards[:, 1].mean().item(),
    }


def assert_scores(found, expected, abs=1e-5):
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=abs), name


# --- the formula


@pytest.mark.parametrize("most_logits", [2**25, 1500], ids=["in one part", "in parts of five tokens"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_loss_and_gradients_are_the_papers(reduction, most_logits, monkeypatch):
    monkeypatch.setattr("gpt_finetune.preference_loss._MOST_LOGITS", most_logits)
    ours, plain, reference = make(1), make(1), make(2).model.double()
    pairs = encode_preferences(ours, TRAINING.preferences)
    for chat in (ours, plain):
        chat.model.double()
    numbers = [4, 0, 7]
    loss_of = PreferenceLoss(
        pairs, pair_log_probabilities(reference, pairs, reduction=reduction), beta=0.7, reduction=reduction)
    loss = loss_of(ours.model.train(), *preference_batch(pairs, numbers), reduction="mean")
    loss.backward()
    rewards = plain_rewards(plain.model, reference, pairs, numbers, 0.7, reduction)
    expected = plain_loss(rewards).mean()
    expected.backward()

    assert abs(loss.item() - math.log(2)) > 0.01
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)
    gradients = {name: parameter.grad for name, parameter in plain.model.named_parameters()}
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-10, rtol=0, msg=name)
    scores = loss_of.take_scores(training=True)
    assert (scores.loss, scores.chosen_reward, scores.rejected_reward) == pytest.approx(
        (expected.item(), rewards[:, 0].mean().item(), rewards[:, 1].mean().item()), abs=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_run_is_a_plain_loop_of_adamw_against_a_reference_computed_anew_in_each_step(reduction):
    ours, plain = make(), make()
    for chat in (ours, plain):
        chat.model.double()
    reference = copy.deepcopy(plain.model)
    reports = run(ours, reduction=reduction, weight_decay=0.3, beta=0.2)

    parameters = list(plain.model.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.3},
         {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95))
    pairs = encode_preferences(plain, TRAINING.preferences)
    for report, (_, targets) in zip(reports, PreferenceBatches(pairs, batch_size=4, seed=123).epochs(2), strict=True):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = report.lr
        optimizer.zero_grad()
        rewards = plain_rewards(plain.model, reference, pairs, targets.tolist(), 0.2, reduction)
        loss = plain_loss(rewards).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        margins = (rewards[:, 0] - rewards[:, 1]).detach()
        assert report.loss == pytest.approx(loss.item(), abs=1e-6)
        assert report.margin == pytest.approx(margins.mean().item(), abs=1e-6)
        assert report.accuracy == pytest.approx((margins > 0).double().mean().item())

    assert_same(weights(ours), weights(plain), atol=1e-9)


def test_the_head_reads_the_answers_positions_only():
    chat = make()
    pairs = encode_preferences(chat, TRAINING.preferences)
    seen = []
    chat.model.out_head.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0].shape[:-1].numel()))
    pair_log_probabilities(chat.model, pairs)

    n_answers = sum(len(row) - start for row, start in zip(pairs.rows, pairs.starts, strict=True))
    assert sum(seen) == n_answers < sum(map(len, pairs.rows)) / 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_first_loss_is_ln_2(reduction, precision):
    first = run(make(), epochs=1, batch_size=9, reduction=reduction, precision=precision)[0]

    assert first.loss == pytest.approx(math.log(2), abs=1e-6 if precision == "float32" else 2e-2)
    assert first.chosen_reward == pytest.approx(0, abs=1e-5 if precision == "float32" else 5e-2)


def test_dropout_makes_the_first_loss_larger_but_not_the_validation_loss():
    chat = make(drop_rate=0.3)
    report = run(chat, HELD_OUT, epochs=1, batch_size=9, lr=0.0, beta=1.0)[0]

    assert report.loss > math.log(2) + 0.01
    assert report.validation.loss == pytest.approx(math.log(2), abs=1e-5)


# --- what is learned


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("part", ["all", "lora", "last block"])
def test_margin_and_accuracy_rise_on_prompts_that_were_not_trained_on(part, reduction):
    chat = make()
    if part == "lora":
        add_lora(chat.model, LoRAConfig(rank=4))
    elif part == "last block":
        train_only_last_blocks(chat.model)
    reference, before = copy.deepcopy(chat.model), weights(chat)
    pairs = encode_preferences(chat, HELD_OUT.preferences)
    reports = run(chat, HELD_OUT, epochs=6, lr=3e-3, beta=1.0 if reduction == "mean" else 0.1, reduction=reduction)

    assert reports[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert (reports[0].margin, reports[-1].accuracy) == (pytest.approx(0, abs=1e-4), 1.0)
    last = reports[-1].validation
    assert (last.margin > 0.3, last.accuracy, last.loss < 0.6) == (True, 1.0, True)
    best = [report for report in reports if report.is_best][-1]
    assert_scores(
        best.validation,
        plain_scores(chat.model, reference, pairs, 1.0 if reduction == "mean" else 0.1, reduction), abs=1e-4)
    if part == "lora":
        assert {name for name, tensor in weights(chat).items() if not torch.equal(tensor, before[name])} <= {
            name for name in before if name.endswith((".lora.A", ".lora.B"))}


def test_fresh_lora_is_measured_against_the_base_model():
    chat, base = make(), make()
    add_lora(chat.model, LoRAConfig(rank=4))
    by_itself = run(chat, HELD_OUT)
    adapted = make()
    add_lora(adapted.model, LoRAConfig(rank=4))
    # Its draws are the global generator's: the same start for both.
    for name, tensor in chat.model.state_dict().items():
        if name.endswith("lora.B"):
            assert tensor.abs().sum() > 0
    remove_lora(chat.model)
    assert_same(weights(chat), weights(base))
    reports = run(adapted, HELD_OUT, reference=base.model)

    assert by_itself[0].loss == pytest.approx(reports[0].loss, abs=1e-6)
    assert reports[0].loss == pytest.approx(math.log(2), abs=1e-6)


def test_another_reference_measures_from_there_and_is_left_as_it_was():
    chat, other = make(1), make(2, drop_rate=0.5)
    other.model.train()
    before, pairs = weights(other), encode_preferences(chat, HELD_OUT.preferences)
    for report in train_on(
        chat, TRAINING, validation=HELD_OUT, config=PreferenceConfig(batch_size=9, lr=1e-3), reference=other.model
    ):
        found, now = report.validation, copy.deepcopy(chat.model)
    assert other.model.training
    assert_same(weights(other), before)
    assert_scores(found, plain_scores(now, other.model.eval(), pairs, 0.1, "sum"))


# --- reports, and which weights are kept


def test_reports_tell_step_epoch_rate_and_scores():
    reports = run(make(), HELD_OUT, epochs=3)

    assert [report.step for report in reports] == list(range(1, 10))
    assert {report.n_steps for report in reports} == {9}
    assert [report.epoch for report in reports] == [1] * 3 + [2] * 3 + [3] * 3
    assert [report.step for report in reports if report.validation] == [3, 6, 9]
    assert max(report.lr for report in reports) == pytest.approx(1e-3)
    for report in reports:
        assert report.margin == pytest.approx(report.chosen_reward - report.rejected_reward, abs=1e-6)


@pytest.mark.parametrize("keep_best", [True, False])
def test_it_ends_with_the_weights_of_the_lowest_validation_loss_or_the_last(keep_best):
    chat, losses, seen = make(), [], []
    config = PreferenceConfig(epochs=6, batch_size=4, lr=1e-2, beta=1.0, keep_best=keep_best)
    for report in train_on(chat, TRAINING, validation=CONTRARY, config=config):
        if report.validation:
            losses.append(report.validation.loss)
            seen.append(weights(chat))
            assert report.is_best == (losses[-1] == min(losses))
    best = losses.index(min(losses))

    assert best < len(losses) - 1
    assert_same(weights(chat), seen[best if keep_best else -1])


@pytest.mark.parametrize("stop_at", [2, 3, 8])
def test_a_caller_who_stops_early_gets_what_was_kept(stop_at):
    chat, kept = make(drop_rate=0.1), None
    config = PreferenceConfig(epochs=4, batch_size=4, lr=1e-2, beta=1.0)  # an epoch is three steps
    training = train_on(chat, TRAINING, validation=CONTRARY, config=config)
    for report in training:
        if report.is_best:
            kept = weights(chat)
        if report.step == stop_at:
            now = weights(chat)
            training.close()
            break

    assert_same(weights(chat), now if kept is None else kept)
    assert not chat.model.training


def test_the_same_seed_gives_the_same_run_even_if_the_model_is_asked_meanwhile():
    runs = []
    for is_asked in (False, True):
        chat = make(drop_rate=0.2)
        torch.manual_seed(len(runs))  # what was drawn before does not matter
        losses = []
        for report in train_on(
            chat, TRAINING, validation=HELD_OUT, config=PreferenceConfig(epochs=2, batch_size=4, lr=1e-3, seed=5)
        ):
            losses.append(report.loss)
            if is_asked:
                chat.answer(HELD_OUT.preferences[0].prompt, max_new_tokens=3)
        runs.append((losses, weights(chat)))

    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])
    assert run(make(drop_rate=0.2), HELD_OUT, seed=6)[0].loss != runs[0][0][0]


# --- what is refused


def test_pairs_that_cannot_be_learned_from_are_left_out_and_counted():
    prompt = Conversation.of("Why?")
    wishes = preferences_of(*WISHES[:9], Preference(prompt, "Yes.", "Yes."), Preference(prompt, "Yes.", "z" * 99))
    pairs = encode_preferences(make(), wishes.preferences)
    assert (len(pairs), pairs.equal, pairs.too_long) == (9, (9,), (10,))
    assert pairs.report.startswith("9 of 11 preferences can be learned from: 1 left out")
    reports = run(make(), preferences=wishes)
    assert [report.loss for report in reports] == [report.loss for report in run(make())]


@pytest.mark.parametrize("which", ["preferences", "held_out"])
def test_no_pair_at_all_is_an_error_that_says_why(which):
    none = preferences_of(Preference(Conversation.of("Why?"), "Yes.", "z" * 99))
    with pytest.raises(DataError, match=r"hold nothing to learn: 0 of 1 preferences .*: 1 left out"):
        run(make(), **{which: none})


def test_a_reference_that_knows_other_tokens_or_less_context_is_refused():
    with pytest.raises(ValueError, match="reference's context_length is 32 and the model's 64"):
        run(make(), reference=make(context_length=32).model)
    smaller = GPTModel(GPTConfig(vocab_size=50, context_length=64, emb_dim=8, n_heads=2, n_layers=1))
    with pytest.raises(ValueError, match="reference's vocab_size is 50"):
        run(make(), reference=smaller)


def test_nothing_to_train_and_a_loss_that_is_not_finite_are_errors_that_change_no_weight():
    chat = make()
    chat.model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing of the model requires a gradient"):
        run(chat)
    chat = make()
    with torch.no_grad():
        chat.model.final_norm.shift[0] = math.nan
    before = weights(chat)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1 .*weights were not changed"):
        run(chat)
    for name, tensor in weights(chat).items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7)), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
     ({"batch_size": True}, "batch_size must be a whole number"), ({"seed": 2**63}, r"seed must be below 2\*\*63"),
     ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
     ({"lr": math.nan}, "lr must be a finite number of at least 0, got nan"),
     ({"beta": 0.0}, "beta must be above 0"), ({"beta": math.inf}, "beta must be a finite number"),
     ({"weight_decay": "0"}, "weight_decay must be a finite number"),
     ({"reduction": "max"}, "reduction must be one of sum, mean, got 'max'"),
     ({"precision": "auto"}, "precision must be one of float32, bfloat16, got 'auto'"),
     ({"keep_best": 1}, "keep_best must be True or False, got 1")])
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        PreferenceConfig(**settings)
