"""A judge behind OpenAI's API (POST /chat/completions), whoever's server speaks it."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_eval.address import OPENAI, openai_address
from gpt_eval.exchange import Answer, Limits, excerpt, post_json, refusal, said_in
from gpt_eval.judge import JudgeError, Message, Reply


class OpenAIJudge:
    """A model of a server with OpenAI's API, asked with temperature 0 and a seed.

    A schema goes along as ``response_format``. Where a server refuses a request with it (400 or 422), the request is
    sent once more without, and if that helps, no later one has it.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str | None = None,
        api_key: str | None = None,
        max_tokens: int = 1024,
        seed: int = 123,
        limits: Limits | None = None,
    ) -> None:
        """Keep the settings; no request is made.

        ``url`` None is OPENAI_BASE_URL, or else OpenAI's own; ``api_key`` None is OPENAI_API_KEY, which other servers
        may do without. Raises ValueError for what is no address or no key.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be 1 or above, got {max_tokens}")
        self._address = openai_address(url)
        self._key = (os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key).strip()
        if not self._key.isascii() or not self._key.isprintable() or " " in self._key:
            raise ValueError("the key (OPENAI_API_KEY) has a character that no key has; set it anew")
        if not self._key and self._address == openai_address(OPENAI):
            raise ValueError(f"{self._address} needs a key; set OPENAI_API_KEY, or OPENAI_BASE_URL for another server")
        self._model = model
        self._options = {"seed": seed, "temperature": 0, "max_tokens": max_tokens}
        self._limits = limits or Limits()
        self._takes_schema = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model's name and options."""
        return {"api": "openai", "model": self._model, **self._options}

    @property
    def place(self) -> str:
        """The server's scheme, host and port."""
        return str(self._address)

    def ask(self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None) -> Reply:
        """Return the reply to ``messages``; ``schema`` becomes ``response_format``. Raises JudgeError without one."""
        body = {"model": self._model, "messages": list(messages), "stream": False, **self._options}
        if schema is not None and self._takes_schema:
            named = {"name": "verdict", "strict": True, "schema": schema}
            answer = self._post({**body, "response_format": {"type": "json_schema", "json_schema": named}})
            if answer.status in (400, 422):
                without = self._post(body)
                self._takes_schema = without.status != 200
                if without.status == 200 or refusal(self._address, without).is_retryable:
                    answer = without
        else:
            answer = self._post(body)
        if answer.status != 200:
            raise refusal(self._address, answer)
        return self._reply(answer.text)

    def _post(self, body: Mapping[str, Any]) -> Answer:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return post_json(
            self._address, "/chat/completions", body, headers=headers, secrets=(self._key,), limits=self._limits
        )

    def _reply(self, text: str) -> Reply:
        try:
            told = json.loads(text)
            if told.get("error"):
                message = f"{self.place} tells an error: {said_in(text)}"
                raise JudgeError(message, kind="http", is_retryable=True)
            choice = told["choices"][0]
            content = choice["message"]["content"]
            if not isinstance(content, str | None):
                raise TypeError
            n_tokens = (told.get("usage") or {}).get("prompt_tokens")
            return Reply(
                text=content or "",
                model=excerpt(str(told.get("model", self._model))),
                n_prompt_tokens=n_tokens if isinstance(n_tokens, int) else None,
                is_reply_cut=choice.get("finish_reason") == "length",
            )
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            # Worth another try: pages and cuts are what a proxy gives while the server behind it starts anew.
            message = f"{self.place} sends what is not OpenAI's protocol: {said_in(text)}"
            raise JudgeError(message, kind="malformed", is_retryable=True) from None
