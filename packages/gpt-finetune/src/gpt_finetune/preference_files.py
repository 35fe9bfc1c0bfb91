"""Preferences from .json and .jsonl files: a prompt, and two answers to it.

TRL: {"prompt", "chosen", "rejected"}, each a text or a list of messages like OpenAI's, or {"chosen", "rejected"} as
lists that begin alike. The book: {"instruction", "input", "chosen", "rejected"}, without input where there is none.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt_finetune.messages import (
    OPENAI,
    Placed,
    conversation_of,
    format_of,
    instruction_of,
    messages_of,
    text_or_messages_of,
    with_system,
)
from gpt_finetune.objects import read_objects
from gpt_finetune.preference import Preference, Preferences
from gpt_finetune.rows import LeftOut, Row, keep_rows


def read_preferences(path: Path | str, *, max_bad: int = 0) -> Preferences:
    """Return the preferences of a .json (an array of objects) or .jsonl (an object a line), UTF-8.

    A row has the fields of one of the formats above; any others are passed over. An answer in a list is the
    assistant's message alone, or the prompt's messages and then that one. Both answers have text.

    Rows in which neither has any are left out and listed. Raises DataError and OSError as ``read_conversations``
    does.
    """
    kept = keep_rows(Path(path), read_objects(Path(path)), _preference, max_bad=max_bad, content="preferences")
    return Preferences(source=str(path), preferences=kept.values, lines=kept.lines, left_out=kept.left_out)


def _preference(row: Row) -> Preference | LeftOut:
    prompt = with_system(row.fields, format_of(row.fields, _FORMATS)(row.fields))
    chosen, rejected = (_answer(row.fields[name], name, prompt) for name in ("chosen", "rejected"))
    if not (chosen.has_text or rejected.has_text):
        return LeftOut(row.line, "the row has no answer", row.column, is_fault=False)
    for answer in (chosen, rejected):
        if not answer.has_text:
            raise ValueError(f"{answer.place} has no text; write an answer, or leave the row out")
    if prompt and prompt[-1].message.role == "assistant":
        raise ValueError(f"{prompt[-1].place} is the assistant's, but the prompt must end with the user's message")
    return Preference(conversation_of(prompt), chosen.message.content, rejected.message.content)


def _answer(value: Any, name: str, prompt: list[Placed]) -> Placed:
    """Return the assistant's message that the field ``name`` is, or that follows the prompt's messages there."""
    placed = text_or_messages_of(value, name, "assistant")
    before = [item.message for item in placed[:-1]]
    if not placed or (before and before != [item.message for item in prompt]):
        raise ValueError(
            f"{name} has {len(placed)} messages, but must be the answer alone, or the prompt's messages and then it")
    if placed[-1].message.role != "assistant":
        raise ValueError(f"{placed[-1].place} is the {placed[-1].message.role}'s, but must be the assistant's answer")
    return placed[-1]


def _common_beginning(fields: Mapping[str, Any]) -> list[Placed]:
    """Return the messages before the two answers, which are the same."""
    chosen, rejected = (messages_of(fields[name], name, OPENAI)[:-1] for name in ("chosen", "rejected"))
    if [item.message for item in chosen] != [item.message for item in rejected]:
        raise ValueError("chosen and rejected must have the same messages but for the last, the answer")
    return chosen


_FORMATS: dict[tuple[str, ...], Callable[[Mapping[str, Any]], list[Placed]]] = {
    ("prompt", "chosen", "rejected"): lambda fields: text_or_messages_of(fields["prompt"], "prompt", "user"),
    ("instruction", "chosen", "rejected"): lambda fields: [instruction_of(fields)],
    ("chosen", "rejected"): _common_beginning,
}
