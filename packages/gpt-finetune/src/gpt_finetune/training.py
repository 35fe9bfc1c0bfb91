"""Training a classifier: a generator of one report a step; at each epoch's end the held-out texts are judged.

    for report in train_classifier(classifier, train_texts, validation=validation_texts, config=config):
        ...
"""

from __future__ import annotations

import dataclasses
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gpt_finetune.class_batches import ClassBatches
from gpt_finetune.class_loss import ClassLoss
from gpt_finetune.classifier import Classifier
from gpt_finetune.config_checks import check_choices, check_counts, check_numbers, check_seed, check_switches
from gpt_finetune.encode import SupportsEncode
from gpt_finetune.kept_weights import KeptWeights
from gpt_finetune.labelled import LabelledTexts
from gpt_finetune.padding import padded_batches
from gpt_finetune.trained_part import TrainedPart
from gpt_train import DataError, TrainConfig, train

_REUSE_BYTES = 4 << 30  # of the table of a frozen trunk: 124M keeps 1.4 million tokens in it


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """How a classifier is trained; what of it, its parameters' ``requires_grad`` says. Checked once, here."""

    epochs: int = 5
    """Passes over the training texts."""
    batch_size: int = 8
    """Texts in a batch, all of about the same length."""
    lr: float = 5e-5
    """Peak learning rate: after a warm-up over a twentieth of the steps it falls as half a cosine to a hundredth."""
    weight_decay: float = 0.1
    """AdamW's decoupled decay of the matrices."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """balanced: each class weighs the same in sum, however rare it is (texts / (classes * texts of it))."""
    lm_weight: float = 0.0
    """Weight of the next-token loss on the same texts, beside the class's (Radford et al. 2018, section 3.2)."""
    every_token: float = 0.0
    """Share of the loss that is the class's at every token of a text, later ones weighing more; 0: at its last only."""
    ema_decay: float = 0.0
    """Decay a step of the exponential moving average of the weights, which is judged and kept; 0: no average."""
    patience: int = 0
    """Stop after so many epochs without a lower validation loss; 0: go through all epochs."""
    keep_best: bool = True
    """Keep the weights of the epoch with the lowest validation loss, not the last ones; needs validation texts."""
    reuse_trunk: bool = True
    """Compute what is frozen once and reuse it in every epoch, where it fits into 4 GiB."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Arithmetic of the products while training, as in gpt_train's TrainConfig."""
    seed: int = 123
    """Seed of the order of the texts and of dropout; below 2**63."""

    def __post_init__(self) -> None:
        check_counts(self, epochs=1, batch_size=1, patience=0)
        check_numbers(self, lr=math.inf, weight_decay=math.inf, lm_weight=math.inf, ema_decay=1, every_token=1)
        check_seed(self.seed)
        check_choices(self, class_weights=("balanced", "none"), precision=("auto", "float32", "bfloat16"))
        check_switches(self, "keep_best", "reuse_trunk")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How well texts were classified."""

    loss: float
    """Mean negative log-probability of the right class, in nats; each text weighs the same."""
    accuracy: float
    """Share of right answers, 0 to 1."""
    balanced_accuracy: float
    """Mean over the classes of the share of their texts that was found."""


@dataclass(frozen=True, kw_only=True)
class ClassifierReport:
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    n_steps: int
    """Steps of the whole run, if it is not stopped early."""
    epoch: int
    """Epoch this step belongs to, from 1."""
    loss: float
    """Mean training loss of the step's texts, weighted as configured, before the update."""
    lr: float
    """Learning rate of the step."""
    seconds: float
    """Duration of the step."""
    validation: Scores | None = None
    """Scores of the validation texts, at the end of an epoch."""
    training: Scores | None = None
    """Scores of as many training texts, at the end of an epoch."""
    is_best: bool = False
    """Whether the validation loss is the lowest so far: what is kept with ``keep_best``."""


