"""A spam classifier from scratch against scikit-learn, on the same leak-free splits: what each ingredient gives.

    uv run python benchmarks/spam.py --data SMSSpamCollection.tsv            # about 40 minutes on one core
    uv run python benchmarks/spam.py --data SMSSpamCollection.tsv --only final

Two parts. "final": `gpt-spam train` as a person runs it, for seeds 1 to 5; each seed has its own split, weights and
order. On each seed's texts scikit-learn's logistic regression is trained as well, on words and on characters, with
class weights; it gets the training and the validation texts, as it needs no validation. "steps": seeds 101 to 103, not
those of the final part, with one ingredient after another.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpt_eval import Measured, evaluate_classifier, summarize_runs
from gpt_finetune import Classifier, ClassifierConfig, LabelledTexts, split_labelled, train_classifier, with_class_head
from gpt_spam.base_model import BPEDropout, SmallModel, pretrain_small_model
from gpt_spam.messages import read_file
from gpt_spam.run_folder import read_side
from gpt_spam.train import BPE_DROPOUT, SMALL, SMALL_MODEL

RESULTS = Path(__file__).parent / "results" / "spam"
FINAL_SEEDS, STEP_SEEDS = (1, 2, 3, 4, 5), (101, 102, 103)
METRICS = ("accuracy", "balanced_accuracy", "f1", "roc_auc")


@dataclass(frozen=True)
class Variant:
    """One way to make the classifier."""

    name: str
    model: SmallModel
    config: ClassifierConfig
    bpe_dropout: float = 0.0


PLAIN = Variant(
    "plain: from random weights, class at the last token only",
    replace(SMALL_MODEL, folded=False, epochs=0),
    replace(SMALL, every_token=0.0),
)


def variants() -> list[Variant]:
    """Return the ingredients one after another, then what was tried beside them."""
    dropped = replace(PLAIN, name="+ BPE-dropout", bpe_dropout=BPE_DROPOUT)
    every = replace(dropped, name="+ class at every token", config=SMALL)
    folded = replace(every, name="+ text without case, digits as 0", model=replace(every.model, folded=True))
    default = replace(folded, name="+ pretraining on the training texts (the default)", model=SMALL_MODEL)
    return [
        PLAIN,
        dropped,
        every,
        folded,
        default,
        replace(default, name="default, rotary positions", model=replace(SMALL_MODEL, positions="rotary")),
        replace(default, name="default, moving average of the weights", config=replace(SMALL, ema_decay=0.99)),
    ]


def train_variant(variant: Variant, seed: int, data: Path) -> dict[str, float]:
    """Return the scores of one variant on one seed's split, and the seconds it took on one core."""
    torch.set_num_threads(1)
    split = split_labelled(_texts(data), seed=seed)
    started = time.perf_counter()
    base = pretrain_small_model(split.train.texts, settings=variant.model, seed=seed, device="cpu")
    labels = split.train.classes()
    model = with_class_head(base.model, len(labels), seed=seed).requires_grad_(True)
    classifier = Classifier(model, base.tokenizer, labels=labels, folded=variant.model.folded)

    def tokenizer(epoch: int) -> BPEDropout:
        return BPEDropout(base.tokenizer, rate=variant.bpe_dropout, seed=f"{seed}/{epoch}")

    for _ in train_classifier(
        classifier, split.train, validation=split.validation, config=replace(variant.config, seed=seed),
        epoch_tokenizer=tokenizer if variant.bpe_dropout else None,
    ):
        pass
    seconds = time.perf_counter() - started
    shares = [list(one.probabilities.values()) for one in classifier.classify(split.test.texts)]
    return {**_scores(split.test, shares, labels), "seconds": seconds}


