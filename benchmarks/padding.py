"""Does a classifier's answer depend on padding or on its neighbours in a batch? Random cases, ours and chapter 6's way.

    uv run python benchmarks/padding.py                                   # 10,000 answers, minutes on one core
    uv run python benchmarks/padding.py --data SMSSpamCollection.tsv      # and a trained classifier

A case is a batch of one to eight random texts, as long as short messages are, for a random model (five shapes of two
layers, and one of six layers, 384 wide), with 0 to 1,000 columns of padding behind the longest, random ids of the whole
vocabulary. In half of the cases a neighbour fills those columns, so that the padding of the others must be computed
and cannot be cut off. The oracle is each text alone, without a batch and without padding: the whole model, its last
position. What is counted is answers with another label than the oracle's, and the largest difference of a logit.
Chapter 6's way pads with one id and reads the last position; it gets the same texts.

With ``--data`` two classifiers are trained on the same texts from the same weights: ours, and by chapter 6's own
functions on texts padded to 120 tokens. Then both read the held-out texts, padded to other widths.

Results go to ``benchmarks/results``: padding.md and .png.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from gpt_core import GPTModel
from gpt_finetune import (
    Classifier,
    ClassifierConfig,
    LabelledTexts,
    class_logits,
    read_labelled,
    split_labelled,
    train_classifier,
    train_classifier_simple,
    with_class_head,
)
from gpt_tokenizer import BPETokenizer

VOCABULARY, CONTEXT, CLASSES, MOST_PADDING = 500, 1210, 3, 1000
TINY = {"emb_dim": 48, "n_layers": 2, "n_heads": 4, "qkv_bias": True}
SHAPES: dict[str, dict[str, Any]] = {
    "GPT-2": TINY,
    "grouped heads": {**TINY, "n_kv_heads": 2},
    "window of 16": {**TINY, "sliding_window": 16},
    "rotary, RMSNorm": {**TINY, "positions": "rotary", "norm": "rmsnorm"},
    "rotary, grouped, window": {**TINY, "positions": "rotary", "n_kv_heads": 1, "sliding_window": 50},
    "GPT-2, 6 layers, 384 wide": {"emb_dim": 384, "n_layers": 6, "n_heads": 6, "qkv_bias": True},
}
SHARES = [19, 19, 19, 19, 19, 5]  # of the cases, in percent: the last shape takes most of the time all the same
TRAINED_WIDTH = 120  # what the book pads the messages to
WIDTHS = [TRAINED_WIDTH, 121, 130, 150, 200, 300, 500, 1000]


def make_models() -> dict[str, GPTModel]:
    """Return one random classifier a shape, in eval mode; its logits have a standard deviation of about 4."""
    torch.manual_seed(11)
    models = {}
    for name, shape in SHAPES.items():
        model = GPTModel({"vocab_size": VOCABULARY, "context_length": CONTEXT, "n_classes": CLASSES, **shape})
        with torch.no_grad():
            model.out_head.weight.normal_(std=4 / shape["emb_dim"] ** 0.5)
        models[name] = model.eval()
    return models


def random_text(chance: random.Random) -> list[int]:
    """Return ids of a text as long as a short message: half have up to 20 tokens, none more than 200."""
    length = min(200, max(1, round(chance.lognormvariate(3, 0.8))))
    return [chance.randrange(VOCABULARY) for _ in range(length)]


def run_case(number: int, models: dict[str, GPTModel], counts: dict[str, Any]) -> int:
    """Run one case and add it to its shape's counts; return how many answers it held."""
    chance = random.Random(number)
    (name,) = chance.choices(list(models), SHARES)
    model, count = models[name], counts[name]
    texts = [random_text(chance) for _ in range(chance.randint(1, 8))]
    width = max(map(len, texts)) + chance.randint(0, MOST_PADDING)
    if chance.random() < 0.5:
        texts.insert(chance.randint(0, len(texts)), [chance.randrange(VOCABULARY) for _ in range(width)])
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randint(VOCABULARY, (len(texts), width), generator=generator)
    padded = torch.full((len(texts), width), chance.randrange(VOCABULARY))
    for row, books_row, ids in zip(inputs, padded, texts, strict=True):
        row[: len(ids)] = books_row[: len(ids)] = torch.tensor(ids)
    lengths = torch.tensor([len(ids) for ids in texts])
    with torch.inference_mode():
        expected = torch.stack([model(torch.tensor([ids]))[0, -1] for ids in texts])
        found = class_logits(model, inputs, lengths)
        books = model(padded)[:, -1]
    is_padded = lengths < width
    count["answers"] += len(texts)
    count["flips"] += int((found.argmax(-1) != expected.argmax(-1)).sum())
    count["difference"] = max(count["difference"], (found - expected).abs().max().item())
    count["padded"] += int(is_padded.sum())
    count["book flips"] += int((books.argmax(-1) != expected.argmax(-1))[is_padded].sum())
    return len(texts)


