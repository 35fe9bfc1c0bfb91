"""Messages in the rows of other programs' files: which format a row has, and who says what in it.

A fault is a ValueError whose sentence begins with its place: "messages[2].role is 'tool', ...".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from gpt_finetune.conversation import Conversation, Message, Role
from gpt_finetune.lines import unfit_text
from gpt_finetune.rows import listed

T = TypeVar("T")


@dataclass(frozen=True)
class MessageForm:
    """How a format writes a message: the fields of role and text, and what it calls the roles."""

    role: str
    content: str
    roles: Mapping[str, Role]


OPENAI = MessageForm(
    "role", "content", {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"})
SHAREGPT = MessageForm("from", "value", {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant",
})  # fmt: skip


_NOT_KEPT = ("weight", "tool_calls", "function_call")
"""Fields of a message that change what it means: not to be learned, or a call of a tool."""


class Placed(NamedTuple):
    """A message, and the place in the row that it comes from."""

    place: str
    message: Message

    @property
    def has_text(self) -> bool:
        """Whether the message is more than white space."""
        return bool(self.message.content.strip() or self.message.input.strip())


def format_of(fields: Mapping[str, Any], formats: Mapping[tuple[str, ...], T]) -> T:
    """Return the format all of whose fields are there; one with more of them than another stands before that one.

    Raises ValueError if the fields are those of none, or of several.
    """
    found = [names for names in formats if all(name in fields for name in names)]
    found = [names for names in found if not any(set(names) < set(others) for others in found)]
    if not found:
        known = ", or ".join(" and ".join(repr(name) for name in names) for names in formats)
        raise ValueError(f"the object has the fields of no known format, {known} (it has {listed(fields)})")
    if len(found) > 1:
        several = ", and ".join(" with ".join(repr(name) for name in names) for names in found)
        raise ValueError(f"the object has the fields of several formats, {several}; keep those of one")
    return formats[found[0]]


def instruction_of(fields: Mapping[str, Any]) -> Placed:
    """Return Alpaca's instruction and input as the user's message; an input that is missing or null is empty."""
    content = text_of(fields["instruction"], "instruction")
    about = "" if fields.get("input") is None else text_of(fields["input"], "input")
    return Placed("instruction", Message(role="user", content=content, input=about))


def messages_of(value: Any, place: str, form: MessageForm) -> list[Placed]:
    """Return the messages of a list; those of the system that have no text say nothing, and are passed over."""
    if not isinstance(value, list):
        raise ValueError(f"{place} must be a list of messages, found a {type(value).__name__}")
    placed = [Placed(f"{place}[{n}]", _message(item, f"{place}[{n}]", form)) for n, item in enumerate(value)]
    return [item for item in placed if item.message.role != "system" or item.has_text]


def with_system(fields: Mapping[str, Any], placed: list[Placed]) -> list[Placed]:
    """Return the messages of a row behind the system's that stands in a field of its own, where there is one.

    Raises ValueError if the messages begin with one, too, or if the row has earlier turns in a field ``history``.
    """
    if fields.get("history"):
        raise ValueError("history has earlier turns, which are not read; write the row as messages")
    if fields.get("system") in (None, ""):
        return placed
    if placed and placed[0].message.role == "system":
        raise ValueError(f"system and {placed[0].place} are both the system's message; keep one")
    return [Placed("system", Message(role="system", content=text_of(fields["system"], "system"))), *placed]


def text_or_messages_of(value: Any, place: str, role: Role) -> list[Placed]:
    """Return the one message that a text is, said by ``role``, or the messages of a list."""
    if isinstance(value, str):
        return [Placed(place, Message(role=role, content=text_of(value, place)))]
    if not isinstance(value, list):
        raise ValueError(f"{place} must be text or a list of messages, found a {type(value).__name__}")
    return messages_of(value, place, OPENAI)


def conversation_of(placed: Iterable[Placed]) -> Conversation:
    """Return the conversation; ValueError if the messages are in another order, or one has no text."""
    placed = list(placed)
    for item in placed:
        if not item.has_text:
            raise ValueError(f"{item.place} has no text; leave the message out, or the row")
    return Conversation(tuple(item.message for item in placed))


def text_of(value: Any, place: str) -> str:
    """Return the text; ValueError if it is none, or holds what no text may."""
    if not isinstance(value, str):
        raise ValueError(f"{place} must be text, found a {type(value).__name__}")
    fault = unfit_text(value)
    if fault is not None:
        raise ValueError(f"{place} has {fault}")
    return value


def _message(value: Any, place: str, form: MessageForm) -> Message:
    if isinstance(value, dict):
        for name in _NOT_KEPT:
            if value.get(name) not in (None, [], 1):  # 1: the weight of what is learned
                raise ValueError(f"{place} has {name!r}, which is not kept here; leave the message out, or the row")
    role, content = (_field(value, place, name) for name in (form.role, form.content))
    if not isinstance(role, str):
        raise ValueError(f"{place}.{form.role} must be text, found a {type(role).__name__}")
    if role not in form.roles:
        raise ValueError(f"{place}.{form.role} is {role!r:.40}, but must be one of {', '.join(form.roles)}")
    where = f"{place}.{form.content}"
    if not isinstance(content, list):
        return Message(role=form.roles[role], content=text_of(content, where))
    parts = [_part(part, f"{where}[{n}]") for n, part in enumerate(content)]
    return Message(role=form.roles[role], content=text_of("".join(parts), where))


def _part(value: Any, place: str) -> str:
    """Return the text of a part of a message that is written in parts: {"type": "text", "text": ...}."""
    kind = _field(value, place, "type")
    if kind != "text":
        found = f"is {kind!r:.40}" if isinstance(kind, str) else f"is a {type(kind).__name__}"
        raise ValueError(f"{place}.type {found}, but only 'text' can be read")
    return text_of(_field(value, place, "text"), f"{place}.text")


def _field(value: Any, place: str, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{place} must be an object, found a {type(value).__name__}")
    if name not in value:
        raise ValueError(f"{place} has no {name!r} (it has {listed(value)})")
    return value[name]
