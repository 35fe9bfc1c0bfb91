"""`gpt-spam train`: from labelled texts to a classifier that was judged on texts it has not seen."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gpt_finetune import (
    Classifier,
    ClassifierConfig,
    ClassifierReport,
    LabelledTexts,
    LoRAConfig,
    Split,
    add_lora,
    require_classes,
    save_adapter,
    split_labelled,
    train_classifier,
    train_only_last_blocks,
    with_class_head,
)
from gpt_spam.base_model import BaseModel, BPEDropout, SmallModel, open_base_model, pretrain_small_model
from gpt_spam.device import Device, resolve_device
from gpt_spam.judging import judge
from gpt_spam.messages import find_messages
from gpt_spam.report import write_report
from gpt_spam.run_folder import ADAPTER, METRICS, MODEL, SIDES, TEST, begin_run, write_lines, write_side
from gpt_spam.terminal import Progress, command_line, say
from gpt_train import keep_freed_memory

Tune = Literal["last-block", "lora", "all"]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a classifier on labelled texts, and judge it on texts that were held out.

    Without --data it is the SMS Spam Collection, fetched once; without --model a small model is pretrained on the
    training texts first.
    """

    data: Path | None = None
    """Labelled texts: .csv, .tsv (no quotes) or .jsonl."""

    template: str = "{text}"
    """How a text is made of a row's columns, such as "Subject: {subject}\\n\\n{body}"."""

    label: str = "label"
    """Column of the labels."""

    columns: tuple[str, ...] = ()
    """Names of the columns, for a .csv or .tsv without a first row of names."""

    max_bad: int = 0
    """Rows that may be bad: they are left out and reported; one more is an error."""

    validation: float = 0.1
    """Share of the texts that choose the best epoch."""

    test: float = 0.2
    """Share of the texts that are held out, to judge by."""

    model: str | None = None
    """Model to begin with: a checkpoint directory, anything gpt-weights opens, or 124M, 355M, ... to be fetched."""

    tune: Tune | None = None
    """What is trained besides the head: last-block (default with --model), lora, or all (default without)."""

    out: Path = Path("runs/spam")
    """The run's folder; it must be new."""

    epochs: int | None = None
    """Passes over the training texts."""

    batch_size: int | None = None
    """Texts in a batch."""

    lr: float | None = None
    """Peak learning rate."""

    class_weights: Literal["balanced", "none"] = "balanced"
    """balanced: each class weighs the same in sum, however rare it is."""

    patience: int = 0
    """Stop after so many epochs without a lower validation loss; 0: go through all epochs."""

    lora_rank: int = 16
    """Rank of LoRA's matrices, with --tune lora."""

    max_length: int | None = None
    """Tokens of a text that are read, from its start; by default the model's context length."""

    seed: int = 123
    """Seed of the split, the new weights, dropout and the order of the texts."""

    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""


def run(settings: Train) -> int:
    """Train, judge, report, and return the exit code."""
    device = resolve_device(settings.device)
    keep_freed_memory()
    texts = find_messages(
        settings.data, template=settings.template, label=settings.label, columns=settings.columns,
        max_bad=settings.max_bad,
    )
    labels = require_classes(texts)
    split = split_labelled(texts, validation=settings.validation, test=settings.test, seed=settings.seed)
    _say_split(split)
    with _new_run(settings.out) as folder:
        for side, part in zip(SIDES, (split.train, split.validation, split.test), strict=True):
            write_side(folder, side, part)
        base = _base_model(settings, split.train, device)
        tune: Tune = settings.tune or ("all" if base.is_small else "last-block")
        classifier = _new_classifier(settings, base, labels, tune)
        config = _config(settings, base, tune)
        n_trained = sum(parameter.numel() for parameter in classifier.model.parameters() if parameter.requires_grad)
        say(f"training {n_trained:,} of {classifier.model.n_parameters:,} parameters ({tune}) on {device}")
        about = {
            "made_by": "gpt-spam", "source": texts.source, "model": base.about, "tune": tune,
            "training": {**asdict(config), "bpe_dropout": BPE_DROPOUT if base.is_small else 0.0},
        }
        epochs = _train(classifier, base, split, config, folder, about)
        if tune == "lora":
            save_adapter(folder / ADAPTER, classifier.model)
        judgement = judge(classifier, split.test, folder=folder / TEST)
        write_report(folder, classifier, split, texts, epochs, judgement, about)
        print(judgement.report.to_markdown(), end="")
    say(f"the run is in {folder}: report in README.md, classifier in {MODEL}; use it:")
    say(f"  {command_line('classify', str(folder), 'WINNER!! Claim your free prize now')}")
    say(f"  {command_line('serve', str(folder))}")
    return 0