def read_at_the_end(model: GPTModel, sequences: list[list[int]], width: int, pad: int) -> Tensor:
    """Return chapter 6's logits of texts cut or padded to ``width``: those of the last position."""
    logits = []
    with torch.inference_mode():
        for start in range(0, len(sequences), 16):
            rows = [(ids + [pad] * width)[:width] for ids in sequences[start : start + 16]]
            logits.append(model(torch.tensor(rows))[:, -1])
    return torch.cat(logits)


def read_at_own_end(model: GPTModel, sequences: list[list[int]], width: int, pad: int) -> Tensor:
    """Return our logits of the same padded texts, each beside a neighbour that fills the width."""
    logits = []
    with torch.inference_mode():
        for start in range(0, len(sequences), 16):
            texts = sequences[start : start + 16]
            rows = [(ids + [pad] * width)[:width] for ids in texts]
            lengths = torch.tensor([*(min(len(ids), width) for ids in texts), width])
            logits.append(class_logits(model, torch.tensor([*rows, [1] * width]), lengths)[:-1])
    return torch.cat(logits)


def train_both(data: Path) -> tuple[dict[str, tuple[GPTModel, Callable[..., Tensor]]], Classifier, LabelledTexts]:
    """Return a model and a way to read it for each of the two, a classifier that encodes, and the held-out texts."""
    texts = read_labelled(data, columns=["label", "text"])
    split = split_labelled(texts, validation=0.1, test=0.2, seed=1)
    tokenizer = BPETokenizer.train(split.train.texts, vocab_size=1000)
    torch.manual_seed(1)
    base = GPTModel({"vocab_size": 1000, "context_length": max(WIDTHS), "emb_dim": 64, "n_layers": 2, "n_heads": 4})
    ours, books = (with_class_head(copy.deepcopy(base), 2, seed=1) for _ in range(2))
    classifier = Classifier(ours, tokenizer, labels=texts.classes(), max_length=TRAINED_WIDTH)
    config = ClassifierConfig(epochs=4, batch_size=8, lr=1e-3, class_weights="none")
    for _ in train_classifier(classifier, split.train, validation=split.validation, config=config):
        pass
    torch.manual_seed(123)
    rows = [(ids + [tokenizer.eot_token] * TRAINED_WIDTH)[:TRAINED_WIDTH] for ids in classifier.encode_all(
        split.train.texts)]
    targets = [classifier.labels.index(label) for label in split.train.labels]
    loader = DataLoader(
        TensorDataset(torch.tensor(rows), torch.tensor(targets)), batch_size=8, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(books.parameters(), lr=1e-3, weight_decay=0.1)
    train_classifier_simple(books, loader, loader, optimizer, "cpu", 4, eval_freq=10**6, eval_iter=1)
    return {"ours": (ours, read_at_own_end), "chapter 6": (books.eval(), read_at_the_end)}, classifier, split.test


def trained_rows(data: Path) -> tuple[list[str], dict[str, list[float]]]:
    """Return the lines on the trained classifiers, and each one's share of changed answers by width."""
    both, classifier, test = train_both(data)
    sequences = classifier.encode_all(test.texts)
    wanted = torch.tensor([classifier.labels.index(label) for label in test.labels])
    pad = classifier.tokenizer.eot_token
    lines = ["| padded to | ours: other answers | accuracy | chapter 6: other answers | accuracy |",
             "| ---: | ---: | ---: | ---: | ---: |"]
    as_trained: dict[str, Tensor] = {}
    flipped: dict[str, list[float]] = {name: [] for name in both}
    for width in WIDTHS:
        cells = [f"{width:,}"]
        for name, (model, read) in both.items():
            found = read(model, sequences, width, pad).argmax(-1)
            n_other = int((found != as_trained.setdefault(name, found)).sum())
            flipped[name].append(n_other / len(found))
            cells += [f"{n_other:,} ({n_other / len(found):.1%})", f"{(found == wanted).double().mean():.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    size = f"2 layers, 64 wide, {classifier.model.n_parameters / 1e6:.1f} million parameters"
    head = [f"Trained from the same random weights ({size}) for 4 epochs on the SMS Spam Collection, duplicates on one "
            f"side; {len(test):,} held-out texts, cut at "
            f"{TRAINED_WIDTH} tokens. Chapter 6's functions saw every text padded to {TRAINED_WIDTH}: how many answers "
            "change when the same text is padded to more? A pretrained GPT-2 knows positions up to 1,024, this model "
            f"up to {TRAINED_WIDTH}: that counts against chapter 6 beyond it. Ours reads none of them.", ""]
    return [*head, *lines], flipped


def plot(flipped: dict[str, list[float]], path: Path) -> None:
    """Draw the share of answers that padding changed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), dpi=90, layout="constrained")
    for name, shares in flipped.items():
        axes.plot(WIDTHS, [100 * share for share in shares], marker="o", label=name)
    axes.set_xscale("log")
    ticks = [width for width in WIDTHS if width != TRAINED_WIDTH + 1]  # it would be written over its neighbour
    axes.set_xticks(ticks, [str(width) for width in ticks], rotation=45)
    axes.minorticks_off()
    axes.set_xlabel(f"tokens that a text is padded to (trained at {TRAINED_WIDTH})")
    axes.set_ylabel("answers that change, %")
    axes.legend()
    figure.savefig(path)


def main() -> int:
    """Run the cases, print the tables and write them; 1 if any answer of ours differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--data", type=Path, help="SMSSpamCollection.tsv; without it nothing is trained")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    started, models = time.perf_counter(), make_models()
    counts: dict[str, Any] = {
        name: {"answers": 0, "flips": 0, "difference": 0.0, "padded": 0, "book flips": 0} for name in models}
    n_answers, number = 0, 0
    while n_answers < options.answers:
        n_answers += run_case(number, models, counts)
        number += 1
        if number % 200 == 0:
            print(f"{n_answers:,} answers, {time.perf_counter() - started:.0f} s", flush=True)
    lines = [
        "# Padding", "",
        f"{n_answers:,} answers in {number:,} random batches, each against its text alone; Python "
        f"{platform.python_version()}, torch {torch.__version__}, float32, {torch.get_num_threads()} thread, "
        f"{time.perf_counter() - started:.0f} s. Random weights; 0 to {MOST_PADDING:,} columns of padding, of any id; "
        "chapter 6's way reads the last position, so its answers are counted where there is padding, and of three "
        "classes chance would give two thirds another label.", "",
        "| model | answers | ours: other labels | largest difference of a logit | chapter 6: padded | other labels |",
        "| --- | ---: | ---: | ---: | ---: | ---: |"]
    total = {key: sum(count[key] for count in counts.values()) for key in ("answers", "flips", "padded", "book flips")}
    total["difference"] = max(count["difference"] for count in counts.values())
    for name, count in {**counts, "all": total}.items():
        share = count["book flips"] / count["padded"] if count["padded"] else math.nan
        lines.append(
            f"| {name} | {count['answers']:,} | {count['flips']:,} | {count['difference']:.1e} | "
            f"{count['padded']:,} | {count['book flips']:,} ({share:.0%}) |")
    print("\n".join(lines), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.data is not None:
        told, flipped = trained_rows(options.data)
        lines += ["", "## A trained classifier", "", *told, "", "![answers that padding changed](padding.png)"]
        plot(flipped, options.out / "padding.png")
    (options.out / "padding.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if total["flips"] else 0


if __name__ == "__main__":
    sys.exit(main())
