"""Texts that stand for rendered conversations, whose control tokens no text can say."""

from collections.abc import Callable, Sequence


class RenderedTexts:
    """Gives each conversation's ids a text, and the ids back for exactly that text.

    A program that passes prompts around as texts can so carry control tokens, while whatever a user wrote stays text.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: dict[str, tuple[int, ...]] = {}

    def text_for(self, ids: Sequence[int]) -> str:
        """Return the text that stands for ``ids``: what they decode to, made longer where other ids have that one.

        They can: a user may write what a control token looks like.
        """
        text = self._decode(list(ids))
        while self._ids.setdefault(text, tuple(ids)) != tuple(ids):
            text += "\u200b"
        return text

    def ids_for(self, text: str) -> list[int] | None:
        """Return the ids that ``text`` stands for, None if it is no such text."""
        ids = self._ids.get(text)
        return None if ids is None else list(ids)
