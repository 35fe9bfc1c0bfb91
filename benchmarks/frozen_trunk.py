"""What computing a frozen trunk once saves: GPT-2's 124M with only the last block trained, with and without reuse.

    taskset -c 1 uv run python benchmarks/frozen_trunk.py        # about ten minutes on one core

The model has GPT-2's shape and random weights, the texts are random ids, as long as the messages of the SMS Spam
Collection are in GPT-2's tokens: what is measured is time, and that the weights come out the same. Trained is what
chapter 6 trains (last block, final norm, head), by ``train_classifier`` with batches of 8, for 1, 2, 5 and 10 epochs,
each with the trunk reused and computed anew in turns (A B A B); the time is the processor's for the whole call, the
table's own pass included: one thread computes, and what else the machine does counts little. Medians count.

Results go to ``benchmarks/results``: frozen_trunk.md and .png.
"""

from __future__ import annotations

import argparse
import copy
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from gpt_core import GPTModel, gpt2_config, initialize_gpt2
from gpt_finetune import (
    Classifier,
    ClassifierConfig,
    LabelledTexts,
    train_classifier,
    train_only_last_blocks,
    with_class_head,
)
from gpt_train import keep_freed_memory

EPOCHS = (1, 2, 5, 10)
WAYS = {"reused": True, "computed anew": False}
# Share of the collection's 5,574 messages that have at most so many of GPT-2's tokens; their mean is 22.8.
LENGTHS = {0.0: 1, 0.1: 7, 0.2: 9, 0.3: 11, 0.4: 14, 0.5: 17, 0.6: 21, 0.7: 29, 0.8: 37, 0.9: 46, 0.95: 52, 0.99: 75,
           1.0: 257}


class Ids:
    """A tokenizer of texts that are ids, written as numbers."""

    def encode(self, text: str, /) -> list[int]:
        """Return the ids."""
        return [int(number) for number in text.split()]

    def save(self, path: Path, /) -> None:
        """Write nothing worth reading."""
        path.write_text("{}", encoding="utf-8")


def length_at(share: float) -> int:
    """Return the length that this share of the messages does not exceed, between the known ones by a straight line."""
    shares = list(LENGTHS)
    above = next(i for i, known in enumerate(shares) if known >= share and i > 0)
    low, high = shares[above - 1], shares[above]
    return round(LENGTHS[low] + (LENGTHS[high] - LENGTHS[low]) * (share - low) / (high - low))


def random_texts(n_texts: int) -> LabelledTexts:
    """Return texts of random ids with random labels, their lengths spread as the messages' are."""
    chance = random.Random(0)
    lengths = [length_at((number + 0.5) / n_texts) for number in range(n_texts)]
    chance.shuffle(lengths)
    return LabelledTexts(
        source="random ids",
        texts=tuple(" ".join(str(chance.randrange(50257)) for _ in range(length)) for length in lengths),
        labels=tuple(chance.choice(("ham", "spam")) for _ in lengths), lines=tuple(range(n_texts)))


def run(
    base: GPTModel, texts: LabelledTexts, *, epochs: int, is_reused: bool
) -> tuple[float, float, dict[str, Tensor]]:
    """Train a copy; return the processor's seconds for the call, the last loss, and what was trained."""
    model = with_class_head(copy.deepcopy(base), 2, seed=123)
    train_only_last_blocks(model)
    classifier = Classifier(model, Ids(), labels=["ham", "spam"])
    config = ClassifierConfig(epochs=epochs, batch_size=8, reuse_trunk=is_reused)
    started = time.process_time()
    *_, report = train_classifier(classifier, texts, config=config)
    seconds = time.process_time() - started
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return seconds, report.loss, trained


def plot(medians: dict[int, dict[str, float]], path: Path) -> None:
    """Draw the seconds of both ways over the epochs, with the factor at each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 3.5), dpi=90, layout="constrained")
    for way in WAYS:
        axes.plot(list(medians), [row[way] for row in medians.values()], marker="o", label=f"trunk {way}")
    for epochs, row in medians.items():
        axes.annotate(f"{row['computed anew'] / row['reused']:.1f}x", (epochs, row["computed anew"]),
                      xytext=(-4, 6), textcoords="offset points", ha="right")
    axes.set_xlabel("epochs")
    axes.set_ylabel("processor seconds, one thread")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.15 * max(max(row.values()) for row in medians.values()))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path)


def main() -> int:
    """Time both ways, compare the weights, write the page; 1 if the weights differ by more than 1e-4."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--note", default="", help="a sentence on the machine, for the page")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    base = GPTModel(gpt2_config("124M"))
    initialize_gpt2(base, seed=1)
    texts = random_texts(options.texts)
    n_tokens = sum(len(text.split()) for text in texts.texts)
    run(base, texts.select(range(16)), epochs=1, is_reused=True)  # what is done once only is done
    medians: dict[int, dict[str, float]] = {}
    largest, lines = 0.0, []
    for epochs in EPOCHS:
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        found: dict[str, tuple[float, dict[str, Tensor]]] = {}
        for _ in range(options.repeats):
            for way, is_reused in WAYS.items():
                taken, loss, trained = run(base, texts, epochs=epochs, is_reused=is_reused)
                seconds[way].append(taken)
                found[way] = loss, trained
                print(f"{epochs} epochs, trunk {way}: {taken:.1f} s", flush=True)
        medians[epochs] = row = {way: statistics.median(taken) for way, taken in seconds.items()}
        (loss, reused), (other_loss, anew) = found["reused"], found["computed anew"]
        difference, name = max((float((reused[name] - anew[name]).abs().max()), name) for name in reused)
        largest = max(largest, difference)
        lines.append(
            f"| {epochs} | {row['computed anew']:.1f} | {row['reused']:.1f} | "
            f"{row['computed anew'] / row['reused']:.2f} | {difference:.1e} ({name}) | {abs(loss - other_loss):.1e} |")
    width = base.config.emb_dim
    page = [
        "# A frozen trunk, computed once", "",
        f"GPT-2's shape of 124M with random weights, last block, final norm and head trained; {len(texts)} texts of "
        f"{n_tokens:,} tokens in all, batches of 8, one thread, float32; Python {platform.python_version()}, torch "
        f"{torch.__version__}, gpt-finetune. Processor seconds, medians of {options.repeats}, in turns. The table "
        f"takes {n_tokens * width * 4 / 2**20:.0f} MiB ({width * 4:,} bytes a token). {options.note}".rstrip(), "",
        "| epochs | computed anew, s | reused, s | factor | trained weights differ by at most | the last loss by |",
        "| ---: | ---: | ---: | ---: | --- | ---: |", *lines, "",
        "Reuse pays the trunk once: nothing is saved in one epoch, and the factor grows with them.",
        "", "![seconds by epochs](frozen_trunk.png)"]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "frozen_trunk.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page))
    plot(medians, options.out / "frozen_trunk.png")
    return 1 if largest > 1e-4 else 0


if __name__ == "__main__":
    sys.exit(main())
