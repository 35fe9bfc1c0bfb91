"""A chat model: a GPT, its tokenizer and its template, by which training, chat and evaluation make the same tokens."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from gpt_core import GeneratedToken, GPTModel, Sampling, decode_stream, generate_batch, load_checkpoint
from gpt_finetune.conversation import Conversation
from gpt_finetune.saving import SupportsSave, save_finetuned
from gpt_finetune.template import (
    ALPACA,
    ChatEncoder,
    ChatTemplate,
    Encoded,
    SupportsControls,
    control_id,
    find_template,
)
from gpt_finetune.vocabulary import with_vocabulary
from gpt_train import DataError


class SupportsChat(SupportsControls, SupportsSave, Protocol):
    """What a chat model needs of its tokenizer."""

    @property
    def n_vocab(self) -> int:
        """Return the largest id plus one."""

    def decode_bytes(self, ids: list[int], /) -> bytes:
        """Return the bytes of some ids."""
        ...


class SupportsNewTokens(SupportsChat, Protocol):
    """What ``ChatModel.from_base`` needs besides, where a control token is missing."""

    def with_special_tokens(self, names: Sequence[str]) -> SupportsChat:
        """Return a tokenizer with these special tokens, too."""
        ...


@dataclass(frozen=True)
class Answer:
    """What a chat model says to one conversation."""

    text: str
    finish: Literal["stop", "length"]
    """"stop": the model ended its answer itself. "length": it was cut off."""
    n_prompt: int
    """Tokens of the prompt."""
    n_tokens: int
    """Tokens of the answer, its end included."""
    n_dropped: int = 0
    """Messages at the conversation's beginning that the model did not see, as there was no room for them."""


