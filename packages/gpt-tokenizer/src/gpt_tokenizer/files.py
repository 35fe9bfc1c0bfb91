"""A byte-level BPE vocabulary and its files: Hugging Face's ``tokenizer.json``, OpenAI's pair of files.

All write a token's bytes as printable characters, one character a byte: byte 32, the space, is ``Ġ``.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_tokenizer.train import BYTE_ORDER

# GPT-2's alphabet: 188 bytes stand for themselves, the other 68 for U+0100 onwards.
_BYTE_TO_CHAR = {b: chr(b) if i < 188 else chr(256 + i - 188) for i, b in enumerate(BYTE_ORDER)}
_CHAR_TO_BYTE = {c: b for b, c in _BYTE_TO_CHAR.items()}


@dataclass(frozen=True)
class Vocabulary:
    """What tells one byte-level BPE tokenizer from another; checked when it is made (ValueError)."""

    ranks: Mapping[bytes, int]
    """Id of each ordinary token; among tokens of two or more bytes the smaller id is merged first."""
    merges: Sequence[tuple[bytes, bytes]]
    """Pairs of tokens, in the order in which they are merged; a token's pairs stand together."""
    special_tokens: Mapping[str, int]
    """Id of each special token."""

    def __post_init__(self) -> None:
        missing = [b for b in range(256) if bytes([b]) not in self.ranks]
        if missing:
            raise ValueError(
                f"the vocabulary lacks {len(missing)} of the 256 bytes (first: 0x{missing[0]:02X}), so some "
                "texts have no ids; train with every byte (as initial_alphabet=ByteLevel.alphabet() does)")
        owners: dict[int, str] = {}
        for name, i in [*((token_name(t), i) for t, i in self.ranks.items()), *self.special_tokens.items()]:
            if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < 2**31:
                raise ValueError(f"token {name!r} has the id {i!r}; an id is an integer from 0 to 2**31 - 1")
            if owners.setdefault(i, name) != name:
                raise ValueError(f"id {i} belongs to {owners[i]!r} and to {name!r}; each token needs its own")
        for name in self.special_tokens:
            if not name:
                raise ValueError("a special token is empty; give it a name such as '<|endoftext|>'")
            if token_bytes(name) in self.ranks:
                raise ValueError(f"special token {name!r} is an ordinary token too; give it another name")
            if any(0xD800 <= ord(c) < 0xE000 for c in name):
                raise ValueError(f"special token {name!r} holds a lone surrogate; use characters only")
        self._check_merges()

    def _check_merges(self) -> None:
        halves: dict[bytes, tuple[bytes, bytes]] = {}   # of each token, the parts that it is made of at last
        listed: dict[bytes, str] = {}
        last = -1
        for n, (left, right) in enumerate(self.merges, 1):
            token = left + right
            for part in (left, right, token):
                if part not in self.ranks:
                    raise ValueError(
                        f"merge {n} ({_shown(left, right)}) needs {token_name(part)!r}, which has no id")
            if self.ranks[token] < last:
                raise ValueError(
                    f"merge {n} ({_shown(left, right)}) makes id {self.ranks[token]} after id {last}; "
                    "ids must grow in the order of the merges")
            last = self.ranks[token]
            listed[token] = _shown(left, right)
            known = all(len(part) == 1 or part in halves for part in (left, right))
            if known and _border_stays(left, right, self.ranks, halves):
                halves[token] = (left, right)
        unmade = [t for t in self.ranks if len(t) > 1 and t not in halves]
        first = min(unmade, key=self.ranks.__getitem__, default=None)   # later ones may merely lack their parts
        if first in listed:
            raise ValueError(
                f"no merge listed for token {token_name(first)!r} (such as {listed[first]!r}) is reached where any "
                "neighbours that spell a token merge, as here, so texts would not get Hugging Face's ids; "
                "open the file with its tokenizers")
        if first is not None:
            raise ValueError(
                f"no merge makes token {token_name(first)!r}; list it as a special token or remove it")


def _border_stays(left: bytes, right: bytes, ranks: Mapping[bytes, int],
                  halves: Mapping[bytes, tuple[bytes, bytes]]) -> bool:
    """Return whether the bytes of ``left + right`` merge into these two before anything joins across them.

    tiktoken merges any neighbours that spell a token, Hugging Face the listed pairs alone: they agree on every
    text if they do on each token's own bytes. The merges are taken back here, the latest first, and at each
    step the two parts at the border must not spell a token that would have come before it.
    """
    limit = ranks[left + right]
    while ranks.get(left + right, limit) >= limit:
        if len(left) == len(right) == 1:
            return True
        if len(right) == 1 or (len(left) > 1 and ranks[left] > ranks[right]):
            limit, left = ranks[left], halves[left][1]
        else:   # of equal ids the left one is merged first, and one across the border before the right one
            limit, right = ranks[right] + 1, halves[right][0]
    return False


def token_name(token: bytes) -> str:
    """Return how the files write ``token``: b' the' is 'Ġthe'."""
    return "".join([_BYTE_TO_CHAR[b] for b in token])


def token_bytes(name: str) -> bytes | None:
    """Return the bytes that ``name`` stands for, or None if it holds a character that stands for none."""
    try:
        return bytes([_CHAR_TO_BYTE[c] for c in name])
    except KeyError:
        return None


