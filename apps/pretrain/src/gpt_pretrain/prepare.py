"""Turn a corpus into training data: a tokenizer, shards of token ids for both sides, and a summary.

The corpus is read three times (measure and part, learn the vocabulary, encode), never held in memory. An
end-of-text token stands between documents.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt_pretrain.config import DataConfig
from gpt_pretrain.corpus import embedded_corpus, file_corpus
from gpt_pretrain.data_folder import SUMMARY, TOKENIZER, begin, clear, write_json
from gpt_pretrain.errors import BAD_DATA, NETWORK, USAGE, PretrainError
from gpt_pretrain.split import Split, split_corpus
from gpt_tokenizer import BPETokenizer, get_tokenizer
from gpt_train import write_shards

FORMAT = "gpt-pretrain/data-1"
BATCH_CHARACTERS = 4 << 20
"""Characters encoded at a time: enough to keep the threads busy, little beside the model."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """How much text one side, training or validation, has."""

    documents: int
    characters: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What prepare.json says."""

    source: str
    sha256: str
    val_fraction: float
    split_seed: int
    tokenizer: str
    tokenizer_sha256: str
    n_vocab: int
    train: Side
    val: Side

    @property
    def characters(self) -> int:
        """Characters of both sides."""
        return self.train.characters + self.val.characters


def read_split(config: DataConfig, *, leave_out: Path, say: Callable[[str], None]) -> Split:
    """Read the text that ``config.data`` names (none named: the embedded corpus) once, and part it.

    Files under ``leave_out`` are no data. Raises PretrainError (exit code 3) where there is no text.
    """
    if config.data:
        corpus = file_corpus(config.data, text_field=config.text_field, leave_out=leave_out)
    else:
        corpus = embedded_corpus()
    say(f"reading {corpus.source}")
    split = split_corpus(corpus, val_fraction=config.val_fraction, seed=config.split_seed)
    if sum(split.lengths) == 0:
        raise PretrainError(f"there is no text in {corpus.source}: every document is empty", exit_code=BAD_DATA)
    return split


def prepare(
    split: Split,
    folder: Path,
    *,
    config: DataConfig,
    vocab_size: int | None,
    least_tokens: int = 2,
    say: Callable[[str], None],
) -> Prepared:
    """Write the training data of ``split`` to ``folder`` and return its summary; the caller holds the lock.

    ``vocab_size``: of the vocabulary to be learned, or what a ready-made tokenizer must have.
    ``least_tokens``: what the training text must come to. What an earlier, killed call left is replaced; on any
    fault nothing of this one stays. Raises PretrainError, also where ``folder`` holds anything else.
    """
    if split.n_characters(held_out=True) == 0:
        raise PretrainError(
            f"no document is short enough for val_fraction {config.val_fraction} of the characters; "
            f"raise --val-fraction, or give more documents",
            exit_code=BAD_DATA,
        )
    begin(folder)
    try:
        tokenizer = _tokenizer(split, config=config, vocab_size=vocab_size, least_tokens=least_tokens, say=say)
        tokenizer.save(folder / TOKENIZER)
        sides = {
            name: _write_side(split, folder / name, tokenizer, held_out=name == "val", say=say)
            for name in ("train", "val")
        }
        _check_length(sides["train"].tokens, least_tokens)
        if sides["val"].tokens < 2:
            raise PretrainError(
                "the text is too short: 1 token for validation, but at least 2 are needed; "
                "give more text or a larger --val-fraction",
                exit_code=BAD_DATA,
            )
        prepared = Prepared(
            source=split.corpus.source,
            sha256=split.sha256,
            val_fraction=config.val_fraction,
            split_seed=config.split_seed,
            tokenizer=config.tokenizer,
            tokenizer_sha256=tokenizer.sha256,
            n_vocab=tokenizer.n_vocab,
            **sides,
        )
        write_json(folder / SUMMARY, {"format": FORMAT, **asdict(prepared)})
    except BaseException:
        clear(folder)
        raise
    return prepared


