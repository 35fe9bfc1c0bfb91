"""What direct preference optimization does to a small model, by sum and by mean, and what a stored reference saves.

    taskset -c 1 uv run python benchmarks/preference.py        # about a minute on one core

A small GPT first learns, from scratch, to answer made-up requests politely and rudely alike; then it learns from 192
preferences that polite answers are the better ones. Other 64 requests, with things and verbs that were trained on but
not together, are held out. Rude answers are longer than polite ones, as rejected answers often are. Measured are the
margin and the accuracy of the held-out pairs, what the model then says, the first loss (ln 2 if the reference is
right), padding, and processor seconds: with the reference's log-probabilities stored, and with a second model that
computes them in each step. One thread; times in turns, medians count.

Results go to ``benchmarks/results``: preference.md.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import math
import platform
import random
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gpt_core import GPTConfig, GPTModel, Sampling, initialize_gpt2
from gpt_finetune import (
    ChatConfig,
    ChatModel,
    Conversation,
    Preference,
    PreferenceConfig,
    PreferenceReport,
    encode_conversations,
    encode_preferences,
    train_chat,
    train_preferences,
)
from gpt_finetune.preference_loss import PreferenceLoss, pair_log_probabilities
from gpt_finetune.preference_pairs import PreferenceBatches, rows_of
from gpt_tokenizer import BPETokenizer
from gpt_train import Loss, TrainConfig, keep_freed_memory, train

VERBS = ["Describe", "Draw", "Explain", "Find", "Name", "Praise", "Show", "Sketch"]
THINGS = [
    "apple", "book", "boat", "bridge", "cat", "city", "cloud", "door", "field", "fish", "forest", "garden", "hill",
    "horse", "house", "island", "lake", "lamp", "moon", "mountain", "park", "river", "road", "rose", "ship", "sky",
    "snow", "song", "star", "sun", "tower", "tree",
]
POLITE = ["Gladly. Here is the {thing}.", "With pleasure: the {thing}, as you wished.", "Of course, the {thing}."]
RUDE = [
    "No. Look for the {thing} yourself, and do not come back before you have found it.",
    "Why should I care about the {thing}? Nobody does, nobody ever did, and you should not either.",
    "The {thing} again? Go away.",
]
BETAS: dict[Literal["sum", "mean"], float] = {"sum": 0.1, "mean": 1.0}  # a mean is a sum by an answer's ten tokens
RATES = (2e-4, 6e-4)


@dataclass(frozen=True)
class Found:
    """What one run gave."""

    first: PreferenceReport
    last: PreferenceReport
    n_polite: int
    """Held-out requests whose drawn answer is a whole polite one."""


def wishes() -> tuple[list[Preference], list[Preference]]:
    """Return the preferences to learn from, and those held out."""
    draw = random.Random(0)
    found = []
    for number, (verb, thing) in enumerate((verb, thing) for verb in VERBS for thing in THINGS):
        chosen, rejected = (draw.choice(answers).format(thing=thing) for answers in (POLITE, RUDE))
        found.append((number, Preference(Conversation.of(f"{verb} the {thing}."), chosen, rejected)))
    draw.shuffle(found)
    return [wish for _, wish in found[:192]], [wish for _, wish in found[192:]]


def taught(training: list[Preference], width: int) -> ChatModel:
    """Return a model that has learned both kinds of answers."""
    conversations = [conversation for wish in training for conversation in wish.conversations]
    texts = [message.content for conversation in conversations for message in conversation.messages]
    tokenizer = BPETokenizer.train(texts, vocab_size=400)
    model = GPTModel(GPTConfig(vocab_size=400, context_length=128, emb_dim=width, n_heads=4, n_layers=2))
    initialize_gpt2(model, seed=1)
    chat = ChatModel.from_base(model, tokenizer, template="chatml")
    config = ChatConfig(epochs=20, batch_size=16, lr=2e-3)
    for report in train_chat(chat, encode_conversations(chat, conversations), config=config):
        loss = report.loss
    print(f"both kinds of answers learned: loss {loss:.3f}", flush=True)
    return chat


def learned(chat: ChatModel, training: list[Preference], held_out: list[Preference], config: PreferenceConfig) -> Found:
    """Train the chat model in place; return the reports and how it answers."""
    reports = list(
        train_preferences(
            chat, encode_preferences(chat, training), validation=encode_preferences(chat, held_out), config=config))
    return Found(reports[0], reports[-1], n_polite(chat, held_out))


def n_polite(chat: ChatModel, held_out: list[Preference]) -> int:
    """Return how many of the held-out requests get one of the polite answers, word for word but for the thing.

    Answers are drawn at temperature 1: greedily a model may be polite throughout that is so just more often than not.
    """
    patterns = [re.compile(re.escape(text).replace(r"\{thing\}", r"\w+")) for text in POLITE]
    answers = chat.answer_all(
        [wish.prompt for wish in held_out], max_new_tokens=40, sampling=Sampling(temperature=1.0, seed=1))
    return sum(any(pattern.fullmatch(answer.text) for pattern in patterns) for answer in answers)


def seconds_of(chat: ChatModel, training: list[Preference], config: PreferenceConfig, *, is_stored: bool) -> float:
    """Train a copy; return the processor's seconds, the reference's included, and change nothing."""
    model, reference = copy.deepcopy(chat.model), copy.deepcopy(chat.model).requires_grad_(False)
    pairs = encode_preferences(chat, training)
    batches = PreferenceBatches(pairs, batch_size=config.batch_size, seed=config.seed)

    def anew(policy: nn.Module, inputs: Tensor, targets: Tensor, /, *, reduction: Literal["mean", "sum"]) -> Tensor:
        rows = rows_of(targets.tolist())
        of_batch = dataclasses.replace(
            pairs, rows=tuple(pairs.rows[row] for row in rows), starts=tuple(pairs.starts[row] for row in rows))
        known = torch.zeros(len(pairs.rows))
        known[rows] = pair_log_probabilities(reference, of_batch)
        return PreferenceLoss(pairs, known, beta=config.beta, reduction="sum")(
            policy, inputs, targets, reduction=reduction)

    started = time.process_time()
    loss: Loss = anew
    if is_stored:
        loss = PreferenceLoss(
            pairs, pair_log_probabilities(reference, pairs), beta=config.beta, reduction="sum")
    settings = TrainConfig(max_steps=batches.n_steps * config.epochs, lr=config.lr, precision="float32")
    for _ in train(model, batches.epochs(config.epochs), config=settings, loss=loss):
        pass
    return time.process_time() - started


def main() -> int:
    """Run all of it, write the page; 1 if a first loss is not ln 2, or held-out preferences are not learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="a sentence on the machine, for the page")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    training, held_out = wishes()
    chat = taught(training, options.width)
    before = n_polite(chat, held_out)
    pairs = encode_preferences(chat, training)
    share = PreferenceBatches(pairs, batch_size=8, seed=123).padding_share()
    runs, is_right = [], True
    for (reduction, beta), lr in itertools.product(BETAS.items(), RATES):
        policy = copy.copy(chat)
        policy.model = copy.deepcopy(chat.model)
        config = PreferenceConfig(epochs=2, batch_size=8, lr=lr, beta=beta, reduction=reduction)
        found = learned(policy, training, held_out, config)
        last = found.last.validation
        assert last is not None
        is_right &= abs(found.first.loss - math.log(2)) < 1e-5 and last.accuracy > 0.9
        runs.append(
            f"| {reduction} | {beta} | {lr:.0e} | {found.first.loss:.7f} | {last.loss:.3f} | {last.margin:.2f} | "
            f"{last.accuracy:.1%} | {last.chosen_reward:+.2f} | {last.rejected_reward:+.2f} | "
            f"{before} -> {found.n_polite} of {len(held_out)} |")
        print(runs[-1], flush=True)
    times = []
    for epochs in (1, 3):
        config = PreferenceConfig(epochs=epochs, batch_size=8)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(options.repeats):
            for is_stored, taken in seconds.items():
                taken.append(seconds_of(chat, training, config, is_stored=is_stored))
        stored, anew = (statistics.median(seconds[is_stored]) for is_stored in (True, False))
        times.append(f"| {epochs} | {anew:.2f} | {stored:.2f} | {anew / stored:.2f} |")
        print(times[-1], flush=True)
    size = f"2 layers x {options.width} ({chat.model.n_parameters / 1e6:.1f} million parameters)"
    page = [
        "# Preferences", "",
        f"A GPT of {size} that learned from scratch to answer politely and rudely alike; then {len(training)} "
        "preferences for politeness, 2 epochs in batches of 8 pairs, all weights trained, seed 123. "
        f"{len(held_out)} other preferences are held out: at first their margin is 0. One thread, float32; Python "
        f"{platform.python_version()}, torch {torch.__version__}, gpt-finetune. {options.note}".rstrip(), "",
        "| log-probability | beta | lr | first loss | loss | margin | accuracy | chosen reward | rejected reward | "
        "polite answers |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", *runs, "",
        "Losses, margins and rewards but the first are those of the held-out pairs after training; ln 2 = "
        f"{math.log(2):.7f}. Rewards are beta times what a log-probability (a sum, or a mean over the tokens) gained, "
        "so those of sum and mean cannot be compared. Polite answers are those drawn at temperature 1 for the held-out "
        "requests that are, word for word, of a polite form, before and after.", "",
        "A chosen reward below 0 says that the chosen answers have become less likely, only less so than the rejected "
        "ones: the loss asks for the difference alone. Where that goes far the model says neither any more; margin and "
        "accuracy do not show it, so look at the chosen reward, and at answers.", "",
        f"Of the tokens computed in an epoch {share:.1%} are padding.", "",
        "## The reference, stored or computed in each step", "",
        f"Processor seconds of a whole run over the {len(training)} pairs by sum, medians of {options.repeats}, in "
        "turns. Stored, the reference's log-probabilities are computed once for all pairs, which is included; anew, a "
        "second model computes those of each batch.", "",
        "| epochs | anew, s | stored, s | factor |", "| ---: | ---: | ---: | ---: |", *times, "",
        "In one epoch each pair is seen once, so that nothing is computed less often; what is saved is the second "
        "model's memory. Each further epoch saves the reference's passes."]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "preference.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