def _train(
    classifier: Classifier,
    base: BaseModel,
    split: Split,
    config: ClassifierConfig,
    folder: Path,
    about: dict[str, Any],
) -> list[ClassifierReport]:
    """Train, save each better classifier at once, and return the reports of the epochs' ends."""
    epochs: list[ClassifierReport] = []
    rate = about["training"]["bpe_dropout"]

    def epoch_tokenizer(epoch: int) -> BPEDropout:
        return BPEDropout(base.tokenizer, rate=rate, seed=f"{config.seed}/{epoch}")

    steps = train_classifier(
        classifier, split.train, validation=split.validation, config=config,
        epoch_tokenizer=epoch_tokenizer if rate else None,
    )
    n_steps = -(-len(split.train) // config.batch_size) * config.epochs
    with Progress("training", n_steps) as progress:
        for report in steps:
            progress.update(report.step, report.loss)
            if report.validation is None or report.training is None:
                continue
            epochs.append(report)
            progress.say(
                f"epoch {report.epoch}: validation loss {report.validation.loss:.4f}, accuracy "
                f"{report.validation.accuracy:.4f}, balanced {report.validation.balanced_accuracy:.4f}"
                f"{' (best so far)' if report.is_best else ''}"
            )
            write_lines(folder / METRICS, (_line(one) for one in epochs))
            if report.is_best or not config.keep_best:
                classifier.save(folder / MODEL, provenance={**about, "epoch": report.epoch})
    return epochs


def _line(report: ClassifierReport) -> dict[str, object]:
    line: dict[str, object] = {"epoch": report.epoch, "step": report.step}
    for side in ("training", "validation"):
        scores = getattr(report, side)
        line |= {f"{side}/{item.name}": getattr(scores, item.name) for item in fields(scores)}
    return line


@contextlib.contextmanager
def _new_run(folder: Path) -> Iterator[Path]:
    """Make the run's folder; where nothing worth keeping came of it, remove what was written."""
    begin_run(folder)
    try:
        yield folder
    except BaseException:
        if (folder / MODEL).is_dir():
            say(f"the best classifier until then is kept in {folder / MODEL}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _base_model(settings: Train, texts: LabelledTexts, device: str) -> BaseModel:
    if settings.model is not None:
        return open_base_model(settings.model, device=device)
    return pretrain_small_model(texts.texts, settings=SMALL_MODEL, seed=settings.seed, device=device)


def _new_classifier(settings: Train, base: BaseModel, labels: list[str], tune: Tune) -> Classifier:
    model = with_class_head(base.model, len(labels), seed=settings.seed)
    torch.manual_seed(settings.seed)
    if tune == "last-block":
        train_only_last_blocks(model, 1)
    elif tune == "lora":
        add_lora(model, LoRAConfig(rank=settings.lora_rank, alpha=settings.lora_rank))
        model.out_head.requires_grad_(True)
    else:
        model.requires_grad_(True)
    return Classifier(
        model, base.tokenizer, labels=labels, template=settings.template, max_length=settings.max_length,
        folded=base.is_small and SMALL_MODEL.folded,
    )


SMALL_MODEL = SmallModel()
SMALL = ClassifierConfig(epochs=8, batch_size=32, lr=3e-3, every_token=0.5, keep_best=False)
"""How the small model is finetuned: to the end, as some hundred validation texts choose badly among epochs."""
BPE_DROPOUT = 0.2
"""Merges left out when the small model reads a training text."""
LARGE = {"last-block": ClassifierConfig(), "lora": ClassifierConfig(lr=8e-4), "all": ClassifierConfig()}
"""How a given model is finetuned: chapter 6's and appendix E's settings."""


def _config(settings: Train, base: BaseModel, tune: Tune) -> ClassifierConfig:
    preset = SMALL if base.is_small else LARGE[tune]
    given = {name: getattr(settings, name) for name in ("epochs", "batch_size", "lr")}
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(
        preset, class_weights=settings.class_weights, patience=settings.patience, seed=settings.seed, **changes
    )


def _say_split(split: Split) -> None:
    sizes = ", ".join(
        f"{side} {len(part):,}" for side, part in zip(SIDES, (split.train, split.validation, split.test), strict=True)
    )
    say(
        f"{sizes}; {split.n_duplicates:,} texts equal or nearly equal another: {split.n_moved:,} were moved, so that "
        f"they stand on one side"
    )