def write_tokenizer_json(path: Path, vocabulary: Vocabulary) -> None:
    """Write ``vocabulary`` in Hugging Face's schema: the same bytes each time, and never half a file."""
    names = {token_name(t): i for t, i in vocabulary.ranks.items()} | dict(vocabulary.special_tokens)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = sorted(vocabulary.special_tokens.items(), key=lambda item: item[1])
    document = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for name, i in special],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            # As tiktoken does: a word that is a token is that token, whatever its merges.
            "ignore_merges": True,
            "vocab": dict(sorted(names.items(), key=lambda item: item[1])),
            # "a b" and not ["a", "b"]: every version of tokenizers and llama.cpp's converter read it.
            "merges": [_shown(left, right) for left, right in vocabulary.merges],
        },
    }
    _write_whole(path, (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())


def read_tokenizer_json(path: Path) -> Vocabulary:
    """Read a ``tokenizer.json`` of GPT-2's kind: BPE over bytes, GPT-2's splitting, no normalizer.

    Raises ValueError, naming the file and the place, for anything that would not give Hugging Face's ids.
    """
    try:
        return _vocabulary_from_json(parse_json(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_openai(encoder_json: bytes, vocab_bpe: bytes) -> Vocabulary:
    """Return the vocabulary in the bytes of OpenAI's two files. Raises ValueError if they do not fit."""
    lines = _decoded(vocab_bpe).splitlines()
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    names = parse_json(encoder_json)
    if not isinstance(names, dict):
        raise ValueError(f"encoder.json must hold an object of tokens and ids, not {type(names).__name__}")
    # OpenAI's files mark no token as special: those are the ones written <|so|>.
    special = {name: i for name, i in names.items() if name.startswith("<|") and name.endswith("|>")}
    merges = _merges([line for line in lines if line.strip()])
    for token in {left + right for left, right in merges}:
        special.pop(token_name(token), None)
    return Vocabulary(_ranks({n: i for n, i in names.items() if n not in special}), merges, special)


def parse_json(data: bytes) -> Any:
    """Return the JSON value in ``data``. Raises ValueError that says where it is not UTF-8 or not JSON."""
    try:
        return json.loads(_decoded(data))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON, or cut off: {error}") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply to be a tokenizer") from None


def _vocabulary_from_json(document: Any) -> Vocabulary:
    model = _field(document, "model", dict, "the file")
    for place, key, allowed in (
            (model, "type", ("BPE",)), (model, "dropout", (None, 0)),
            (model, "continuing_subword_prefix", (None, "")), (model, "end_of_word_suffix", (None, "")),
            (document, "normalizer", (None,)), (document, "truncation", (None,)), (document, "padding", (None,))):
        if place.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{key} is {_brief(place[key])}; only byte-level BPE as GPT-2 has it is read, "
                             f"where {key} is {allowed[0]!r}")
    for key, needed in (("pre_tokenizer", True), ("decoder", True), ("post_processor", False)):
        part = document.get(key)
        if (needed or part is not None) and (not isinstance(part, dict) or part.get("type") != "ByteLevel"):
            kind = part.get("type") if isinstance(part, dict) else part
            raise ValueError(f"{key} is {_brief(kind)}; only byte-level BPE is read, where it is 'ByteLevel'")
    for key, value in (("add_prefix_space", False), ("use_regex", True)):
        # Hugging Face's own default for a missing key is true, for both.
        if document["pre_tokenizer"].get(key, True) is not value:
            raise ValueError(f"pre_tokenizer.{key} must be {str(value).lower()}, as GPT-2 splits text")

    names = dict(_field(model, "vocab", dict, "model"))
    special: dict[str, int] = {}
    for token in _field(document, "added_tokens", list, "the file"):
        name, i = _field(token, "content", str, "an added token"), _field(token, "id", int, "an added token")
        if not token.get("special") or token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise ValueError(f"added token {name!r} must be special, without lstrip, rstrip and single_word")
        if special.get(name, i) != i or names.pop(name, i) != i:
            raise ValueError(f"added token {name!r} has two ids, {i} and another")
        special[name] = i
    return Vocabulary(_ranks(names), _merges(_field(model, "merges", list, "model")), special)


def _ranks(names: Mapping[str, int]) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for name, i in names.items():
        token = token_bytes(name)
        if not token:
            raise ValueError(f"token {name!r} (id {i}) is not written in the byte alphabet of GPT-2")
        ranks[token] = i
    return ranks


def _merges(lines: Iterable[Any]) -> list[tuple[bytes, bytes]]:
    """Return the pairs in ``lines``, each "left right" or ["left", "right"]."""
    merges = []
    for n, line in enumerate(lines, 1):
        pair = line.split(" ") if isinstance(line, str) else line
        if not isinstance(pair, list):
            pair = []
        parts = [token_bytes(p) if isinstance(p, str) else None for p in pair]
        if len(parts) != 2 or not parts[0] or not parts[1]:
            raise ValueError(f"merge {n} is {_brief(line)}, not two tokens in the byte alphabet of GPT-2")
        merges.append((parts[0], parts[1]))
    return merges


def _field(place: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(place, dict) or not isinstance(place.get(key), kind):
        raise ValueError(
            f"{where} has no {key!r} of type {kind.__name__}; is this a tokenizer.json of Hugging Face's?")
    return place[key]


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{data[error.start]:02X} at position {error.start}") from None


def _shown(left: bytes, right: bytes) -> str:
    return f"{token_name(left)} {token_name(right)}"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _write_whole(path: Path, data: bytes) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save {path}: {path.parent} is no folder; make the folder first")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with part.open("xb") as file:   # and not mkstemp, whose files only their owner may read
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
