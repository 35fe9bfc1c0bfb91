"""What a judge is: a model behind an interface of one question, its reply, and what can go wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""

ErrorKind = Literal["connection", "time-out", "http", "question", "redirect", "malformed"]
"""Not reached; too slow; an answer that refuses, or an error within one; one that this question does not fit, as too
long a one, while others may; points elsewhere; is not the protocol's."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a judge said to one question."""

    text: str
    model: str
    """The model's name, as the server gives it."""

    n_prompt_tokens: int | None = None
    """As the server counts them; None where it does not."""

    is_prompt_cut: bool = False
    """Whether the model has not seen all of the question."""

    is_reply_cut: bool = False
    """Whether the reply ended at the limit of its length."""


class Judge(Protocol):
    """A model that answers questions; ``OllamaJudge`` and ``OpenAIJudge`` are two."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the replies depend on, ready for JSON: the model's name and its options, but no address and no key."""

    @property
    def place(self) -> str:
        """Where the judge is, without what is secret in the address."""

    def ask(self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None) -> Reply:
        """Return the reply to ``messages``; with ``schema``, a JSON Schema, the model is asked for such a JSON text.

        The text may be anything nevertheless. Raises JudgeError if there is no reply.
        """


class JudgeError(ConnectionError):
    """A judge gave no reply; the message says what happened, as a clause, and names no key and no password."""

    def __init__(self, message: str, *, kind: ErrorKind, is_retryable: bool, wait: float | None = None) -> None:
        """Keep the kind, whether asking once more may help, and the seconds the server asks to wait before."""
        super().__init__(message)
        self.kind = kind
        self.is_retryable = is_retryable
        self.wait = wait
