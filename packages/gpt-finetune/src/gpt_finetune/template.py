"""Chat templates as data: how a conversation becomes tokens.

A template is made of pieces, and a piece is either ordinary text or a control token. Each piece and each message is
encoded by itself, so what a person typed can never become a control token, however it is spelled. Sources: Alpaca,
Taori et al. 2023; Phi-3, Microsoft's model card; ChatML, OpenAI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpt_finetune.conversation import Conversation, Message
from gpt_finetune.encode import encode_text


@dataclass(frozen=True)
class Control:
    """A control token, by its name in the tokenizer."""

    name: str


Pieces = tuple[str | Control, ...]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What stands around the text of one role's message."""

    before: Pieces = ()
    after: Pieces = ()


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The pieces of each role. What the assistant has ``after`` its text ends the answer, and is learned with it."""

    name: str
    system: Turn
    user: Turn
    assistant: Turn
    """``before`` is where an answer begins; the first piece ``after`` it must be a control token: the end."""
    input: Pieces
    """What stands between a user's instruction and its input, where there is one."""
    between: Pieces = ()
    """What follows an answer if the conversation goes on; nobody learns it."""
    default_system: str = ""
    """The system's message of a conversation without one; "": none."""

    def __post_init__(self) -> None:
        if not self.assistant.after or not isinstance(self.assistant.after[0], Control):
            raise ValueError(f"template {self.name!r} must end the assistant's answer with a control token")

    @property
    def controls(self) -> tuple[str, ...]:
        """The names of its control tokens, each once."""
        turns = (self.system, self.user, self.assistant)
        pieces = [*(piece for turn in turns for piece in (*turn.before, *turn.after)), *self.input, *self.between]
        return tuple(dict.fromkeys(piece.name for piece in pieces if isinstance(piece, Control)))

    def to_dict(self) -> dict[str, Any]:
        """Return the template as what JSON knows: a piece is a text, or {"control": NAME}."""
        def plain(pieces: Pieces) -> list[Any]:
            return [{"control": piece.name} if isinstance(piece, Control) else piece for piece in pieces]

        def turn(of: Turn) -> dict[str, Any]:
            return {"before": plain(of.before), "after": plain(of.after)}

        return {
            "name": self.name, "system": turn(self.system), "user": turn(self.user), "assistant": turn(self.assistant),
            "input": plain(self.input), "between": plain(self.between), "default_system": self.default_system,
        }

    @classmethod
    def from_dict(cls, data: Any) -> ChatTemplate:
        """Return the template that ``to_dict`` gave. Raises ValueError for anything else."""
        try:
            return cls(
                name=_text(data["name"]), system=_turn(data["system"]), user=_turn(data["user"]),
                assistant=_turn(data["assistant"]), input=_pieces(data["input"]), between=_pieces(data["between"]),
                default_system=_text(data["default_system"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no chat template: {error!r:.200}; it must be what to_dict() gives") from None


def _text(data: Any) -> str:
    if not isinstance(data, str):
        raise ValueError(f"name and default_system must be text, found {data!r:.60}")
    return data


def _turn(data: Any) -> Turn:
    return Turn(before=_pieces(data["before"]), after=_pieces(data["after"]))


def _pieces(data: Any) -> Pieces:
    if not isinstance(data, list):
        raise ValueError(f"pieces must be a list, found {data!r:.60}")
    found: list[str | Control] = []
    for piece in data:
        if isinstance(piece, Mapping) and set(piece) == {"control"} and isinstance(piece["control"], str):
            found.append(Control(piece["control"]))
        elif isinstance(piece, str):
            found.append(piece)
        else:
            raise ValueError(f'a piece must be a text or {{"control": NAME}}, found {piece!r:.60}')
    return tuple(found)


_END_OF_TEXT = Control("<|endoftext|>")
_PHI3_END = Control("<|end|>")
_IM_START, _IM_END = Control("<|im_start|>"), Control("<|im_end|>")

ALPACA = ChatTemplate(
    name="alpaca",
    system=Turn(),
    user=Turn(before=("\n\n### Instruction:\n",)),
    assistant=Turn(before=("\n\n### Response:\n",), after=(_END_OF_TEXT,)),
    input=("\n\n### Input:\n",),
    default_system="Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.",
)
PHI3 = ChatTemplate(
    name="phi3",
    system=Turn(before=(Control("<|system|>"), "\n"), after=(_PHI3_END, "\n")),
    user=Turn(before=(Control("<|user|>"), "\n"), after=(_PHI3_END, "\n")),
    assistant=Turn(before=(Control("<|assistant|>"), "\n"), after=(_PHI3_END,)),
    input=("\n",),
    between=("\n",),
)
CHATML = ChatTemplate(
    name="chatml",
    system=Turn(before=(_IM_START, "system\n"), after=(_IM_END, "\n")),
    user=Turn(before=(_IM_START, "user\n"), after=(_IM_END, "\n")),
    assistant=Turn(before=(_IM_START, "assistant\n"), after=(_IM_END,)),
    input=("\n",),
    between=("\n",),
)
TEMPLATES: dict[str, ChatTemplate] = {template.name: template for template in (ALPACA, PHI3, CHATML)}
"""The templates by name. Alpaca needs no control token but the end of text; its headings are ordinary text, which all
can type. Take one of the others where the people who type are not trusted."""


class SupportsControls(Protocol):
    """What a template needs of a tokenizer; this project's tokenizers and tiktoken's encodings have it."""

    def encode(self, text: str, /, *, allowed_special: set[str] = ...) -> list[int]:
        """Return the ids of a text, in which the named special tokens count as such: by default none."""
        ...


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens."""

    ids: list[int]
    is_target: list[bool]
    """Of each token, whether the assistant says it: its answers and the tokens that end them."""


class ChatEncoder:
    """A template for one tokenizer: from conversations to token ids.

    Raises ValueError if the tokenizer lacks one of the template's control tokens.
    """

    def __init__(self, template: ChatTemplate, tokenizer: SupportsControls) -> None:
        self.template, self._tokenizer = template, tokenizer
        self._ids = {name: control_id(tokenizer, name) for name in template.controls}
        end = template.assistant.after[0]
        assert isinstance(end, Control)  # ChatTemplate has checked it
        self.end_id = self._ids[end.name]
        """The token that ends an answer."""

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids that no message's text can become."""
        return frozenset(self._ids.values())

    def encode(self, conversation: Conversation) -> Encoded:
        """Return all tokens of a conversation; its end is that of the last message."""
        ids: list[int] = []
        is_target: list[bool] = []
        for part, is_said in self._parts(conversation):
            ids += part
            is_target += [is_said] * len(part)
        return Encoded(ids, is_target)

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the tokens after which the assistant answers the user's last message.

        Raises ValueError if the last message is the assistant's: pass ``conversation.prompt``.
        """
        if conversation.is_answered:
            raise ValueError("the conversation ends with an answer; pass conversation.prompt for what comes before it")
        return [*self.encode(conversation).ids, *self._encode(self.template.assistant.before)]

    def answer(self, text: str) -> list[int]:
        """Return the tokens of an answer and of its end."""
        return [*encode_text(self._tokenizer, text), *self._encode(self.template.assistant.after)]

    def _parts(self, conversation: Conversation) -> list[tuple[list[int], bool]]:
        messages: Sequence[Message] = conversation.messages
        if messages[0].role != "system" and self.template.default_system:
            messages = [Message(role="system", content=self.template.default_system), *messages]
        parts: list[tuple[list[int], bool]] = []
        for place, message in enumerate(messages):
            if message.role == "assistant":
                parts += [(self._encode(self.template.assistant.before), False), (self.answer(message.content), True)]
                if place + 1 < len(messages):
                    parts.append((self._encode(self.template.between), False))
                continue
            turn = self.template.system if message.role == "system" else self.template.user
            texts: list[list[int]] = [self._encode(turn.before), encode_text(self._tokenizer, message.content)]
            if message.input:
                texts += [self._encode(self.template.input), encode_text(self._tokenizer, message.input)]
            parts += [(text, False) for text in (*texts, self._encode(turn.after))]
        return parts

    def _encode(self, pieces: Pieces) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += [self._ids[piece.name]] if isinstance(piece, Control) else encode_text(self._tokenizer, piece)
        return ids


def control_id(tokenizer: SupportsControls, name: str) -> int:
    """Return the id of the special token ``name``; ValueError if the tokenizer has none of that name."""
    try:
        ids = list(tokenizer.encode(name, allowed_special={name}))
    except ValueError:
        ids = []
    if len(ids) != 1 or ids == encode_text(tokenizer, name):
        raise ValueError(
            f"the tokenizer has no special token {name!r}, which the chat template needs; make the chat model with "
            "ChatModel.from_base, which adds it to tokenizer and model, or take the template 'alpaca'")
    return ids[0]


def find_template(template: ChatTemplate | str) -> ChatTemplate:
    """Return the template of that name, or the one given. Raises ValueError for an unknown name."""
    if isinstance(template, ChatTemplate):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"template must be one of {', '.join(TEMPLATES)}, or a ChatTemplate, got {template!r:.60}")
    return TEMPLATES[template]
