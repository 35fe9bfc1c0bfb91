"""The book's functions of chapter 7, under its names and with its arguments: a judge behind Ollama."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_eval.exchange import Limits
from gpt_eval.ollama import OllamaJudge
from gpt_eval.scores import alpaca_prompt, book_prompt, parse_score

_URL = "http://localhost:11434/api/chat"


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
    raise JudgeError, as does a server that cannot be reached.
    """
    judge = OllamaJudge(model, url=url, num_ctx=2048, seed=123, limits=limits)
    return judge.ask([{"role": "user", "content": prompt}]).text


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

    One score an entry: where the reply has none, it is printed, as in the book, and None stands in its place, while the
    book's list would be shorter. An empty answer scores 0 without asking. The prompt is the book's; ``judge_answers``
    has one that answers cannot talk to, retries and a cache. Raises JudgeError as soon as a reply does not come.
    """
    scores: list[int | None] = []
    for number, entry in enumerate(json_data, start=1):
        if not entry[json_key].strip():
            scores.append(0)
            continue
        prompt = book_prompt(format_input(entry), entry["output"], entry[json_key])
        reply = query_model(prompt, model, url, limits=limits)
        try:
            scores.append(parse_score(reply))
        except ValueError as error:
            print(f"Entry {number} has no score: {error}: {reply[:200]!r}")
            scores.append(None)
    return scores