def train_classifier(
    classifier: Classifier,
    texts: LabelledTexts,
    *,
    validation: LabelledTexts | None = None,
    config: ClassifierConfig | None = None,
    epoch_tokenizer: Callable[[int], SupportsEncode] | None = None,
) -> Iterator[ClassifierReport]:
    """Train the classifier's model in place, and yield a report after each step.

    ``epoch_tokenizer`` gives the tokenizer of the training texts in an epoch (0-based), such as one with BPE-dropout;
    None: the classifier's own. A frozen trunk is then not reused, as its inputs change.

    Trained is what requires a gradient. While a report with scores is handed out, the model holds the weights that were
    judged and may be saved; once the generator has ended or is closed, it holds those to be kept. A ``for`` loop over
    the call itself closes it at a ``break``; one that you keep in a variable, ``close()`` it. Texts that are longer
    than the classifier reads are trained on up to there, and a warning tells how many they are.

    Raises DataError if there is no text, a label is none of the classifier's or a text is empty; ValueError if nothing
    requires a gradient, or ``patience`` has no validation texts to go by; FloatingPointError if a loss is not finite:
    that step changes nothing, and the model then holds the weights to be kept.
    """
    config = config or ClassifierConfig()
    if not texts:
        raise DataError(f"{texts.source} has no text to train on; give one of each class at least")
    if validation is not None and not validation:
        raise DataError(f"{validation.source} has no text to validate by; give some, or leave validation out")
    if config.patience and validation is None:
        raise ValueError(f"patience={config.patience} goes by validation texts; pass some, or patience=0")
    torch.manual_seed(config.seed)
    part = TrainedPart(classifier.model)
    sequences, classes = encode_labelled(classifier, texts)
    held_out, held_out_classes = encode_labelled(classifier, validation) if validation is not None else ([], [])
    is_fixed = epoch_tokenizer is None and not config.lm_weight
    if config.reuse_trunk and is_fixed and _can_be_reused(part, [*sequences, *held_out]):
        entries = part.reuse([*sequences, *held_out])
        sequences, held_out = entries[: len(sequences)], entries[len(sequences) :]

    def of_epoch(number: int) -> list[list[int]]:
        return sequences if epoch_tokenizer is None else classifier.encode_all(texts.texts, epoch_tokenizer(number))

    batches = ClassBatches(of_epoch, classes, batch_size=config.batch_size, seed=config.seed)
    n_steps = batches.n_steps * config.epochs
    settings = TrainConfig(
        max_steps=n_steps, lr=config.lr, min_lr=config.lr / 100, warmup_steps=n_steps // 20,
        weight_decay=config.weight_decay, precision=config.precision,
    )
    loss = ClassLoss(
        _class_weights(classes, len(classifier.labels), config), every_token=config.every_token,
        lm_weight=config.lm_weight,
    )
    kept = KeptWeights(part, ema_decay=config.ema_decay)
    # As many training texts as held-out ones are judged, drawn: every n-th might be of one class only.
    judged = random.Random(config.seed).sample(range(len(sequences)), min(len(sequences), len(held_out)))
    lowest, n_since = math.inf, 0
    try:
        for step in train(part, batches.epochs(config.epochs), config=settings, loss=loss):
            kept.follow()
            report = ClassifierReport(
                step=step.step, n_steps=n_steps, epoch=-(-step.step // batches.n_steps), loss=step.loss, lr=step.lr,
                seconds=step.seconds,
            )
            if step.step % batches.n_steps or not held_out:
                yield report
                part.train()  # the caller may have classified with the model, which leaves it in eval mode
                continue
            with kept.averaged():
                scores = _judge(part, held_out, held_out_classes)
                is_best = scores.loss < lowest
                lowest, n_since = min(lowest, scores.loss), 0 if is_best else n_since + 1
                if is_best and config.keep_best:
                    kept.keep()
                training = _judge(part, [sequences[i] for i in judged], [classes[i] for i in judged])
                yield dataclasses.replace(report, validation=scores, training=training, is_best=is_best)
            part.train()
            if config.patience and n_since >= config.patience:
                return
    finally:
        kept.restore()
        classifier.model.eval()


def encode_labelled(classifier: Classifier, texts: LabelledTexts) -> tuple[list[list[int]], list[int]]:
    """Return the ids of each text, cut to ``max_length``, and the number of its class.

    Raises DataError naming file and line of a label that the classifier does not know, or of a text without a token.
    """
    numbers = {label: number for number, label in enumerate(classifier.labels)}
    sequences, classes, n_truncated = [], [], 0
    for text, label, line in zip(texts.texts, texts.labels, texts.lines, strict=True):
        if label not in numbers:
            known = ", ".join(classifier.labels)
            raise DataError(f"{texts.source}:{line}: unknown label {label!r}; the classifier knows {known}")
        try:
            ids, is_truncated = classifier.encode(text)
        except ValueError as error:
            raise DataError(f"{texts.source}:{line}: {error}") from None
        sequences.append(ids)
        classes.append(numbers[label])
        n_truncated += is_truncated
    if n_truncated:
        warnings.warn(
            f"{n_truncated:,} of {len(texts):,} texts to learn from or to choose by are longer than "
            f"{classifier.max_length} tokens and read up to there", stacklevel=3,
        )
    return sequences, classes


def _can_be_reused(part: TrainedPart, sequences: Sequence[Sequence[int]]) -> bool:
    if not part.n_frozen:
        return False
    needed = part.table_bytes(sum(map(len, sequences)))
    if needed > _REUSE_BYTES:
        warnings.warn(
            f"the frozen trunk's vectors would take {needed / 2**30:.1f} GiB, more than {_REUSE_BYTES >> 30}: they are "
            "computed anew in each epoch", stacklevel=3,
        )
    return needed <= _REUSE_BYTES


def _class_weights(classes: Sequence[int], n_classes: int, config: ClassifierConfig) -> Tensor | None:
    if config.class_weights == "none":
        return None
    counts = torch.bincount(torch.tensor(classes), minlength=n_classes)
    return len(classes) / (n_classes * counts.clamp(min=1))


@torch.no_grad()
def _judge(part: TrainedPart, sequences: Sequence[Sequence[int]], classes: Sequence[int]) -> Scores:
    """Return the scores of texts, without dropout."""
    was_training = part.training
    part.eval()
    logits = torch.empty(len(sequences), part.model.config.n_outputs)
    for numbers, inputs, lengths in padded_batches(sequences, part.model.device):
        logits[numbers] = part.model.out_head(part(inputs, lengths - 1)).float().cpu()
    part.train(was_training)
    wanted = torch.tensor(classes)
    is_right = (logits.argmax(dim=-1) == wanted).double()
    shares = [is_right[wanted == number].mean() for number in wanted.unique()]
    return Scores(
        loss=cross_entropy(logits, wanted).item(),
        accuracy=is_right.mean().item(),
        balanced_accuracy=torch.stack(shares).mean().item(),
    )
