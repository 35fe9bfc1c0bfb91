"""Preferences as data: a prompt and two answers to it, of which one was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from gpt_finetune.conversation import Conversation, Message
from gpt_finetune.rows import LeftOut


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
class Preferences:
    """The preferences of a file, in its order."""

    source: str
    """The file's path."""

    preferences: tuple[Preference, ...]

    lines: tuple[int, ...]
    """The line of the file, counted from 1, where the row of each preference begins."""

    left_out: tuple[LeftOut, ...] = ()
    """The rows that gave no preference."""

    def __post_init__(self) -> None:
        if len(self.preferences) != len(self.lines):
            raise ValueError(
                f"each preference needs a line, got {len(self.preferences)} preferences and {len(self.lines)} lines")

    def __len__(self) -> int:
        return len(self.preferences)

    def __iter__(self) -> Iterator[Preference]:
        return iter(self.preferences)

    @property
    def n_rows(self) -> int:
        """Rows of the file: those kept and those left out."""
        return len(self.preferences) + len(self.left_out)

    def select(self, indices: Iterable[int]) -> Preferences:
        """Return the preferences with these indices, in this order; the rows left out of the file are no part of it."""
        chosen = list(indices)
        return replace(
            self,
            preferences=tuple(self.preferences[i] for i in chosen),
            lines=tuple(self.lines[i] for i in chosen),
            left_out=(),
        )
