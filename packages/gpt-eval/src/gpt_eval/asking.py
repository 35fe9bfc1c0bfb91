"""Questions put to a judge one by one: remembered, tried again, and given up when nobody answers any more."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt_eval.judge import Judge, JudgeError, Reply
from gpt_eval.judge_cache import ReplyCache, reply_key
from gpt_eval.scores import Question, json_object

_LONGEST_BACKOFF = 30.0
_LONGEST_WAIT = 120.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to go on with a judge that gives no replies."""

    retries: int = 2
    """Further tries of a question, where another try may help."""

    backoff: float = 1.0
    """Seconds before the first of them, doubled for each next one up to 30; the server's own wish goes before."""

    stop_after: int = 5
    """Questions failed one after another, after which no further one is asked; refused ones do not count."""

    def __post_init__(self) -> None:
        if self.retries < 0 or not 0 <= self.backoff < float("inf") or self.stop_after < 1:
            raise ValueError(
                f"retries and backoff must be 0 or above and stop_after 1 or above, got {self.retries}, {self.backoff} "
                f"and {self.stop_after}; 2, 1 and 5 are usual"
            )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What came of a question: exactly one of ``scored``, ``unparsed`` and ``failed``."""

    outcome: Literal["scored", "unparsed", "failed"]
    value: int | str | None = None
    """The score or verdict; None unless scored."""

    reason: str | None = None
    """Why there is no value."""

    reply: Reply | None = None
    """What the judge said; None where it was not asked or said nothing."""

    source: Literal["judge", "cache", "rule", "none"] = "judge"
    """Who answered: the judge now, the judge before, a rule without the judge, or nobody, not being asked any more."""


class Questions:
    """Asks ``judge``, at most once for each key. A context manager: it holds the cache file open.

    A reply that could not be read, and a question that failed, are asked again by the next process, not by this one.
    """

    def __init__(self, judge: Judge, *, cache: Path | None = None, patience: Patience | None = None) -> None:
        """Read the cache; errors are those of ``ReplyCache``."""
        self._judge = judge
        self._patience = patience or Patience()
        self._cache = ReplyCache(cache)
        self._asked: dict[str, Asked] = {}
        self._n_failed = 0  # one after another
        self._last_failure = ""

    def __enter__(self) -> "Questions":
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.close()

    def ask(self, question: Question) -> Asked:
        """Return what came of the question; a JudgeError is one thing that may. Raises OSError if the cache is full."""
        key = reply_key(self._judge.settings, question.key)
        if key in self._asked:
            return self._asked[key]
        kept = self._cache[key]
        if kept is not None:
            found = _read(kept, question, source="cache")
            if found.outcome == "scored":
                self._asked[key] = found
                return found
        if self._n_failed >= self._patience.stop_after:
            reason = f"not asked: the {self._n_failed} questions before failed, at last because {self._last_failure}"
            return Asked(outcome="failed", reason=reason, source="none")
        asked = self._asked[key] = self._ask_judge(key, question)
        return asked

    def _ask_judge(self, key: str, question: Question) -> Asked:
        try:
            reply = self._reply(question)
        except JudgeError as error:
            if error.kind != "question":  # a text too long says nothing about the judge
                self._n_failed += 1
                self._last_failure = str(error)
            self._cache.keep_failure(key, str(error))
            return Asked(outcome="failed", reason=str(error))
        self._n_failed = 0
        asked = _read(reply, question, source="judge")
        self._cache.keep(key, reply, value=asked.value, reason=asked.reason)
        return asked

    def _reply(self, question: Question) -> Reply:
        for attempt in range(self._patience.retries + 1):
            try:
                return self._judge.ask(question.messages, schema=question.schema)
            except JudgeError as error:
                wait = error.wait
                if wait is None:
                    wait = min(self._patience.backoff * 2**attempt, _LONGEST_BACKOFF)
                if not error.is_retryable or attempt == self._patience.retries or wait > _LONGEST_WAIT:
                    raise
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _read(reply: Reply, question: Question, *, source: Literal["judge", "cache"]) -> Asked:
    try:
        # After a whole object some models send white space up to the limit; any other text may lack its last digit.
        if reply.is_reply_cut and json_object(reply.text) is None:
            raise ValueError("the reply was cut at the limit of its length")
        value = question.parse(reply.text)
    except ValueError as error:
        return Asked(outcome="unparsed", reason=str(error), reply=reply, source=source)
    return Asked(outcome="scored", value=value, reply=reply, source=source)
