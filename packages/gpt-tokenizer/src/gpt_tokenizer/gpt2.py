"""GPT-2's own tokenizer, and tokenizers by name."""

from __future__ import annotations

import difflib
import hashlib
import os
from functools import cache
from pathlib import Path

from tiktoken.load import read_file_cached

from gpt_tokenizer.bpe import BPETokenizer
from gpt_tokenizer.files import Vocabulary, read_openai

# Where tiktoken's "gpt2" comes from, and what it must be; tiktoken caches both files under these addresses.
_ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
_VOCAB_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


class GPT2Tokenizer(BPETokenizer):
    """GPT-2's 50,257 tokens, with the ids of ``tiktoken.get_encoding("gpt2")``; ``<|endoftext|>`` is 50256.

    Its two files come from tiktoken's cache (``TIKTOKEN_CACHE_DIR``), or once from OpenAI (1.5 MB). Raises
    ConnectionError if neither can be had, or if what comes is something else.
    """

    def __init__(self) -> None:
        super().__init__(_gpt2_vocabulary())

    def __reduce__(self) -> tuple[type[GPT2Tokenizer], tuple[()]]:  # type: ignore[override]
        return GPT2Tokenizer, ()


def get_tokenizer(name_or_path: str | os.PathLike[str]) -> BPETokenizer:
    """Return the tokenizer ``"gpt2"``, or the one in a ``tokenizer.json`` or in a folder that holds one.

    Raises ValueError for anything else.
    """
    if name_or_path == "gpt2":
        return GPT2Tokenizer()
    path = Path(name_or_path)
    if path.is_file() or (path / "tokenizer.json").is_file():
        return BPETokenizer.load(path)
    accepted = "'gpt2', a tokenizer.json file, or a folder that holds one"
    if path.is_dir():
        raise ValueError(f"folder {os.fspath(path)!r} holds no tokenizer.json; accepted are {accepted}")
    near = difflib.get_close_matches(str(name_or_path), ["gpt2"])
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"no tokenizer is called {os.fspath(name_or_path)!r}: {hint}accepted are {accepted}")


@cache
def _gpt2_vocabulary() -> Vocabulary:
    return read_openai(_fetch("encoder.json", _ENCODER_SHA256), _fetch("vocab.bpe", _VOCAB_SHA256))


def _fetch(name: str, sha256: str) -> bytes:
    way_out = ("set TIKTOKEN_CACHE_DIR to a folder that holds it, or call "
               "BPETokenizer.from_openai(encoder_json, vocab_bpe)")
    try:
        data = read_file_cached(_ADDRESS + name, sha256)
    except OSError as error:        # requests' exceptions are OSErrors too
        raise ConnectionError(
            "GPT-2's vocabulary is not in tiktoken's cache and could not be downloaded "
            f"({type(error).__name__}); {way_out}") from error
    except ValueError:              # tiktoken's own word for another hash; with its cache off it compares none
        data = b""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ConnectionError(
            f"{_ADDRESS}{name} has another sha256 than GPT-2's, as a network's sign-in page has; {way_out}")
    return data
