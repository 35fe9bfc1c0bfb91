"""A tokenizer's files beside the weights: GPT-2's pair of vocabulary and merges, and Hugging Face's ``tokenizer.json``.

Both hold the same: {token: id} and merges "left right", a token's bytes written as GPT-2 writes them. No text is
tokenized here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_weights.errors import WeightsError
from gpt_weights.json_file import read_json

_END_OF_TEXT = "<|endoftext|>"
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's names, OpenAI's


@dataclass(frozen=True)
class TokenizerFile:
    """The content of a ``tokenizer.json``: byte-level BPE, else WeightsError."""

    path: Path
    data: bytes

    def save(self, path: Path) -> None:
        """Write the file; what ``save_checkpoint`` calls."""
        path.write_bytes(self.data)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Id of each token, added ones among them, in the order of the ids."""
        ids = {**self._document()["model"]["vocab"], **self.added_tokens}
        return dict(sorted(ids.items(), key=lambda item: item[1]))

    @property
    def added_tokens(self) -> dict[str, int]:
        """Id of each token that is found in a text before it is split, the special ones among them."""
        return {token["content"]: token["id"] for token in self._document().get("added_tokens") or []}

    @property
    def special_tokens(self) -> dict[str, int]:
        """Id of each special token."""
        added = self._document().get("added_tokens") or []
        return {token["content"]: token["id"] for token in added if token.get("special")}

    @property
    def end_of_text(self) -> tuple[str, int] | None:
        """The token that ends a text, and its id: GPT-2's, or else the last special token; None if there is none."""
        special = self.special_tokens
        name = _END_OF_TEXT if _END_OF_TEXT in special else next(reversed(special), None)
        return None if name is None else (name, special[name])

    @property
    def merges(self) -> list[str]:
        """The merges as "left right", the first first."""
        merges = self._document()["model"]["merges"]
        return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]

    @property
    def splits_as_gpt2(self) -> bool:
        """Whether it cuts texts into words as GPT-2 does, changes no character and adds no token."""
        document = self._document()
        split, after = document.get("pre_tokenizer"), document.get("post_processor")
        if not isinstance(split, dict) or split.get("type") != "ByteLevel" or document.get("normalizer"):
            return False
        adds_nothing = after is None or (isinstance(after, dict) and after.get("type") == "ByteLevel")
        return adds_nothing and split.get("use_regex", True) is True and split.get("add_prefix_space") is False

    def check_fits(self, vocab_size: int) -> list[str]:
        """Return notes on ids without a token; WeightsError if a token's id is not one of the model's, or not its own.

        ``vocab_size`` is the number of rows of the token embedding.
        """
        owners: dict[int, str] = {}
        for token, i in self.vocabulary.items():
            if owners.setdefault(i, token) != token:
                raise WeightsError(f"{self.path}: the tokens {owners[i]!r} and {token!r} have the same id, {i}")
            if i >= vocab_size:
                raise WeightsError(
                    f"{self.path}: the token {token!r} has the id {i}, but the model's vocabulary ends at "
                    f"{vocab_size - 1}; give the tokenizer that the model was trained with"
                )
        unused = vocab_size - len(owners)
        return [f"{unused} of {vocab_size} ids have no token"] if unused else []

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.data)
        return document


def find_tokenizer(place: Path) -> TokenizerFile | None:
    """Return the tokenizer whose files lie in the folder ``place``, or are that file; None if there are none.

    A ``tokenizer.json`` is taken as it is; else one is made of vocab.json and merges.txt, or of encoder.json and
    vocab.bpe. Raises WeightsError naming the file that cannot be used.
    """
    whole = place if place.is_file() else place / "tokenizer.json"
    if whole.is_file():
        _check(whole, read_json(whole))
        return TokenizerFile(whole, whole.read_bytes())
    for vocabulary, merges in _PAIRS:
        if (place / vocabulary).is_file() and (place / merges).is_file():
            return tokenizer_of(place / vocabulary, read_json(place / vocabulary), _merges(place / merges))
    return None


def tokenizer_of(
    path: Path, vocabulary: Mapping[str, Any], merges: list[str], special: Sequence[str] = (_END_OF_TEXT,)
) -> TokenizerFile:
    """Return the tokenizer of a vocabulary {token: id} and merges; of the ``special`` tokens those that are there."""
    added = [
        {"id": vocabulary[name], "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for name in special if name in vocabulary
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": dict(vocabulary), "merges": merges,
        },
    }
    _check(path, document)
    return TokenizerFile(path, (json.dumps(document, ensure_ascii=False) + "\n").encode("utf-8"))


def _merges(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    return [line for line in lines if line and not line.startswith("#version")]


def _check(path: Path, document: Mapping[str, Any]) -> None:
    """Raise WeightsError unless the document is byte-level BPE, with whole ids and merges of two tokens each."""
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise WeightsError(f"{path} is no byte-level BPE tokenizer, which is what a GPT-2 has")
    vocabulary, merges, added = model.get("vocab"), model.get("merges"), document.get("added_tokens") or []
    if not isinstance(vocabulary, dict) or not all(_is_id(i) for i in vocabulary.values()):
        raise WeightsError(f"{path}: the vocabulary must give each token an id, a whole number from 0")
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) and _is_id(token.get("id")) for token in added
    ):
        raise WeightsError(f"{path}: each of added_tokens must have a content and an id")
    for n, merge in enumerate(merges if isinstance(merges, list) else [None], 1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise WeightsError(f"{path}: merge {n} is {merge!r:.60}, not two tokens")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
