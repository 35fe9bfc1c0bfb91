"""A checkpoint's tokenizer.json, read with Hugging Face's ``tokenizers``.

gpt-eval knows no tokenizer of its own; whoever has one that encodes and decodes may pass it in place of this.
"""

import json
from pathlib import Path

_END_OF_TEXT = "<|endoftext|>"


class TokenizerFile:
    """A byte-level BPE tokenizer from its file; whatever a text says, it becomes ordinary tokens only.

    Raises ValueError naming the file if it cannot be read or is no such tokenizer, ImportError without ``tokenizers``.
    """

    def __init__(self, path: Path | str) -> None:
        try:
            from tokenizers import Tokenizer  # only those who bring no tokenizer of their own need it
        except ImportError as error:
            raise ImportError("reading tokenizer.json needs tokenizers: install 'gpt-eval[model]'") from error
        path = Path(path)
        try:
            content = json.loads(path.read_bytes())
            for token in content["added_tokens"]:
                token["special"] = True  # so that the next line holds for every one
            tokenizer = Tokenizer.from_str(json.dumps(content))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}; give a checkpoint with one") from error
        except Exception as error:  # tokenizers raises the bare class
            raise ValueError(f"{path} is no tokenizer in Hugging Face's schema: {error!r}; write it anew") from error
        tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        self._tokenizer = tokenizer
        self._special = {token: entry.content for token, entry in tokenizer.get_added_tokens_decoder().items()}
        self.special_tokens: dict[str, int] = {name: token for token, name in self._special.items()}
        self.n_vocab: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self.eot_token: int | None = tokenizer.token_to_id(_END_OF_TEXT)
        self._bytes_of = _bytes_of_characters()
        names = {name for name, token in tokenizer.get_vocab().items() if token not in self._special}
        if strange := min((name for name in names if not self._bytes_of.keys() >= set(name)), default=None):
            raise ValueError(f"{path} is no byte-level tokenizer: its token {strange!r} spells no bytes; use one")

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, none of them a control token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of some ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Return the bytes of some ids, one after the other; a control token's are those of its name.

        Raises ValueError for an id that the tokenizer does not have.
        """
        return b"".join(map(self._decoded, ids))

    def _decoded(self, token: int) -> bytes:
        if token in self._special:
            return self._special[token].encode("utf-8")
        name = self._tokenizer.id_to_token(token) if token >= 0 else None
        if name is None:
            raise ValueError(f"the tokenizer has no token {token}, its ids are 0..{self.n_vocab - 1}; give its own ids")
        return bytes(self._bytes_of[character] for character in name)


def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each character of a token's name stands for: GPT-2's alphabet (Radford et al. 2019).

    188 printable characters stand for themselves, U+0100 onwards for the other 68 bytes in their order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + n): byte for n, byte in enumerate(others)}}
