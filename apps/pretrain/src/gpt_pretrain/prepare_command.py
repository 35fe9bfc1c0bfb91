"""`gpt-pretrain prepare`: text to shards once, for many runs, or text that is larger than memory."""

from dataclasses import dataclass
from pathlib import Path

from gpt_pretrain.config import DataConfig
from gpt_pretrain.data_folder import check_free
from gpt_pretrain.lock import locked
from gpt_pretrain.prepare import prepare, read_split
from gpt_pretrain.progress import say
from gpt_pretrain.signals import StopSignals


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(DataConfig):
    """Turn text into shards that `gpt-pretrain --data OUT` trains on.

    Memory grows with the number of documents, by some hundred bytes for each, not with the length of the text.
    """

    out: Path
    """Folder to write: tokenizer.json, train/, val/, prepare.json."""

    vocab_size: int | None = None
    """Tokens of the vocabulary to learn (tokenizer bpe), end-of-text and 256 bytes included."""


def prepare_command(config: PrepareConfig) -> int:
    """Write the shards, print their folder and return 0; PretrainError leaves nothing half done."""
    out = config.out
    check_free(out)  # before the lock, which would leave its file there
    with StopSignals():
        split = read_split(config, leave_out=out, say=say)
        with locked(out):
            prepared = prepare(split, out, config=config, vocab_size=config.vocab_size, say=say)
    for name, side in (("training", prepared.train), ("validation", prepared.val)):
        say(f"{name}: {side.documents:,} documents, {side.characters:,} characters, {side.tokens:,} tokens")
    print(out)
    return 0
