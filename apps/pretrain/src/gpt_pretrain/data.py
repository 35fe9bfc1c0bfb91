"""The training data of a run: ready-made shards, or text that the run prepares for itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pretrain.config import PretrainConfig
from gpt_pretrain.data_folder import SUMMARY, TOKENIZER
from gpt_pretrain.errors import USAGE, PretrainError
from gpt_pretrain.prepare import Prepared, prepare, read_prepared, read_split, ready_tokenizer
from gpt_pretrain.split import Split
from gpt_tokenizer import BPETokenizer
from gpt_train import ShardDataset


@dataclass(frozen=True, kw_only=True)
class Source:
    """The text a run was asked to learn from, looked at but not yet prepared."""

    folder: Path
    """Where the shards are or will be."""
    split: Split | None
    """The text to prepare; None: the shards are there, made by `gpt-pretrain prepare`."""
    identity: dict[str, Any]
    """What two runs must share to have learned from the same tokens."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Tokens to learn from and to be measured by."""

    prepared: Prepared
    tokenizer: BPETokenizer
    train: ShardDataset
    val: ShardDataset


def find_source(config: PretrainConfig, *, run: Path, run_data: Path, say: Callable[[str], None]) -> Source:
    """Look at the text (or shards) named by ``config``: read all of it once, write nothing.

    Raises PretrainError (exit code 3) for text that is missing, empty, or not what it should be.
    """
    named = config.data.data
    if len(named) == 1 and (named[0] / SUMMARY).is_file():
        prepared = read_prepared(named[0])
        identity = {
            "data_sha256": prepared.sha256,
            "tokenizer": prepared.tokenizer,
            "tokenizer_sha256": prepared.tokenizer_sha256,
            "val_fraction": prepared.val_fraction,
            "split_seed": prepared.split_seed,
        }
        return Source(folder=named[0], split=None, identity=identity)
    split = read_split(config.data, leave_out=run, say=say)
    identity = {"data_sha256": split.sha256}
    if config.data.tokenizer != "bpe":  # a vocabulary learned from the same text by the same settings is the same
        identity["tokenizer_sha256"] = ready_tokenizer(config.data.tokenizer).sha256
    return Source(folder=run_data, split=split, identity=identity)


def open_data(source: Source, config: PretrainConfig, *, say: Callable[[str], None]) -> TrainingData:
    """Prepare the text unless that is done, open the shards and check that all fits together.

    The caller holds the run's lock. Raises PretrainError or gpt_train.DataError, naming what does not fit.
    """
    prepared = _prepared(source, config, say=say)
    if prepared.n_vocab != config.model.vocab_size:
        raise PretrainError(
            f"the tokenizer has {prepared.n_vocab} tokens, but vocab_size is {config.model.vocab_size}; "
            f"give --vocab-size {prepared.n_vocab}",
            exit_code=USAGE,
        )
    tokenizer = ready_tokenizer(str(source.folder / TOKENIZER))
    train, val = (
        ShardDataset(source.folder / side, n_vocab=prepared.n_vocab, tokenizer_sha256=tokenizer.sha256)
        for side in ("train", "val")
    )
    for shards in (train, val):
        shards.verify()
    train.n_windows(config.model.context_length)  # a DataError if there are too few tokens for one
    return TrainingData(prepared=prepared, tokenizer=tokenizer, train=train, val=val)


def _prepared(source: Source, config: PretrainConfig, *, say: Callable[[str], None]) -> Prepared:
    if source.split is not None and not _is_prepared(source, config):
        return prepare(
            source.split,
            source.folder,
            config=config.data,
            vocab_size=config.model.vocab_size,
            least_tokens=config.model.context_length + 1,
            say=say,
        )
    return read_prepared(source.folder)


def _is_prepared(source: Source, config: PretrainConfig) -> bool:
    """Return whether the run's own shards are there and made of this very text in this very way."""
    if not (source.folder / SUMMARY).exists():
        return False
    there, asked = read_prepared(source.folder), config.data
    return (
        (there.sha256, there.tokenizer, there.val_fraction, there.split_seed, there.n_vocab)
        == (
            source.identity["data_sha256"],
            asked.tokenizer,
            asked.val_fraction,
            asked.split_seed,
            config.model.vocab_size,
        )
    ) and source.identity.get("tokenizer_sha256", there.tokenizer_sha256) == there.tokenizer_sha256
