"""The model that a classifier is made from: one that is there, GPT-2 from the hub, or a small one pretrained here.

The small one learns a vocabulary and the language from the training texts alone: it has seen nothing that is held out.
"""

from __future__ import annotations

import math
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gpt_core import GPTConfig, GPTModel, initialize_gpt2
from gpt_finetune import fold
from gpt_spam.errors import BAD_DATA, USAGE, SpamError
from gpt_spam.terminal import Progress, say
from gpt_tokenizer import BPETokenizer, get_tokenizer
from gpt_train import TrainConfig, train
from gpt_weights import TokenizerFile, WeightsError, fetch_from_hub, inspect, open_weights

Positions = Literal["learned", "rotary"]


@dataclass(frozen=True)
class BaseModel:
    """A model that predicts the next token, and its tokenizer."""

    model: GPTModel
    tokenizer: BPETokenizer
    about: str
    """Where it comes from, in a few words."""
    is_small: bool
    """Whether it was pretrained here, on the training texts."""


@dataclass(frozen=True, kw_only=True)
class SmallModel:
    """The model that is pretrained on the training texts where no other is given."""

    vocab_size: int = 1000
    """Tokens that are learned from the texts, if they have pairs for so many."""
    context_length: int = 256
    """Most tokens of a text that are read."""
    emb_dim: int = 64
    """Width of the model."""
    n_heads: int = 4
    """Attention heads of a block."""
    n_layers: int = 2
    """Blocks."""
    drop_rate: float = 0.1
    """Dropout, in pretraining and finetuning."""
    positions: Positions = "learned"
    """How a token's place is told, as in GPTConfig."""
    folded: bool = True
    """Whether texts are read without case and with every digit as 0."""
    epochs: int = 5
    """Passes of pretraining; 0: none."""
    batch_tokens: int = 2048
    """Tokens in a batch of pretraining."""
    lr: float = 2e-3
    """Peak learning rate of pretraining."""


def open_base_model(model: str, *, device: str) -> BaseModel:
    """Return the model at the path ``model``, or the GPT-2 of that name, fetched where it is not there yet.

    Known are all formats of gpt-weights. Raises SpamError for a name that is neither (exit code 2) and a model
    without a tokenizer (3); WeightsError, CheckpointError and ConnectionError as gpt-weights does.
    """
    path = Path(model)
    if not path.exists():
        try:
            path = fetch_from_hub(model)
        except WeightsError:
            raise
        except ValueError as error:
            raise SpamError(
                f"--model {model}: there is no such folder or file, and {error}; give a checkpoint directory, such as "
                f"gpt-pretrain's runs/quick, or 124M", exit_code=USAGE,
            ) from None
    weights = open_weights(path)
    if weights.config.n_classes is not None:
        raise SpamError(
            f"--model {model} is a classifier already; give the model it was made from, which predicts tokens",
            exit_code=USAGE,
        )
    tokenizer = _tokenizer(weights.tokenizer, weights.config.vocab_size, model)
    opened = weights.model(dtype=torch.float32)  # whatever the file holds: AdamW's small steps are lost in 16 bits
    return BaseModel(opened.to(device), tokenizer, f"{model} ({inspect(weights).format})", is_small=False)


def pretrain_small_model(texts: Sequence[str], *, settings: SmallModel, seed: int, device: str) -> BaseModel:
    """Return a small model that has learned vocabulary and language from ``texts``, those to train on.

    A pass over the texts takes them in a new order, joined by end-of-text tokens and cut into windows; texts that fill
    no window are not pretrained on, which it says. Raises SpamError (exit code 3) if there is no text.
    """
    texts = [fold(text) for text in texts] if settings.folded else texts
    tokenizer = _learned(texts, settings.vocab_size)
    torch.manual_seed(seed)
    model = GPTModel(
        GPTConfig(
            vocab_size=tokenizer.n_vocab, context_length=settings.context_length, emb_dim=settings.emb_dim,
            n_heads=settings.n_heads, n_layers=settings.n_layers, drop_rate=settings.drop_rate,
            positions=settings.positions, tie_weights=True,
        )
    )
    initialize_gpt2(model, seed=seed)
    model.to(device)
    say(f"pretraining {model.n_parameters:,} parameters on {len(texts):,} training texts, {tokenizer.n_vocab:,} tokens")
    ids = [tokenizer.encode(text) for text in texts]
    windows = _Windows(ids, tokenizer.eot_token, length=min(settings.context_length, 128), seed=seed,
                       batch_size=max(1, settings.batch_tokens // 128))
    n_steps = windows.n_batches * settings.epochs
    if n_steps:
        config = TrainConfig(max_steps=n_steps, lr=settings.lr, min_lr=settings.lr / 10, warmup_steps=n_steps // 20,
                             precision="float32")
        with Progress("pretraining", n_steps) as progress:
            for report in train(model, windows.epochs(settings.epochs), config=config):
                progress.update(report.step, report.loss)
    elif settings.epochs:
        say("too little text to pretrain on: the classifier begins from random weights")
    return BaseModel(model, tokenizer, f"a small model pretrained on the {len(texts):,} training texts", is_small=True)


class _Windows:
    """Windows of ``length`` inputs over the texts, joined in a new order for each epoch."""

    def __init__(
        self, ids: Sequence[Sequence[int]], end: int, *, length: int, batch_size: int, seed: int
    ) -> None:
        self._ids, self._end, self._length, self._batch_size, self._seed = ids, end, length, batch_size, seed
        n_tokens = sum(len(one) + 1 for one in ids) + 1
        self.n_batches = math.ceil((n_tokens - 1) // length / batch_size)

    def epochs(self, n_epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in range(n_epochs):
            draw = random.Random(f"{self._seed}/{epoch}")
            order = list(self._ids)
            draw.shuffle(order)
            joined = torch.tensor([self._end, *(i for one in order for i in (*one, self._end))])
            windows = joined.unfold(0, self._length + 1, self._length)                   # (N, length + 1)
            windows = windows[draw.sample(range(len(windows)), len(windows))]
            for start in range(0, len(windows), self._batch_size):
                batch = windows[start : start + self._batch_size]
                yield batch[:, :-1], batch[:, 1:]


class BPEDropout:
    """A tokenizer whose tokens of a text are others each time (Provilkov et al. 2020): for training only."""

    def __init__(self, tokenizer: BPETokenizer, *, rate: float, seed: str) -> None:
        self._tokenizer, self._rate, self._draw = tokenizer, rate, random.Random(seed)

    def encode(self, text: str, /) -> list[int]:
        """Return ids of ``text``, each merge left out with the rate's probability."""
        return self._tokenizer.encode_with_dropout(text, rate=self._rate, draw=self._draw)


def _learned(texts: Sequence[str], vocab_size: int) -> BPETokenizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are fewer pairs than asked for: the vocabulary is then smaller
        try:
            return BPETokenizer.train(texts, vocab_size=vocab_size)
        except ValueError as error:
            raise SpamError(f"the training texts give no vocabulary: {error}", exit_code=BAD_DATA) from None


def _tokenizer(file: TokenizerFile | None, vocab_size: int, model: str) -> BPETokenizer:
    if file is None:
        if vocab_size != 50257:
            raise SpamError(
                f"{model} has no tokenizer beside it, and its {vocab_size} ids are not GPT-2's; give a folder with the "
                f"model and its tokenizer.json", exit_code=BAD_DATA,
            )
        return get_tokenizer("gpt2")
    file.check_fits(vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        file.save(path)
        return get_tokenizer(str(path))
