"""A judge behind Ollama's API (POST /api/chat), with what Ollama does silently made known."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_eval.address import ollama_address
from gpt_eval.exchange import Limits, excerpt, post_json, refusal, said_in
from gpt_eval.judge import JudgeError, Message, Reply

_MOST_BYTES_A_TOKEN = 6  # in the mean over a prompt: English takes 4 to 5, other languages and code less


class OllamaJudge:
    """A model of an Ollama server, asked with temperature 0 and a seed.

    The reply is streamed: a server that has died is then noticed after ``limits.silence``, and one that is merely
    slow is not taken for dead.

    Ollama cuts a prompt that is longer than ``num_ctx``. Servers that know ``truncate`` refuse instead, being asked
    to. Of others a prompt counts as cut where they report (``prompt_eval_count``) at least num_ctx - 1 tokens of it, or
    at least half of num_ctx with more than 6 bytes of text a token (old servers cut to between a half and the whole),
    or where it has more than 6 bytes for each token of num_ctx. A count alone says little: old servers leave out what
    they have in their cache.
    """

    def __init__(
        self,
        model: str = "llama3",
        *,
        url: str | None = None,
        num_ctx: int = 4096,
        num_predict: int = 1024,
        seed: int = 123,
        limits: Limits | None = None,
    ) -> None:
        """Keep the settings; no request is made.

        ``url`` None is OLLAMA_HOST, or else 127.0.0.1:11434. ``num_ctx`` and ``num_predict`` are the tokens of prompt
        with reply, and of the reply. Raises ValueError for what is no address.
        """
        if num_ctx < 1 or num_predict < 1:
            raise ValueError(f"num_ctx and num_predict must be 1 or above, got {num_ctx} and {num_predict}")
        self._address = ollama_address(url)
        self._model = model
        self._options = {"seed": seed, "temperature": 0, "num_ctx": num_ctx, "num_predict": num_predict}
        self._limits = limits or Limits()

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model's name and options."""
        return {"api": "ollama", "model": self._model, **self._options}

    @property
    def place(self) -> str:
        """The server's scheme, host and port."""
        return str(self._address)

    def ask(self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None) -> Reply:
        """Return the reply to ``messages``; ``schema`` becomes Ollama's ``format``. Raises JudgeError without one."""
        body = {
            "model": self._model, "messages": list(messages), "stream": True, "truncate": False, "shift": False,
            "options": self._options, **({} if schema is None else {"format": schema}),
        }
        answer = post_json(self._address, "/api/chat", body, headers={}, secrets=(), limits=self._limits)
        if answer.status != 200:
            raise refusal(self._address, answer)
        return self._reply(answer.text, n_bytes=sum(len(_utf8(message["content"])) for message in messages))

    def _reply(self, text: str, *, n_bytes: int) -> Reply:
        pieces: list[str] = []
        for line in filter(str.strip, text.split("\n")):
            told = self._object(line)
            if "error" in told:
                message = f"{self.place} tells an error: {said_in(line)}"
                raise JudgeError(message, kind="http", is_retryable=True)
            content = (told.get("message") or {}).get("content", "")
            if not isinstance(content, str):
                raise self._malformed(f"a message whose content is no text: {excerpt(line)}")
            pieces.append(content)
            if told.get("done") is True:
                n_tokens = told.get("prompt_eval_count")
                n_tokens = n_tokens if isinstance(n_tokens, int) else None
                return Reply(
                    text="".join(pieces),
                    model=excerpt(str(told.get("model", self._model))),
                    n_prompt_tokens=n_tokens,
                    is_prompt_cut=is_prompt_cut(n_tokens, n_bytes=n_bytes, num_ctx=self._options["num_ctx"]),
                    is_reply_cut=told.get("done_reason") == "length",
                )
        raise self._malformed("an answer that ends before its last line, which would say done")

    def _object(self, line: str) -> dict[str, Any]:
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict) or not isinstance(told.get("message", {}), dict):
            raise self._malformed(f"what is not Ollama's protocol: {said_in(line)}")
        return told

    def _malformed(self, what: str) -> JudgeError:
        # Worth another try: pages and cuts are what a proxy gives while the server behind it starts anew.
        return JudgeError(f"{self.place} sends {what}", kind="malformed", is_retryable=True)


def is_prompt_cut(n_tokens: int | None, *, n_bytes: int, num_ctx: int) -> bool:
    """Whether Ollama has cut a prompt of ``n_bytes``, by the rule that ``OllamaJudge`` states."""
    n = n_tokens or 0
    return (
        n >= num_ctx - 1
        or (n >= num_ctx // 2 and n_bytes > _MOST_BYTES_A_TOKEN * n)
        or n_bytes > _MOST_BYTES_A_TOKEN * num_ctx
    )


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")
