"""Conversations as data: who said what, in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gpt_finetune.lines import half_pair

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn: ordinary text, in which nothing is special."""

    role: Role
    content: str
    input: str = ""
    """Of a user's message: what the instruction is about, Alpaca's ``input``; "": there is none."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {self.role!r:.60}")
        for name in ("content", "input"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"{name} of the {self.role}'s message must be text, found a {type(value).__name__}")
            if fault := half_pair(value):
                raise ValueError(f"{name} of the {self.role}'s message has {fault}")
        if self.input and self.role != "user":
            raise ValueError(f"only a user's message may have an input, got one of the {self.role}'s")


@dataclass(frozen=True)
class Conversation:
    """Messages in turns: perhaps the system's, then the user's and the assistant's, one after the other.

    Raises ValueError for any other order, for a user's message without text, and if there is no user's message.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        turns = list(self.messages)
        if turns and turns[0].role == "system":
            turns = turns[1:]
        if not turns:
            raise ValueError("the conversation has no message of the user; begin with one")
        for number, message in enumerate(turns):
            wanted = ("user", "assistant")[number % 2]
            if message.role != wanted:
                raise ValueError(
                    f"message {len(self.messages) - len(turns) + number + 1} is the {message.role}'s, but must be the "
                    f"{wanted}'s: after an optional system message user and assistant take turns")
            if message.role == "user" and not message.content.strip() and not message.input.strip():
                raise ValueError(
                    f"message {len(self.messages) - len(turns) + number + 1}, the user's, is empty; leave it out")

    @classmethod
    def of(cls, *contents: str, system: str = "") -> Conversation:
        """Return the conversation of these texts, the user's first, in turns; "" as ``system`` is no message.

        >>> Conversation.of("Name a colour.", "Blue.").messages[1].role
        'assistant'
        """
        first: Iterable[Message] = [Message(role="system", content=system)] if system else []
        turns = (Message(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(contents))
        return cls((*first, *turns))

    @classmethod
    def from_messages(cls, messages: Iterable[Mapping[str, Any]]) -> Conversation:
        """Return the conversation of messages as OpenAI's API has them: ``[{"role": ..., "content": TEXT}, ...]``.

        Raises ValueError for a message without role or content, and as the constructor does.
        """
        found = []
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
                raise ValueError(f"message {number + 1} must have role and content, got {message!r:.80}")
            found.append(Message(role=message["role"], content=message["content"]))
        return cls(tuple(found))

    @property
    def is_answered(self) -> bool:
        """Whether the last message is the assistant's."""
        return self.messages[-1].role == "assistant"

    @property
    def prompt(self) -> Conversation:
        """The conversation up to the last message of the user, which waits for an answer."""
        return Conversation(self.messages[:-1]) if self.is_answered else self

    @property
    def answer(self) -> str:
        """The assistant's last message; ValueError if the user's stands last."""
        if not self.is_answered:
            raise ValueError("the conversation ends with the user's message, so it has no answer")
        return self.messages[-1].content
