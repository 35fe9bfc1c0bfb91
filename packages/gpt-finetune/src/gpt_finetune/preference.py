"""Preferences as data: a prompt and two answers to it, of which one was chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpt_finetune.conversation import Conversation, Message
from gpt_finetune.rows import FromFile


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt.

    Raises ValueError if the prompt is answered already, or an answer is no text that can be encoded.
    """

    prompt: Conversation
    """What is to be answered: its last message is the user's."""
    chosen: str
    """The better answer."""
    rejected: str
    """The worse answer."""

    def __post_init__(self) -> None:
        if self.prompt.is_answered:
            raise ValueError("a preference's prompt must end with the user's message; pass conversation.prompt")
        for name in ("chosen", "rejected"):
            try:
                self._answered(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    @property
    def conversations(self) -> tuple[Conversation, Conversation]:
        """The prompt with the chosen answer, and with the rejected one."""
        return self._answered(self.chosen), self._answered(self.rejected)

    def _answered(self, answer: str) -> Conversation:
        return Conversation((*self.prompt.messages, Message(role="assistant", content=answer)))


@dataclass(frozen=True, kw_only=True)
class Preferences(FromFile):
    """The preferences of a file, in its order."""

    columns = ("preferences",)

    preferences: tuple[Preference, ...]

    def __iter__(self) -> Iterator[Preference]:
        return iter(self.preferences)