def read_prepared(folder: Path) -> Prepared:
    """Return what ``prepare`` said of a folder; PretrainError (exit code 3) if that cannot be read."""
    try:
        values = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        if (found := values.pop("format")) != FORMAT:
            raise PretrainError(
                f"{folder / SUMMARY} has format {found!r}, not {FORMAT!r}; prepare the text again",
                exit_code=BAD_DATA,
            )
        return Prepared(**{**values, "train": Side(**values["train"]), "val": Side(**values["val"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PretrainError):
            raise
        raise PretrainError(
            f"{folder / SUMMARY} is damaged ({error!r}); prepare the text again", exit_code=BAD_DATA
        ) from None


def ready_tokenizer(name: str) -> BPETokenizer:
    """Return the tokenizer called ``name`` or stored there; it has an end-of-text token.

    Raises PretrainError: exit code 2 if it cannot be used, 4 if it cannot be downloaded.
    """
    try:
        tokenizer = get_tokenizer(name)
        tokenizer.eot_token  # noqa: B018 - raises if there is none
    except ConnectionError as error:
        raise PretrainError(str(error), exit_code=NETWORK) from None
    except (ValueError, OSError) as error:
        raise PretrainError(f"cannot use the tokenizer {name}: {error}", exit_code=USAGE) from None
    return tokenizer


def _tokenizer(
    split: Split, *, config: DataConfig, vocab_size: int | None, least_tokens: int, say: Callable[[str], None]
) -> BPETokenizer:
    if config.tokenizer != "bpe":
        tokenizer = ready_tokenizer(config.tokenizer)
        if vocab_size not in (None, tokenizer.n_vocab):
            raise PretrainError(
                f"{config.tokenizer} has {tokenizer.n_vocab} tokens, but vocab_size is {vocab_size}; "
                f"give --vocab-size {tokenizer.n_vocab}",
                exit_code=USAGE,
            )
        return tokenizer
    if vocab_size is None:
        raise PretrainError("a vocabulary to be learned needs its size: --vocab-size N", exit_code=USAGE)
    n_characters = split.n_characters(held_out=False)
    say(f"learning a vocabulary of {vocab_size:,} tokens from {n_characters:,} characters")
    texts = (text for _, text in split.texts(held_out=False))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the text has too few pairs is an error here, below
            trained = BPETokenizer.train(texts, vocab_size=vocab_size)
    except ValueError as error:
        if isinstance(error, PretrainError):
            raise
        raise PretrainError(f"--vocab-size {vocab_size}: {error}", exit_code=USAGE) from None
    if trained.n_vocab < vocab_size:
        _check_length(sum(map(len, _ids(split.texts(held_out=False), trained))), least_tokens)
        raise PretrainError(
            f"the text is too short for a vocabulary of {vocab_size} tokens: it gives {trained.n_vocab}; "
            f"give more text, or --vocab-size {trained.n_vocab}",
            exit_code=BAD_DATA,
        )
    return trained


def _check_length(n_tokens: int, least_tokens: int) -> None:
    if n_tokens < least_tokens:
        raise PretrainError(
            f"the text is too short: {n_tokens} tokens for training, but at least {least_tokens} are needed; "
            f"give more text or a smaller --context-length",
            exit_code=BAD_DATA,
        )


def _write_side(
    split: Split, folder: Path, tokenizer: BPETokenizer, *, held_out: bool, say: Callable[[str], None]
) -> Side:
    n_characters = split.n_characters(held_out=held_out)
    n_tokens = 0

    def counted() -> Iterator[list[int]]:
        nonlocal n_tokens
        for ids in _ids(split.texts(held_out=held_out), tokenizer):
            n_tokens += len(ids)
            yield ids

    say(f"encoding {n_characters:,} characters for {folder.name}")
    write_shards(folder, counted(), n_vocab=tokenizer.n_vocab, tokenizer_sha256=tokenizer.sha256)
    return Side(documents=split.n_documents(held_out=held_out), characters=n_characters, tokens=n_tokens)


def _ids(texts: Iterator[tuple[int, str]], tokenizer: BPETokenizer) -> Iterator[list[int]]:
    """Yield ids in order, encoded a few million characters at a time on several threads."""
    batch: list[tuple[int, str]] = []
    size, last = 0, None

    def encoded() -> Iterator[list[int]]:
        nonlocal last
        for (document, _), ids in zip(batch, tokenizer.encode_batch([text for _, text in batch]), strict=True):
            if last is not None and document != last:
                yield [tokenizer.eot_token]
            last = document
            yield ids

    for document, text in texts:
        batch.append((document, text))
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield from encoded()
            batch, size = [], 0
    yield from encoded()
