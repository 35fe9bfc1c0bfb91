"""Last block, LoRA or all of it: time and accuracy of each way to finetune the same model, with a plot.

    uv run python benchmarks/finetuning.py --data SMSSpamCollection.tsv  # half an hour on one core

"small": a GPT of 3 layers, 96 wide, pretrained on the training texts of a leak-free split, then finetuned in each way
for 8 epochs from the same weights; three seeds. "124M": GPT-2's shape with random weights, seconds a step of 8 texts as
long as the collection's (its weights cannot be had here, so no accuracy); the ways take turns, medians. With reuse the
trunk's own pass is paid once and told apart. Seconds are the processor's, of one thread: what else the machine does
counts little.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from gpt_core import GPTModel, gpt2_config
from gpt_eval import evaluate_classifier, summarize_runs
from gpt_finetune import (
    Classifier,
    ClassifierConfig,
    LabelledTexts,
    LoRAConfig,
    add_lora,
    split_labelled,
    train_classifier,
    train_only_last_blocks,
    with_class_head,
)
from gpt_spam.base_model import pretrain_small_model
from gpt_spam.messages import read_file
from gpt_spam.train import SMALL_MODEL
from gpt_train import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "finetuning"
SEEDS = (1, 2, 3)
WAYS = {
    "last block, trunk reused": ClassifierConfig(epochs=8, batch_size=32, lr=2e-3, keep_best=False),
    "last block, trunk computed anew": ClassifierConfig(
        epochs=8, batch_size=32, lr=2e-3, keep_best=False, reuse_trunk=False
    ),
    "LoRA, rank 16": ClassifierConfig(epochs=8, batch_size=32, lr=4e-3, keep_best=False),
    "all": ClassifierConfig(epochs=8, batch_size=32, lr=2e-3, keep_best=False),
}


def prepare(model: GPTModel, way: str) -> None:
    """Say by ``requires_grad`` what is trained."""
    torch.manual_seed(0)
    if way.startswith("last block"):
        train_only_last_blocks(model)
    elif way.startswith("LoRA"):
        add_lora(model, LoRAConfig(rank=16, alpha=16))
        model.out_head.requires_grad_(True)
    else:
        model.requires_grad_(True)


def small(data: Path) -> dict[str, list[dict[str, float]]]:
    """Return for each way the scores and seconds of each seed."""
    texts = read_file(data, template="{text}", label="label", columns=(), max_bad=0)
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in SEEDS:
        split = split_labelled(texts, seed=seed)
        settings = replace(SMALL_MODEL, emb_dim=96, n_layers=3)
        base = pretrain_small_model(split.train.texts, settings=settings, seed=seed, device="cpu")
        for way, config in WAYS.items():
            model = with_class_head(copy.deepcopy(base.model), 2, seed=seed, drop_rate=0.0)
            prepare(model, way)
            classifier = Classifier(model, base.tokenizer, labels=split.train.classes(), folded=settings.folded)
            n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            started = time.process_time()
            for _ in train_classifier(classifier, split.train, config=replace(config, seed=seed)):
                pass
            seconds = time.process_time() - started
            shares = [list(one.probabilities.values()) for one in classifier.classify(split.test.texts)]
            report = evaluate_classifier(
                split.test.labels, shares, classes=classifier.labels, positive="spam", n_resamples=100
            )
            scores = {name: getattr(report, name).value for name in ("accuracy", "balanced_accuracy", "roc_auc")}
            rows[way].append({**scores, "seconds": seconds, "n_trained": n_trained})
            print(seed, way, rows[way][-1], file=sys.stderr, flush=True)
    return rows


class Ids:
    """A tokenizer whose texts are ids, written as numbers: what is timed here is the model."""

    def encode(self, text: str, /) -> list[int]:
        """Return the ids."""
        return [int(number) for number in text.split()]

    def save(self, path: Path, /) -> None:
        """Write nothing worth reading."""
        path.write_text("{}", encoding="utf-8")


def large(data: Path, *, n_texts: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return for each way the median seconds of a step at 124M, and of what comes before the first."""
    texts = read_file(data, template="{text}", label="label", columns=(), max_bad=0)
    generator = torch.Generator().manual_seed(0)
    # Four characters a token, as GPT-2 has it on English.
    lengths = [max(2, len(text) // 4) for text in texts.texts[:n_texts]]
    written = tuple(
        " ".join(map(str, torch.randint(0, 50257, (length,), generator=generator).tolist())) for length in lengths
    )
    some = LabelledTexts(source="random ids", texts=written, labels=tuple("ab"[i % 2] for i in range(n_texts)),
                         lines=tuple(range(n_texts)))
    base = GPTModel(gpt2_config("124M"))
    steps: dict[str, list[float]] = {way: [] for way in WAYS}
    before: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, config in WAYS.items():
            model = with_class_head(copy.deepcopy(base), 2, seed=0)
            prepare(model, way)
            classifier = Classifier(model, Ids(), labels=("a", "b"))
            marks = [time.process_time()]
            for _ in train_classifier(classifier, some, config=replace(config, epochs=1, batch_size=8, lr=5e-5)):
                marks.append(time.process_time())
            # What the first step takes beyond another is the trunk's pass and the optimizer's state.
            taken = [end - start for start, end in itertools.pairwise(marks)]
            steps[way] += taken[1:]
            before[way].append(taken[0] - statistics.median(taken[1:]))
            del model, classifier
    return {
        way: {"step": statistics.median(steps[way]), "before": statistics.median(before[way])} for way in WAYS
    }


def page(small_rows: dict[str, list[dict[str, float]]], large_rows: dict[str, dict[str, float]], n_texts: int) -> str:
    """Return the Markdown."""
    def mean(rows: list[dict[str, float]], name: str, scale: float = 100) -> str:
        measured = summarize_runs([scale * row[name] for row in rows])
        assert measured.value is not None
        assert measured.high is not None
        return f"{measured.value:.2f} ± {measured.high - measured.value:.2f}"

    lines = ["# Last block, LoRA or all of it", "", (__doc__ or "").strip(), "", "## A small model", "",
             "| trained | parameters | s for 8 epochs | accuracy % | balanced accuracy % | ROC area % |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for way, rows in small_rows.items():
        lines.append(
            f"| {way} | {rows[0]['n_trained']:,} | {statistics.mean(row['seconds'] for row in rows):.0f} | "
            f"{mean(rows, 'accuracy')} | {mean(rows, 'balanced_accuracy')} | {mean(rows, 'roc_auc')} |"
        )
    slowest = large_rows["all"]["step"]
    lines += ["", f"Means of {len(SEEDS)} seeds with their 95 % t-interval.", "",
              "![accuracy and time](finetuning.png)", "", "## 124M", "",
              f"| trained | s a step of 8 texts | of training all | s before the first step ({n_texts} texts) |",
              "| --- | ---: | ---: | ---: |"]
    for way, row in large_rows.items():
        lines.append(f"| {way} | {row['step']:.3f} | {row['step'] / slowest:.2f} | {max(0.0, row['before']):.1f} |")
    return "\n".join(lines) + "\n"


def plot(rows: dict[str, list[dict[str, float]]]) -> None:
    """Draw accuracy over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for way, runs in rows.items():
        axes.plot([run["seconds"] for run in runs], [100 * run["accuracy"] for run in runs], "o", label=way)
    axes.set_xscale("log")
    axes.set_xlabel("seconds for 8 epochs, one core")
    axes.set_ylabel("accuracy on held-out texts, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=150)


def main() -> int:
    """Run both parts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=64, help="texts that 124M is timed on")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    large_rows = large(options.data, n_texts=options.texts, repeats=options.repeats)
    print(large_rows, file=sys.stderr, flush=True)
    small_rows = small(options.data)
    plot(small_rows)
    RESULTS.with_suffix(".md").write_text(page(small_rows, large_rows, options.texts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