def run_command(seed: int, data: Path) -> dict[str, Any]:
    """Return the scores of `gpt-spam train` on one seed, and of scikit-learn on the same texts."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-c", "import sys; from gpt_spam.cli import main; sys.exit(main())", "train"]
        started = time.perf_counter()
        subprocess.run(
            [*command, "--data", str(data), "--seed", str(seed), "--out", str(out)], check=True, capture_output=True
        )
        seconds = time.perf_counter() - started
        report = json.loads((out / "test" / "report.json").read_text(encoding="utf-8"))
        sides = {side: read_side(out, side) for side in ("train", "validation", "test")}
    known = [sides["train"], sides["validation"]]
    texts = [text for side in known for text in side.texts]
    labels = [label for side in known for label in side.labels]
    return {
        "seed": seed,
        "sizes": {side: dict(part.counts) for side, part in sides.items()},
        "gpt-spam": {**{name: report[name]["value"] for name in METRICS}, "seconds": seconds,
                     "calibration": report["expected_calibration_error"]["value"]},
        "words": _sklearn(texts, labels, sides["test"], analyzer="word"),
        "characters": _sklearn(texts, labels, sides["test"], analyzer="char", ngram_range=(2, 5)),
        "characters, sublinear, C=10": _sklearn(
            texts, labels, sides["test"], analyzer="char", ngram_range=(2, 5), C=10.0, sublinear_tf=True
        ),
    }


def _sklearn(
    texts: list[str], labels: list[str], test: LabelledTexts, *, C: float = 1.0, **vectorizer: Any
) -> dict[str, float]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    started = time.perf_counter()
    pipeline = make_pipeline(
        TfidfVectorizer(**vectorizer), LogisticRegression(C=C, class_weight="balanced", max_iter=2000)
    )
    pipeline.fit(texts, labels)
    shares = pipeline.predict_proba(list(test.texts))
    return {**_scores(test, shares, list(pipeline.classes_)), "seconds": time.perf_counter() - started}


def _scores(test: LabelledTexts, shares: Any, classes: list[str]) -> dict[str, float]:
    report = evaluate_classifier(test.labels, shares, classes=classes, positive="spam", n_resamples=100)
    values = {name: getattr(report, name).value for name in METRICS}
    return {**values, "calibration": report.expected_calibration_error.value}


def _texts(data: Path) -> LabelledTexts:
    return read_file(data, template="{text}", label="label", columns=(), max_bad=0)


def _over_seeds(rows: list[dict[str, float]], name: str) -> str:
    measured: Measured = summarize_runs([row[name] for row in rows])
    assert measured.value is not None
    half = "" if measured.high is None else f" ± {100 * (measured.high - measured.value):.2f}"
    return f"{100 * measured.value:.2f}{half}"


def final_part(data: Path, workers: int) -> str:
    """Run the command for each seed; return the section of the page."""
    with ProcessPoolExecutor(workers) as pool:
        runs = list(pool.map(run_command, FINAL_SEEDS, [data] * len(FINAL_SEEDS)))
    names = [name for name in runs[0] if name not in ("seed", "sizes")]
    sizes = "; ".join(
        f"{side} {sum(counts.values()):,} ({counts['spam']} spam)" for side, counts in runs[0]["sizes"].items()
    )
    head = ["", "accuracy %", "balanced accuracy %", "F1 of spam %", "ROC area %", "calibration error %", "s a seed"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name in names:
        rows = [run[name] for run in runs]
        cells = [_over_seeds(rows, metric) for metric in (*METRICS, "calibration")]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(row['seconds'] for row in rows) / len(rows):.0f} |")
    _plot({name: [run[name] for run in runs] for name in names})
    differences = []
    for other in ("words", "characters"):
        for metric in ("accuracy", "balanced_accuracy"):
            rows = [{metric: run["gpt-spam"][metric] - run[other][metric]} for run in runs]
            differences.append(f"{metric.replace('_', ' ')} {_over_seeds(rows, metric)} points over {other}")
    return (
        f"Means of {len(runs)} seeds with their 95 % t-interval. Sides of seed {FINAL_SEEDS[0]}: {sizes}.\n\n"
        + "\n".join(lines) + "\n\nDifference on the same seeds: " + "; ".join(differences) + ".\n"
    )


def steps_part(data: Path, workers: int) -> str:
    """Train each variant on each seed; return the section of the page."""
    todo = [(variant, seed) for variant in variants() for seed in STEP_SEEDS]
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(train_variant, *zip(*todo, strict=True), [data] * len(todo)))
    lines = ["| | accuracy % | balanced accuracy % | F1 of spam % | ROC area % | calibration error % | s a seed |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for start in range(0, len(todo), len(STEP_SEEDS)):
        rows = found[start : start + len(STEP_SEEDS)]
        means = [f"{100 * sum(row[name] for row in rows) / len(rows):.2f}" for name in (*METRICS, "calibration")]
        seconds = sum(row["seconds"] for row in rows) / len(rows)
        lines.append(f"| {todo[start][0].name} | {' | '.join(means)} | {seconds:.0f} |")
    return f"Means of {len(STEP_SEEDS)} seeds, others than above.\n\n" + "\n".join(lines) + "\n"


def _plot(rows: dict[str, list[dict[str, float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("accuracy", "balanced_accuracy"), strict=True):
        for place, (name, runs) in enumerate(reversed(rows.items())):
            values = [100 * run[metric] for run in runs]
            colour = "tab:blue" if name == "gpt-spam" else "tab:grey"
            axes.plot(values, [place] * len(values), "o", alpha=0.5, color=colour)
            axes.plot(sum(values) / len(values), place, "|", markersize=22, color="black")
        axes.set_yticks(range(len(rows)), list(reversed(rows)) if metric == "accuracy" else [])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(f"{metric.replace('_', ' ')}, %")
        axes.grid(alpha=0.3)
    figure.suptitle("a point for each seed, a bar for the mean", fontsize="medium")
    figure.savefig(RESULTS.with_suffix(".png"), dpi=150)


def main() -> int:
    """Run the parts asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", choices=("final", "steps"))
    parser.add_argument("--workers", type=int, default=1, help="processes at a time, of one core each")
    options = parser.parse_args()
    parts: dict[str, Callable[[Path, int], str]] = {"final": final_part, "steps": steps_part}
    sections = RESULTS.with_suffix(".json")
    known = json.loads(sections.read_text(encoding="utf-8")) if sections.exists() else {}
    for name in [options.only] if options.only else parts:
        known[name] = parts[name](options.data, options.workers)
        sections.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    page = ["# A spam classifier from scratch, and scikit-learn on the same texts", "", (__doc__ or "").strip(), ""]
    for name, title in (("final", "The command"), ("steps", "What each ingredient gives")):
        if name in known:
            page += [f"## {title}", "", known[name]]
        if name == "final":
            page += ["![accuracy of each seed](spam.png)", ""]
    RESULTS.with_suffix(".md").write_text("\n".join(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
