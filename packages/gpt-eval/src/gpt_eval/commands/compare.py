"""``gpt-eval compare``: two models' answers to the same instructions, by their scores or by a judge who sees both."""

import argparse
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from gpt_eval.answers_file import read_answers
from gpt_eval.asking import Asked
from gpt_eval.commands.judge_options import add_judge_arguments, exit_code, judge_of, patience_of, shown
from gpt_eval.commands.report_options import give_report, prepare_out
from gpt_eval.comparison import (
    PAIR_VERSION,
    answer_pairs,
    compare_answers,
    compare_scores,
    paired,
    summarize_comparison,
)
from gpt_eval.figures import JSON, EvalReport, Figure
from gpt_eval.judge import Judge
from gpt_eval.judge_report import judge_facts
from gpt_eval.judging import judge_answers
from gpt_eval.scores import VERSIONS, JudgeItem

SUMMARY = "Compare two models' answers to the same instructions: by a judge's scores, or by one who sees both."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("a", type=Path, help="answers of model a, as for gpt-eval judge")
    parser.add_argument("b", type=Path, help="answers of model b; may be the same file with another --key-b")
    parser.add_argument("--key", default="model_response", help="what a's answer is called (model_response)")
    parser.add_argument("--key-b", help="what b's answer is called (as --key)")
    parser.add_argument("--pairwise", action="store_true", help="the judge sees both answers, in both orders")
    add_judge_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Compare the two files' answers and print the report; return the exit code."""
    judge = judge_of(options)
    a = read_answers(options.a, key=options.key)
    b = read_answers(options.b, key=options.key_b or options.key)
    places, n_unpaired = paired(a, b)
    if not places:
        raise ValueError(f"{options.a} and {options.b} share no item; give answers to the same instructions")
    prepare_out(options)
    compare = _by_pairs if options.pairwise else _by_scores
    found = compare([a[i] for i, _ in places], [b[j] for _, j in places], judge, options)
    facts: dict[str, JSON] = {
        "a": f"{options.a.name}, {options.key}",
        "b": f"{options.b.name}, {options.key_b or options.key}",
        **judge_facts(found.asked, judge, prompt=found.prompt, seed=options.seed),
        **found.counts,
        "n_unpaired": n_unpaired,
    }
    give_report(EvalReport("Two models' answers compared", found.figures, facts), options)
    return exit_code(found.asked, n_missing=found.n_missing, total=found.total, options=options)


class _Found(NamedTuple):
    figures: tuple[Figure, ...]
    counts: dict[str, JSON]
    prompt: str
    asked: list[Asked]
    n_missing: int
    total: int


def _by_scores(a: list[JudgeItem], b: list[JudgeItem], judge: Judge, options: argparse.Namespace) -> _Found:
    total = len(a) + len(b)
    judged = list(shown(
        judge_answers(chain(a, b), judge, cache=options.cache, patience=patience_of(options)),
        total=total, what="judged",
    ))  # fmt: skip
    found = compare_scores(judged[: len(a)], judged[len(a) :], seed=options.seed)
    figure = Figure("score of b minus score of a", found.difference, "points of 100; pairs in which both have a score")
    return _Found(
        figures=(figure,), counts=_counts(asdict(found)), prompt=VERSIONS["fenced"],
        asked=[one.asked for one in judged], n_missing=sum(one.score is None for one in judged), total=total,
    )  # fmt: skip


def _by_pairs(a: list[JudgeItem], b: list[JudgeItem], judge: Judge, options: argparse.Namespace) -> _Found:
    pairs, _ = answer_pairs(a, b)
    results = compare_answers(pairs, judge, cache=options.cache, patience=patience_of(options))
    compared = list(shown(results, total=len(pairs), what="compared"))
    found = summarize_comparison(compared, seed=options.seed)
    wins = "share; asked in both orders, which must agree; a tie is half a win"
    first = "share of the verdicts that name a place, of pairs with both verdicts; 0.5 is fair; n counts pairs"
    return _Found(
        figures=(
            Figure("pairs that b wins", found.win_rate, wins),
            Figure("verdicts for the first place", found.first_place, first),
        ),
        counts=_counts(asdict(found)), prompt=PAIR_VERSION,
        asked=[one for pair in compared for one in (pair.first, pair.second)],
        n_missing=found.n_without_verdict, total=len(pairs),
    )  # fmt: skip


def _counts(found: dict[str, JSON]) -> dict[str, JSON]:
    return {name: value for name, value in found.items() if name.startswith("n_")}
