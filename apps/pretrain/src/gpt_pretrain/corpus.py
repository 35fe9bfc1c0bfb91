"""Where the text comes from: the one corpus that every Python carries, or the files a person names.

A corpus is a sequence of documents (a topic, a text file, a line of JSON lines), read again from the start as
often as needed, never held in memory whole.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_pretrain.errors import BAD_DATA, PretrainError
from gpt_pretrain.reading import json_texts, text_pieces

TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
"""What a folder is searched for; a file named by itself may have any suffix."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents as a stream of pieces: ``pieces()`` starts anew, yields (document, text)."""

    source: str
    """Where the text comes from, for people."""
    pieces: Callable[[], Iterator[tuple[int, str]]]
    """Documents count from 0, in order; the pieces of one follow each other."""


def embedded_corpus() -> Corpus:
    """Return the language reference that Python's own help() reads (``pydoc_data.topics``).

    A topic is a document. About a fifth of the text is repeated: "with", for example, is a topic and part of
    "compound". A topic of which more than half stands in longer topics is left out, or the text held out for
    validation would be text trained on.

    Raises PretrainError (exit code 3) where the distribution ships Python without it.
    """
    try:
        from pydoc_data.topics import topics  # 0.7 MB, and some distributions cut it out
    except ImportError:
        raise PretrainError(
            "this Python comes without pydoc_data.topics, the corpus trained on by default; "
            "give text of your own: gpt-pretrain --data FILE",
            exit_code=BAD_DATA,
        ) from None
    texts = [topics[name] for name in without_repeated(topics)]
    return Corpus(
        source="the Python language reference in the standard library (pydoc_data.topics)",
        pieces=lambda: enumerate(texts),
    )


def without_repeated(topics: dict[str, str]) -> list[str]:
    """Return the names, sorted, of the topics that are not for the most part repeated in longer topics."""
    kept: list[str] = []
    seen: set[str] = set()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [" ".join(block.split()) for block in re.split(r"\n\s*\n", topics[name])]
        repeated = sum(len(paragraph) for paragraph in paragraphs if paragraph in seen)
        if 2 * repeated <= sum(map(len, paragraphs)):
            kept.append(name)
        seen.update(paragraphs)
    return sorted(kept)


def file_corpus(paths: Sequence[Path], *, text_field: str = "text", leave_out: Path | None = None) -> Corpus:
    """Return the text of files and folders: a text file is a document, each line of a .jsonl file is one.

    A folder stands for its .txt, .md and .jsonl files at any depth, sorted by path; files under ``leave_out``
    (the run's own folder) are no data. Raises PretrainError (exit code 3) naming what is missing or holds no
    text.
    """
    files = [file for path in paths for file in _text_files(path, leave_out=leave_out)]

    def pieces() -> Iterator[tuple[int, str]]:
        document = 0
        for file in files:
            if file.suffix.lower() == ".jsonl":
                for text in json_texts(file, field=text_field):
                    yield document, text
                    document += 1
            else:
                for text in text_pieces(file):
                    yield document, text
                document += 1

    return Corpus(source=", ".join(path.name or str(path) for path in paths), pieces=pieces)


def _text_files(path: Path, *, leave_out: Path | None) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise PretrainError(
            f"{path} does not exist; --data takes text files, .jsonl files or a folder", exit_code=BAD_DATA
        )
    if not path.is_dir():
        raise PretrainError(f"{path} is neither a file nor a folder", exit_code=BAD_DATA)
    files = [file for file in path.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file()]
    if leave_out is not None:
        files = [file for file in files if not file.resolve().is_relative_to(leave_out.resolve())]
    if not files:
        raise PretrainError(
            f"the folder {path} holds no text: no {', '.join(TEXT_SUFFIXES)} file at any depth; "
            "name other files one by one",
            exit_code=BAD_DATA,
        )
    return sorted(files, key=lambda file: file.relative_to(path).as_posix())
