"""Conversations from .json and .jsonl files in the four common formats, told apart row by row.

Alpaca: {"instruction", "input", "output"}, without input where there is none. ShareGPT: {"conversations": [{"from",
"value"}]}. OpenAI: {"messages": [{"role", "content"}]}. TRL: {"prompt", "completion"}, each a text or a list like
OpenAI's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_finetune.conversation import Conversation, Message
from gpt_finetune.messages import (
    OPENAI,
    SHAREGPT,
    Placed,
    conversation_of,
    format_of,
    instruction_of,
    messages_of,
    text_of,
    text_or_messages_of,
    with_system,
)
from gpt_finetune.objects import read_objects
from gpt_finetune.rows import FromFile, LeftOut, Row, keep_rows


@dataclass(frozen=True, kw_only=True)
class Conversations(FromFile):
    """The conversations of a file, in its order."""

    columns = ("conversations",)

    conversations: tuple[Conversation, ...]

    def __iter__(self) -> Iterator[Conversation]:
        return iter(self.conversations)


def read_conversations(path: Path | str, *, max_bad: int = 0) -> Conversations:
    """Return the conversations of a .json (an array of objects) or .jsonl (an object a line), UTF-8.

    A row has the fields of one of the formats above, and may have the system's message as ``system``. Any other fields
    are passed over, but for those that change what is said: earlier turns as ``history``, and a message's ``weight`` or
    calls of tools, are faults. A conversation ends with an answer
    that has text. An empty system message is none; Alpaca's input may be null.

    Rows in which no answer has text are left out and listed. Raises DataError for a bad row, naming file, line and,
    where one is known, column, unless no more than ``max_bad`` are: they are left out and listed, too. DataError as
    well if the file has another suffix or no conversation, and for a .json that is no array, has more than 256 MiB or
    cannot be decoded to its end; OSError if unreadable.
    """
    kept = keep_rows(Path(path), read_objects(Path(path)), _conversation, max_bad=max_bad, content="conversations")
    return Conversations(source=str(path), conversations=kept.values, lines=kept.lines, left_out=kept.left_out)


def _conversation(row: Row) -> Conversation | LeftOut:
    placed = with_system(row.fields, format_of(row.fields, _FORMATS)(row.fields))
    if not any(item.has_text for item in placed if item.message.role == "assistant"):
        return LeftOut(row.line, "the row has no answer", row.column, is_fault=False)
    conversation = conversation_of(placed)
    if not conversation.is_answered:
        raise ValueError(f"{placed[-1].place} is the user's and has no answer; leave the message out, or add one")
    return conversation


def _alpaca(fields: Mapping[str, Any]) -> list[Placed]:
    output = Message(role="assistant", content=text_of(fields["output"], "output"))
    return [instruction_of(fields), Placed("output", output)]


def _prompt_and_completion(fields: Mapping[str, Any]) -> list[Placed]:
    return [
        *text_or_messages_of(fields["prompt"], "prompt", "user"),
        *text_or_messages_of(fields["completion"], "completion", "assistant"),
    ]


_FORMATS: dict[tuple[str, ...], Callable[[Mapping[str, Any]], list[Placed]]] = {
    ("instruction", "output"): _alpaca,
    ("conversations",): lambda fields: messages_of(fields["conversations"], "conversations", SHAREGPT),
    ("messages",): lambda fields: messages_of(fields["messages"], "messages", OPENAI),
    ("prompt", "completion"): _prompt_and_completion,
}
