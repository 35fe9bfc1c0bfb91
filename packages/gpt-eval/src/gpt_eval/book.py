"""The book's functions of chapter 7, under its names and with its arguments: a judge behind Ollama."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_eval.exchange import Limits
from gpt_eval.judge import JudgeError, Reply
from gpt_eval.ollama import OllamaJudge
from gpt_eval.scores import alpaca_prompt, book_prompt, parse_score

_URL = "http://localhost:11434/api/chat"
_CONTEXT = 2048  # the book's; the reply's limit, too, which is none: the prompt takes its part of the context


def check_if_running(process_name: str) -> bool:
    """Whether a process runs whose name holds ``process_name``. Needs psutil."""
    try:
        import psutil  # type: ignore[import-untyped]  # only this function needs it
    except ImportError as error:
        raise ImportError("check_if_running needs psutil: install 'gpt-eval[psutil]'") from error

    return any(process_name in (process.info["name"] or "") for process in psutil.process_iter(["name"]))


def query_model(prompt: str, model: str = "llama3", url: str = _URL, *, limits: Limits | None = None) -> str:
    """Return an Ollama model's reply to ``prompt``, with the book's seed, temperature and context.

    Unlike the book's, it does not take an error that the server tells, nor a reply that ends early, for the reply: both
    raise JudgeError, as do a prompt or a reply that the context cut, and a server that cannot be reached.
    """
    reply = _asked(prompt, model, url, limits)
    if (reason := _cut(reply)) is not None:
        raise JudgeError(reason, kind="question", is_retryable=False)
    return reply.text


def generate_model_scores(
    json_data: Sequence[Mapping[str, Any]],
    json_key: str,
    model: str = "llama3",
    *,
    url: str = _URL,
    limits: Limits | None = None,
    format_input: Callable[[Mapping[str, Any]], str] = alpaca_prompt,
) -> list[int | None]:
    """Return the judge's score of each entry's answer, which stands under ``json_key``.

    One score an entry: where the reply has none, or the context cut it or its prompt, it is printed, as in the book,
    and None stands in its place, while the book's list would be shorter. An empty answer scores 0 without asking. The
    prompt is the book's; ``judge_answers`` has one that answers cannot talk to, retries and a cache. Raises JudgeError
    as soon as a reply does not come.
    """
    scores: list[int | None] = []
    for number, entry in enumerate(json_data, start=1):
        if not entry[json_key].strip():
            scores.append(0)
            continue
        prompt = book_prompt(format_input(entry), entry["output"], entry[json_key])
        reply = _asked(prompt, model, url, limits)
        try:
            if (reason := _cut(reply)) is not None:
                raise ValueError(reason)
            scores.append(parse_score(reply.text))
        except ValueError as error:
            print(f"Entry {number} has no score: {error}: {reply.text[:200]!r}")
            scores.append(None)
    return scores


def _asked(prompt: str, model: str, url: str, limits: Limits | None) -> Reply:
    judge = OllamaJudge(model, url=url, num_ctx=_CONTEXT, num_predict=_CONTEXT, seed=123, limits=limits)
    return judge.ask([{"role": "user", "content": prompt}])


def _cut(reply: Reply) -> str | None:
    """Return the reason why a reply is no whole one to its prompt; None if it is."""
    if reply.is_prompt_cut:
        return f"the prompt was cut: it does not fit the context of {_CONTEXT:,} tokens; shorten it"
    if reply.is_reply_cut:
        return f"the reply was cut: with its prompt it does not fit the context of {_CONTEXT:,} tokens; shorten that"
    return None