class ChatModel:
    """A model that answers conversations.

    Make one of a pretrained model with ``from_base``, which adds what the template needs; ``train_chat`` then teaches
    it to answer and to stop. Raises ValueError if the tokenizer lacks a control token of the template, if the model
    classifies, or if it has fewer rows than the tokenizer has ids.
    """

    def __init__(
        self, model: GPTModel, tokenizer: SupportsChat, *, template: ChatTemplate | str = ALPACA
    ) -> None:
        if model.config.n_classes is not None:
            raise ValueError(f"the model tells {model.config.n_classes} classes apart and says nothing; pass a GPT")
        self.model, self.tokenizer = model, tokenizer
        self.new_ids: frozenset[int] = frozenset()
        """Control tokens that ``from_base`` has added and the model has yet to learn."""
        self._encoder = ChatEncoder(find_template(template), tokenizer)
        try:
            self._end_of_text = frozenset({control_id(tokenizer, "<|endoftext|>")})
        except ValueError:  # a tokenizer without one
            self._end_of_text = frozenset()
        if (highest := max(tokenizer.n_vocab - 1, *self._encoder.control_ids)) >= model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has ids up to {highest}, but the model's vocab_size is {model.config.vocab_size}; take "
                "the tokenizer that it was trained with, or make the chat model with ChatModel.from_base")

    @classmethod
    def from_base(
        cls, model: GPTModel, tokenizer: SupportsNewTokens, *, template: ChatTemplate | str = ALPACA, seed: int = 123
    ) -> ChatModel:
        """Return a chat model of a pretrained one: control tokens that are missing are added to both.

        New rows of the embedding (and of an untied head) are drawn from ``seed``; all other parameters are the model's
        own, not copies. Raises ValueError as ``with_vocabulary`` does.
        """
        template = find_template(template)
        wider = tokenizer.with_special_tokens(template.controls)
        chat = cls(with_vocabulary(model, wider.n_vocab, seed=seed), wider, template=template)
        chat.new_ids = frozenset(range(tokenizer.n_vocab, wider.n_vocab))
        return chat

    @property
    def template(self) -> ChatTemplate:
        """The template of training, chat and evaluation."""
        return self._encoder.template

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return self._encoder.end_id

    @property
    def stop_ids(self) -> frozenset[int]:
        """What no answer goes on after: its end, any other control token, and ids that the tokenizer does not know."""
        unknown = range(self.tokenizer.n_vocab, self.model.config.vocab_size)
        return self._encoder.control_ids | self._end_of_text | set(unknown)

    @property
    def max_length(self) -> int:
        """The most tokens of a conversation: the model's context length."""
        return self.model.config.context_length

    def encode(self, conversation: Conversation) -> Encoded:
        """Return all tokens of a conversation, and which of them the assistant says."""
        return self._encoder.encode(conversation)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Return the tokens after which the model answers the user's last message."""
        return self._encoder.prompt(conversation)

    def encode_answer(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Return the tokens before the conversation's last answer, and those of that answer with its end."""
        return self._encoder.prompt(conversation.prompt), self._encoder.answer(conversation.answer)

    def fit(self, conversation: Conversation, *, room: int) -> tuple[Conversation, list[int]]:
        """Return what of a conversation leaves ``room`` tokens for an answer, and its prompt's tokens.

        The oldest questions and their answers go first; the system's message and the user's last one stay, and take of
        that room if they must. Raises ValueError if they leave none.
        """
        while True:
            ids = self.prompt_ids(conversation)
            if len(ids) + room <= self.max_length:
                return conversation, ids
            messages = conversation.messages
            n_system = int(messages[0].role == "system")
            if len(messages) <= n_system + 1:
                if len(ids) < self.max_length:
                    return conversation, ids
                raise ValueError(
                    f"the prompt has {len(ids)} tokens, but must leave room for an answer in the model's context of "
                    f"{self.max_length}; shorten the message")
            conversation = Conversation((*messages[:n_system], *messages[n_system + 2 :]))

    def answer(
        self, conversation: Conversation, *, max_new_tokens: int = 256, sampling: Sampling | None = None
    ) -> Answer:
        """Return the model's answer to the user's last message: greedy, or as ``sampling`` says.

        Errors and the room that a prompt leaves are those of ``answer_all``.
        """
        return self.answer_all([conversation], max_new_tokens=max_new_tokens, sampling=sampling)[0]

    def answer_all(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        max_batch: int = 8,
    ) -> list[Answer]:
        """Return the answers to many conversations, ``max_batch`` computed at a time: each as if it were asked alone.

        With ``sampling.seed`` each draws from a seed of its own, made of that one and its place. An answer ends by
        itself, after ``max_new_tokens``, or where the context is full. A prompt loses its oldest messages until a
        quarter of the context, or ``max_new_tokens`` if that is less, is free for the answer. Raises ValueError as
        ``fit`` does.
        """
        room = min(max_new_tokens, max(1, self.max_length // 4))
        fitted = [self.fit(conversation, room=room) for conversation in conversations]
        samplings = _samplings(sampling or Sampling.greedy(), len(fitted))
        found = generate_batch(
            self.model, [ids for _, ids in fitted], max_new_tokens=max_new_tokens, sampling=samplings,
            stop_ids=self.stop_ids, past_context="stop", max_batch=max_batch,
        )
        return [
            Answer(
                text="".join(self._text(tokens)), finish="stop" if tokens[-1].finish == "stop" else "length",
                n_prompt=len(ids), n_tokens=len(tokens), n_dropped=len(whole.messages) - len(seen.messages),
            )
            for whole, (seen, ids), tokens in zip(conversations, fitted, found, strict=True)
        ]

    def save(
        self,
        folder: Path | str,
        *,
        provenance: Mapping[str, Any] | None = None,
        extra: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write a checkpoint directory that knows its template and tokenizer; return ``folder``.

        ``provenance`` is what else there is to tell, ``extra`` as in ``gpt_core.save_checkpoint``, whose errors it
        raises: whole or not at all. LoRA is saved merged into the weights, and goes on unmerged.
        """
        return save_finetuned(
            folder, self.model, tokenizer=self.tokenizer, provenance=provenance, extra=extra,
            known={"chat_template": self.template.to_dict(), "unlearned_ids": sorted(self.new_ids)},
        )

    def _text(self, tokens: list[GeneratedToken]) -> Iterator[str]:
        return decode_stream(tokens, self.tokenizer)


def load_chat_model(
    folder: Path | str,
    *,
    read_tokenizer: Callable[[str], SupportsChat],
    device: Any = "cpu",
) -> ChatModel:
    """Return the chat model that ``ChatModel.save`` wrote.

    ``read_tokenizer`` opens the checkpoint's tokenizer.json by its path: gpt_tokenizer's ``get_tokenizer`` does.
    Raises DataError if the checkpoint is none of a chat model (no template, no tokenizer), CheckpointError if it is
    damaged.
    """
    checkpoint = load_checkpoint(folder, device=device)
    where, known = checkpoint.folder, checkpoint.provenance
    if checkpoint.tokenizer_file is None:
        raise DataError(f"{where} holds no tokenizer.json, so no text can be read; save it with its tokenizer")
    if "chat_template" not in known:
        raise DataError(
            f"{where} names no chat template: it holds a model that was not taught to answer; finetune it with "
            "train_chat, or make a chat model of it with ChatModel.from_base")
    try:
        tokenizer = read_tokenizer(str(checkpoint.tokenizer_file))
        chat = ChatModel(checkpoint.model, tokenizer, template=ChatTemplate.from_dict(known["chat_template"]))
        chat.new_ids = frozenset(known.get("unlearned_ids", ()))
        return chat
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} cannot be used as a chat model: {error}") from error


def _samplings(sampling: Sampling, n: int) -> list[Sampling]:
    """Return one sampling a conversation, each with a seed of its own: equal seeds would draw equal numbers."""
    if sampling.seed is None:
        return [sampling] * n
    seeds = [random.Random(f"{sampling.seed}/{place}").getrandbits(63) for place in range(n)]
    return [dataclasses.replace(sampling, seed=seed) for seed in seeds]
