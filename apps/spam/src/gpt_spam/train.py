"""`gpt-spam train`: from labelled texts to a classifier that was judged on texts it has not seen."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from gpt_finetune import (
    Classifier,
    ClassifierConfig,
    ClassifierReport,
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
from gpt_spam.run_folder import ADAPTER, METRICS, MODEL, SIDES, TEST, check_free, write_lines, write_side
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
    """Share of the texts that show how training goes; with --model or --patience they choose the epoch that is kept."""

    test: float = 0.2
    """Share of the texts that are held out, to judge by."""

    model: str | None = None
    """Model to begin with: a checkpoint directory, anything gpt-weights opens, or 124M, 355M, ... to be fetched."""

    tune: Tune | None = None
    """What is trained besides the head: last-block (default with --model), lora, or all (default without)."""

    out: Path = Path("runs/spam")
    """The run's folder; it must be new."""

    epochs: int | None = None
    """Passes over the training texts; by default 8, with --model 5."""

    batch_size: int | None = None
    """Texts in a batch; by default 32, with --model 8."""

    lr: float | None = None
    """Peak learning rate; by default 3e-3, with --model 5e-5, or 8e-4 for lora."""

    class_weights: Literal["balanced", "none"] = "balanced"
    """balanced: each class weighs the same in sum, however rare it is."""

    patience: int = 0
    """Stop after so many epochs without a lower validation loss, and keep the best; 0: go through all epochs."""

    lora_rank: int | None = None
    """Rank of LoRA's matrices, with --tune lora; by default 16."""

    max_length: int | None = None
    """Tokens of a text that are read, from its start; by default the model's context length."""

    seed: int = 123
    """Seed of the split, the new weights, dropout and the order of the texts."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the figures of the held-out texts as one JSON object."""

    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""

    @property
    def way(self) -> Tune:
        """What is trained, if need be by default."""
        return self.tune or ("all" if self.model is None else "last-block")


def run(settings: Train) -> int:
    """Train, judge, report, and return the exit code."""
    config, lora = _checked(settings)
    device = resolve_device(settings.device)
    keep_freed_memory()
    base = None if settings.model is None else open_base_model(settings.model, device=device)
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
        if base is None:
            base = pretrain_small_model(split.train.texts, settings=SMALL_MODEL, seed=settings.seed, device=device)
        classifier = _new_classifier(settings, base, labels, lora)
        n_trained = sum(parameter.numel() for parameter in classifier.model.parameters() if parameter.requires_grad)
        say(f"training {n_trained:,} of {classifier.model.n_parameters:,} parameters ({settings.way}) on {device}")
        about = {
            "made_by": "gpt-spam", "source": texts.source, "model": base.about, "tune": settings.way,
            "training": {**asdict(config), "bpe_dropout": BPE_DROPOUT if base.is_small else 0.0},
        }
        epochs = _train(classifier, base, split, config, folder, about)
        if settings.way == "lora":
            save_adapter(folder / ADAPTER, classifier.model)
        judgement = judge(classifier, split.test, folder=folder / TEST)
        write_report(folder, classifier, split, texts, epochs, judgement, {**about, "settings": _shown(settings, base)})
    print(json.dumps(judgement.to_dict(), ensure_ascii=False) if settings.json else judgement.report.to_markdown())
    say(f"the run is in {folder}: report in README.md, classifier in {MODEL}; use it:")
    say(f"  {command_line('classify', str(folder), 'WINNER!! Claim your free prize now')}")
    say(f"  {command_line('serve', str(folder))}")
    return 0


def _checked(settings: Train) -> tuple[ClassifierConfig, LoRAConfig]:
    """Return how to train; ValueError or SpamError (exit code 2) for a setting that cannot be, before any work."""
    check_free(settings.out)
    for name in ("validation", "test"):
        if not 0 < getattr(settings, name) < 1:
            raise ValueError(f"--{name} must lie between 0 and 1, got {getattr(settings, name)}")
    if settings.validation + settings.test >= 1:
        raise ValueError(
            f"--validation {settings.validation} and --test {settings.test} leave nothing to train on; lower one"
        )
    if settings.lora_rank is not None and settings.way != "lora":
        raise ValueError(f"--lora-rank {settings.lora_rank} needs --tune lora")
    if settings.max_length is not None and settings.max_length < 1:
        raise ValueError(f"--max-length must be at least 1, got {settings.max_length}")
    if settings.model is None and (settings.max_length or 1) > SMALL_MODEL.context_length:
        raise ValueError(
            f"--max-length {settings.max_length} is more than the small model's context of {SMALL_MODEL.context_length}"
        )
    rank = 16 if settings.lora_rank is None else settings.lora_rank
    preset = SMALL if settings.model is None else LARGE[settings.way]
    given = {name: getattr(settings, name) for name in ("epochs", "batch_size", "lr")}
    config = replace(
        preset, class_weights=settings.class_weights, patience=settings.patience, seed=settings.seed,
        keep_best=preset.keep_best or settings.patience > 0,
        **{name: value for name, value in given.items() if value is not None},
    )
    return config, LoRAConfig(rank=rank, alpha=rank)


def _train(
    classifier: Classifier,
    base: BaseModel,
    split: Split,
    config: ClassifierConfig,
    folder: Path,
    about: dict[str, Any],
) -> list[ClassifierReport]:
    """Train, save the classifier to be kept after each epoch, and return the reports of the epochs' ends."""
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
                f"{' (best so far)' if report.is_best and config.keep_best else ''}"
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
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if (folder / MODEL).is_dir():
            say(f"what was trained until then is kept; judge it with: {command_line('evaluate', str(folder))}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _new_classifier(settings: Train, base: BaseModel, labels: list[str], lora: LoRAConfig) -> Classifier:
    model = with_class_head(base.model, len(labels), seed=settings.seed)
    torch.manual_seed(settings.seed)
    if settings.way == "last-block":
        train_only_last_blocks(model, 1)
    elif settings.way == "lora":
        add_lora(model, lora)
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


def _shown(settings: Train, base: BaseModel) -> dict[str, object]:
    """Return the settings for the report: those of the command and, if there is one, of the small model."""
    small = {f"small model: {name}": value for name, value in asdict(SMALL_MODEL).items()} if base.is_small else {}
    return {**{name: value for name, value in asdict(settings).items() if value not in (None, ())}, **small}


def _say_split(split: Split) -> None:
    sizes = ", ".join(
        f"{side} {len(part):,}" for side, part in zip(SIDES, (split.train, split.validation, split.test), strict=True)
    )
    say(
        f"{sizes}; {split.n_duplicates:,} texts equal or nearly equal another: {split.n_moved:,} were moved, so that "
        f"they stand on one side"
    )
