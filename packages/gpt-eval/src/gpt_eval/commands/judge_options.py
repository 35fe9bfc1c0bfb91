"""What ``gpt-eval judge`` and ``gpt-eval compare`` share: how to reach a judge, how long to wait, how much may fail."""

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from gpt_eval.address import OPENAI
from gpt_eval.asking import Asked, Patience
from gpt_eval.commands.report_options import add_report_arguments
from gpt_eval.exchange import Limits
from gpt_eval.judge import Judge
from gpt_eval.ollama import OllamaJudge
from gpt_eval.openai_api import OpenAIJudge
from gpt_eval.terminal import say

_SECONDS_BETWEEN_LINES = 10.0
_One = TypeVar("_One")


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``judge_of``, ``patience_of`` and ``exit_code`` read, and --cache, --out and --json."""
    judge = parser.add_argument_group("the judge")
    judge.add_argument("--model", help="the judge's name at its server (llama3 at Ollama)")
    judge.add_argument("--openai", action="store_true", help="the server has OpenAI's API; the key is OPENAI_API_KEY")
    judge.add_argument(
        "--url",
        help="the server; else OLLAMA_HOST, else http://127.0.0.1:11434; "
        f"with --openai OPENAI_BASE_URL, else {OPENAI}",
    )
    judge.add_argument("--seed", type=int, default=123, help="the judge's, and the bootstrap's (123)")
    judge.add_argument("--num-ctx", type=int, default=4096, help="Ollama: tokens of prompt with reply (4096)")
    judge.add_argument("--max-tokens", type=int, default=1024, help="tokens of a reply (1024)")
    judge.add_argument("--timeout", type=float, default=300.0, help="seconds for a request in all (300)")
    judge.add_argument("--silence", type=float, default=120.0, help="seconds of a request without a byte (120)")
    judge.add_argument("--retries", type=int, default=2, help="further tries of a question (2)")
    judge.add_argument("--backoff", type=float, default=1.0, help="seconds before the first of them, then doubled (1)")
    judge.add_argument("--stop-after", type=int, default=5, help="failed questions in a row that end the asking (5)")
    parser.add_argument("--max-failed", type=share, default=0.05, help="share without a result that is let pass (5%%)")
    parser.add_argument("--cache", type=Path, help="a .jsonl file that keeps each reply; a later run asks the rest")
    add_report_arguments(parser)


def share(text: str) -> float:
    """Return "5%" or "0.05" as 0.05; raise ArgumentTypeError for what is no share."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give one such as 5% or 0.05")
    return value


def judge_of(options: argparse.Namespace) -> Judge:
    """Return the judge; raise ArgumentTypeError if an argument or the environment names none."""
    if options.seed < 0:
        raise argparse.ArgumentTypeError(f"--seed must be 0 or above, got {options.seed}")
    if options.openai and options.model is None:
        raise argparse.ArgumentTypeError("--openai names no judge; give --model with a name that its server knows")
    try:
        limits = Limits(total=options.timeout, silence=options.silence)
        if options.openai:
            return OpenAIJudge(
                options.model, url=options.url, max_tokens=options.max_tokens, seed=options.seed, limits=limits
            )
        return OllamaJudge(
            options.model or "llama3", url=options.url, num_ctx=options.num_ctx, num_predict=options.max_tokens,
            seed=options.seed, limits=limits,
        )  # fmt: skip
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def patience_of(options: argparse.Namespace) -> Patience:
    """Return the patience; raise ArgumentTypeError for numbers that are none."""
    try:
        return Patience(retries=options.retries, backoff=options.backoff, stop_after=options.stop_after)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def shown(results: Iterable[_One], *, total: int, what: str) -> Iterator[_One]:
    """Pass the results on and say on stderr how far they have come: first, last and every ten seconds."""
    started = last = time.monotonic()
    for n, result in enumerate(results, start=1):
        now = time.monotonic()
        if n in (1, total) or now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            say(f"{what} {n:,}/{total:,}  {(now - started) / n * (total - n):,.0f} s left")
        yield result


def exit_code(
    asked: Sequence[Asked], *, n_missing: int, total: int, options: argparse.Namespace, besides: Sequence[Asked] = ()
) -> int:
    """Return 0, or 1 where more than --max-failed has no result, or 4 where the judge never replied; say why.

    ``besides`` was asked in the same run, without being part of the result.
    """
    if not n_missing:
        return 0
    reason = next(one.reason for one in asked if one.reason is not None)
    say(f"gpt-eval: {n_missing:,} of {total:,} have no result; the first reason: {reason}")
    if options.cache is not None:
        say(f"gpt-eval: what was answered is kept in {options.cache}; the same command asks only for the rest")
    now = [one for one in (*besides, *asked) if one.source in ("judge", "none")]
    is_too_much = n_missing > options.max_failed * total
    if now and all(one.outcome == "failed" for one in now) and (is_too_much or n_missing == total):
        return 4
    return 1 if is_too_much else 0
