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
from gpt_weights.json_file import parse_json, read_bounded, read_json

_END_OF_TEXT = "<|endoftext|>"
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's names, OpenAI's


@dataclass(frozen=True)
class TokenizerFile:
    """The content of a ``tokenizer.json``: byte-level BPE, as ``find_tokenizer`` has checked it."""

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
    vocab.bpe, with the tokens of added_tokens.json, of which those in special_tokens_map.json are special.

    Raises WeightsError naming the file that cannot be used: it must be byte-level BPE, which is UTF-8 without a byte
    order mark, a model "BPE" whose tokens have no prefix or suffix, "ByteLevel" among its pre_tokenizer and its
    decoder, tokens with whole ids, and merges of two tokens that give a third.
    """
    whole = place if place.is_file() else place / "tokenizer.json"
    if whole.is_file():
        data = read_bounded(whole)
        document = parse_json(whole, data)
        if data.startswith(b"\xef\xbb\xbf") or b"\0" in data:  # which is UTF-16 or UTF-32
            raise WeightsError(f"{whole} is no UTF-8 without a byte order mark, as tokenizers reads it; save it so")
        _check(whole, document)
        return TokenizerFile(whole, data)
    for name, merges in _PAIRS:
        path = place / name
        if path.is_file() and (place / merges).is_file():
            added, special = (
                read_json(place / beside) if (place / beside).is_file() else {}
                for beside in ("added_tokens.json", "special_tokens_map.json")
            )
            vocabulary = read_json(path)
            for token, i in added.items():
                if vocabulary.get(token, i) != i:
                    raise WeightsError(f"{path}: {token!r} has the id {vocabulary[token]}, in added_tokens.json {i}")
            return tokenizer_of(
                path, vocabulary, _merges(place / merges), special=[_END_OF_TEXT, *_named(special)], added=added
            )
    return None


def tokenizer_of(
    path: Path,
    vocabulary: Mapping[str, Any],
    merges: list[str],
    *,
    special: Sequence[str] = (_END_OF_TEXT,),
    added: Mapping[str, Any] | None = None,
) -> TokenizerFile:
    """Return the tokenizer of a vocabulary {token: id} and merges.

    ``added`` tokens {token: id} are found in a text before it is split, and so are those of the ``special`` that are
    in the vocabulary or among the added. Raises WeightsError if they are no byte-level BPE.
    """
    vocabulary = {**vocabulary, **(added or {})}
    are_special = set(special)
    added_tokens = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": token in are_special}
        for token, i in vocabulary.items() if token in are_special or token in (added or {})
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocabulary, "merges": merges,
        },
    }
    _check(path, document)
    return TokenizerFile(path, (json.dumps(document, ensure_ascii=False) + "\n").encode("utf-8"))


def _named(special_tokens_map: Mapping[str, Any]) -> list[str]:
    """Return the tokens in a special_tokens_map.json: each a text or {"content": text}, or a list of such."""
    values = [value for held in special_tokens_map.values() for value in (held if isinstance(held, list) else [held])]
    named = [value.get("content") if isinstance(value, dict) else value for value in values]
    return [token for token in named if isinstance(token, str)]


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
    if affix := model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise WeightsError(f"{path} is no byte-level BPE tokenizer, since its tokens are marked by {affix!r:.60}")
    vocabulary, merges, added = model.get("vocab"), model.get("merges"), document.get("added_tokens") or []
    if not isinstance(vocabulary, dict) or not all(_is_id(i) for i in vocabulary.values()):
        raise WeightsError(f"{path}: the vocabulary must give each token an id, a whole number from 0")
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) and _is_id(token.get("id")) for token in added
    ):
        raise WeightsError(f"{path}: each of added_tokens must have a content and an id")
    for token in (*vocabulary, *(token["content"] for token in added)):
        if not is_unicode(token):
            raise WeightsError(f"{path}: the token {token!r:.60} holds half a surrogate pair, no character")
    for n, merge in enumerate(merges if isinstance(merges, list) else [None], 1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise WeightsError(f"{path}: merge {n} is {merge!r:.60}, not two tokens")
        for token in (*pair, "".join(pair)):
            if token not in vocabulary:
                raise WeightsError(f"{path}: merge {n} is {merge!r:.60}, but {token!r:.60} is not in the vocabulary")
    for part, parts in (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
        if "ByteLevel" not in (kinds := _kinds(document.get(part), parts)):
            found = ", ".join(kinds) or "none"
            raise WeightsError(f"{path} is no byte-level BPE: its {part} must be ByteLevel, not {found:.60}")


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; JSON's escapes can also tell the halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _kinds(part: object, parts: str) -> list[str]:
    """Return the types of a pre_tokenizer or decoder, or of those in a Sequence."""
    inner = part.get(parts) if isinstance(part, dict) and part.get("type") == "Sequence" else [part]
    return [str(each.get("type")) for each in (inner if isinstance(inner, list) else []) if isinstance(each, dict)]


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
