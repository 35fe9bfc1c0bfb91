"""A text classifier: a GPT with a class head, its tokenizer, its labels, and the rule by which texts become tokens.

The class is read at a text's own last token. Attention looks back only, so what stands after it, padding or nothing,
changes nothing; nor do the other texts of a batch.

Shapes: B texts, T tokens of the longest, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt_core import GPTModel, GPTModelFast, load_checkpoint, model_from_tensors
from gpt_finetune.encode import SupportsEncode, encode_text, fold
from gpt_finetune.labelled import Template
from gpt_finetune.lora import refuse_lora
from gpt_finetune.padding import padded_batches
from gpt_finetune.saving import SupportsSave, save_finetuned
from gpt_train import DataError


class SupportsClassifier(SupportsEncode, SupportsSave, Protocol):
    """What a classifier needs of its tokenizer: to encode, and to be saved beside the model."""


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one text."""

    label: str
    """The likeliest class."""
    probabilities: dict[str, float]
    """Of each class, in the order of the labels; they add up to 1."""
    n_tokens: int
    """Tokens that were read."""
    is_truncated: bool
    """Whether the text was longer than that, so that its end was not read."""


class Classifier:
    """A model that tells classes of texts apart, with what it takes to do so.

    ``model`` has a head for as many classes as there are ``labels``; ``template`` says how a text is made from the
    columns of a file; of a longer text the first ``max_length`` tokens are read (None: the model's context length).
    With ``folded`` a text is read without case and with every digit as 0 (``fold``): from few texts a model learns
    more so.

    Raises ValueError if labels and head do not agree, if a label is no text or there twice, or if ``max_length`` lies
    outside 1..context length.
    """

    def __init__(
        self,
        model: GPTModel,
        tokenizer: SupportsClassifier,
        *,
        labels: Sequence[str],
        template: str = "{text}",
        max_length: int | None = None,
        folded: bool = False,
    ) -> None:
        n_classes, context_length = model.config.n_classes, model.config.context_length
        is_list = isinstance(labels, list | tuple)  # not a set, whose order changes from one process to the next
        if not is_list or not all(isinstance(label, str) and label and label.isprintable() for label in labels):
            raise ValueError(f"labels must be a list of printable names, one for each class, got {labels!r}")
        if n_classes != len(labels) or len(set(labels)) != len(labels):
            head = f"tells {n_classes} classes apart" if n_classes else "predicts tokens"
            raise ValueError(
                f"the model's head {head}, got {len(labels)} labels ({', '.join(labels)}); give a different one for "
                f"each class, and make the model with with_class_head(model, n_classes={max(2, len(labels))})"
            )
        max_length = context_length if max_length is None else max_length
        if isinstance(max_length, bool) or not isinstance(max_length, int) or not 1 <= max_length <= context_length:
            raise ValueError(f"max_length must be a whole number from 1 to {context_length}, got {max_length!r}")
        self.model, self.tokenizer, self.labels, self.max_length = model, tokenizer, tuple(labels), max_length
        if not isinstance(folded, bool):
            raise ValueError(f"folded must be True or False, got {folded!r}")
        self.template, self.folded = Template(template), folded

    def encode(self, text: str) -> tuple[list[int], bool]:
        """Return the ids of a text, at most ``max_length``, and whether there were more.

        What looks like a special token is ordinary text. Raises ValueError if the text has no token: it is empty.
        """
        ids = self._ids(text, self.tokenizer)
        return ids[: self.max_length], len(ids) > self.max_length

    def encode_all(self, texts: Sequence[str], tokenizer: SupportsEncode | None = None) -> list[list[int]]:
        """Return the ids of each text, at most ``max_length``, by another ``tokenizer`` if one is given.

        Raises ValueError if a text is empty.
        """
        return [self._ids(text, tokenizer or self.tokenizer)[: self.max_length] for text in texts]

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> Tensor:
        """Return the logits (N, C) of N texts, float32 on the CPU; the model is in eval mode afterwards.

        Raises ValueError if a text is empty, FloatingPointError if a logit is not finite.
        """
        return self._logits(self.encode_all(texts))

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """Return the class of each text and the probabilities of all.

        The model is in eval mode afterwards. Raises ValueError naming the first text that is empty, FloatingPointError
        if a logit is not finite.
        """
        if isinstance(texts, str):
            raise ValueError("texts must be a list of texts, got one text; pass [text]")
        encoded = []
        for number, text in enumerate(texts):
            if not text:
                raise ValueError(f"text {number} is empty, so there is no token to read a class at; leave it out")
            encoded.append(self.encode(text))
        with torch.no_grad():
            probabilities = self._logits([ids for ids, _ in encoded]).double().softmax(dim=-1).tolist()
        return [
            Prediction(
                label=self.labels[max(range(len(row)), key=row.__getitem__)],
                probabilities=dict(zip(self.labels, row, strict=True)),
                n_tokens=len(ids),
                is_truncated=is_truncated,
            )
            for row, (ids, is_truncated) in zip(probabilities, encoded, strict=True)
        ]

    def save(
        self,
        folder: Path | str,
        *,
        provenance: Mapping[str, Any] | None = None,
        extra: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write a checkpoint directory that knows its labels, template and tokenizer; return ``folder``.

        ``provenance`` is what else there is to tell, ``extra`` as in ``gpt_core.save_checkpoint``, whose errors it
        raises: whole or not at all. LoRA is saved merged into the weights, and goes on unmerged.
        """
        known = {
            "labels": list(self.labels), "template": self.template.text, "max_length": self.max_length,
            "folded": self.folded,
        }
        return save_finetuned(
            folder, self.model, tokenizer=self.tokenizer, known=known, provenance=provenance, extra=extra
        )

    def _ids(self, text: str, tokenizer: SupportsEncode) -> list[int]:
        ids = encode_text(tokenizer, fold(text) if self.folded else text)
        if not ids:
            raise ValueError("the text is empty, so there is no token to read a class at; leave it out")
        return ids

    def _logits(self, sequences: Sequence[list[int]]) -> Tensor:
        self.model.eval()
        logits = torch.empty(len(sequences), len(self.labels))
        for numbers, inputs, lengths in padded_batches(sequences, self.model.device):
            logits[numbers] = class_logits(self.model, inputs, lengths).float().cpu()
        if not logits.isfinite().all():
            raise FloatingPointError("a logit is not finite: the model's weights are damaged; load or train them anew")
        return logits


def load_classifier(
    folder: Path | str,
    *,
    read_tokenizer: Callable[[str], SupportsClassifier],
    device: torch.device | str = "cpu",
) -> Classifier:
    """Return the classifier that ``Classifier.save`` wrote, or one with labels from elsewhere.

    ``read_tokenizer`` opens the checkpoint's tokenizer.json by its path: gpt_tokenizer's ``get_tokenizer`` does.
    Raises DataError if the checkpoint is none of a classifier (no class head, no labels, no tokenizer), CheckpointError
    if it is damaged.
    """
    checkpoint = load_checkpoint(folder, device=device)
    where, known = checkpoint.folder, checkpoint.provenance
    if checkpoint.config.n_classes is None:
        raise DataError(f"{where} holds a model that predicts tokens, no classifier; train one from it first")
    if checkpoint.tokenizer_file is None:
        raise DataError(f"{where} holds no tokenizer.json, so no text can be read; save it with its tokenizer")
    labels = known.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DataError(
            f"{where} names no labels for its {checkpoint.config.n_classes} classes; load it with "
            f"gpt_core.load_checkpoint and make a Classifier with labels=[...]"
        )
    try:
        tokenizer = read_tokenizer(str(checkpoint.tokenizer_file))
        return Classifier(
            checkpoint.model, tokenizer, labels=labels, template=known.get("template", "{text}"),
            max_length=known.get("max_length"), folded=known.get("folded", False),
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} cannot be used as a classifier: {error}") from error


def class_logits(model: GPTModel, inputs: Tensor, lengths: Tensor) -> Tensor:
    """Return the logits (B, C) at the last of each text's own ``lengths`` (B,) tokens of ``inputs`` (B, T).

    What stands in ``inputs`` after a text's tokens is padding, any id of the vocabulary; columns that are nothing else
    are not even computed. The model may be any that ``GPTModel`` describes, LoRA in it or not. Raises ValueError for a
    length outside 1..T.
    """
    if lengths.shape != (len(inputs),):
        raise ValueError(f"lengths must have shape ({len(inputs)},), one a text, got {tuple(lengths.shape)}")
    shortest, longest = (int(lengths.min()), int(lengths.max())) if len(lengths) else (1, 0)
    if shortest < 1 or longest > inputs.shape[1]:
        raise ValueError(f"lengths must lie between 1 and {inputs.shape[1]}, got {shortest} to {longest}")
    return model.out_head(model.features(inputs[:, :longest], rows=lengths - 1))


def with_class_head(
    model: GPTModel, n_classes: int, *, seed: int, drop_rate: float | None = None
) -> GPTModel:
    """Return a new model with the parameters of ``model`` (the same memory, not copies) and a head for ``n_classes``.

    The head is chapter 6's, a Linear with a bias, drawn as torch draws it but from ``seed`` alone. ``drop_rate`` is
    the new model's dropout (None: as it was). Raises ValueError as ``GPTConfig`` does, and for
    a ``GPTModelFast``, whose parameters have other names, or a model with LoRA in it.
    """
    if isinstance(model, GPTModelFast):
        raise ValueError("GPTModelFast cannot be saved or given another head; load its weights into a GPTModel")
    refuse_lora(model)
    drop_rate = model.config.drop_rate if drop_rate is None else drop_rate
    config = dataclasses.replace(model.config, n_classes=n_classes, tie_weights=False, drop_rate=drop_rate)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("out_head.")}
    generator = torch.Generator().manual_seed(seed)
    bound = config.emb_dim**-0.5  # torch.nn.Linear's: U(-1 / sqrt(D), 1 / sqrt(D)) for weight and bias
    dtype, device = model.tok_emb.weight.dtype, model.device
    for name, shape in (("weight", (n_classes, config.emb_dim)), ("bias", (n_classes,))):
        drawn = torch.rand(shape, generator=generator) * 2 * bound - bound
        tensors[f"out_head.{name}"] = drawn.to(device=device, dtype=dtype)
    return model_from_tensors(config, tensors)
