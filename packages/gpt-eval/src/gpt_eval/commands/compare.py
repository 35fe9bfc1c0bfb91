"""``gpt-eval compare``: two models' answers to the same instructions, by their scores or by a judge who sees both."""

import argparse
import json
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from gpt_eval.answers_file import read_answers
from gpt_eval.asking import Asked
from gpt_eval.commands.judge_options import add_judge_arguments, exit_code, judge_of, patience_of, shown
from gpt_eval.comparison import (
    PAIR_VERSION,
    answer_pairs,
    compare_answers,
    compare_scores,
    summarize_comparison,
)
from gpt_eval.figures import JSON, EvalReport, Figure
from gpt_eval.intervals import Measured
from gpt_eval.judge import Judge
from gpt_eval.judging import judge_answers
from gpt_eval.scores import VERSIONS, JudgeItem
from gpt_eval.terminal import printable

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
    compare = _by_pairs if options.pairwise else _by_scores
    figures, told, asked, n_missing, total = compare(a, b, judge, options)
    facts: dict[str, JSON] = {
        "a": f"{options.a.name}, {options.key}",
        "b": f"{options.b.name}, {options.key_b or options.key}",
        "judge": dict(judge.settings),
        "judge at": judge.place,
        "bootstrap seed": options.seed,
        **told,
    }
    report = EvalReport("Two models' answers compared", tuple(figures), facts)
    if options.out is not None:
        report.save(options.out)
    print(json.dumps(report.to_dict()) if options.json else printable(report.to_markdown()), flush=True)
    return exit_code(asked, n_missing=n_missing, total=total, options=options)


_Outcome = tuple[list[Figure], dict[str, JSON], list[Asked], int, int]


def _by_scores(a: list[JudgeItem], b: list[JudgeItem], judge: Judge, options: argparse.Namespace) -> _Outcome:
    total = len(a) + len(b)
    judged = list(shown(
        judge_answers(chain(a, b), judge, cache=options.cache, patience=patience_of(options)),
        total=total, what="judged",
    ))  # fmt: skip
    found = compare_scores(judged[: len(a)], judged[len(a) :], seed=options.seed)
    figure = Figure("score of b minus score of a", found.difference, "points of 100; pairs in which both have a score")
    told: dict[str, JSON] = {"prompt": VERSIONS["fenced"], **_counts(asdict(found))}
    return [figure], told, [one.asked for one in judged], sum(one.score is None for one in judged), total


def _by_pairs(a: list[JudgeItem], b: list[JudgeItem], judge: Judge, options: argparse.Namespace) -> _Outcome:
    pairs, n_unpaired = answer_pairs(a, b)
    if not pairs:
        raise ValueError(f"{options.a} and {options.b} share no item; give answers to the same instructions")
    results = compare_answers(pairs, judge, cache=options.cache, patience=patience_of(options))
    compared = list(shown(results, total=len(pairs), what="compared"))
    found = summarize_comparison(compared)
    named: list[tuple[str, Measured, str]] = [
        ("pairs that b wins", found.win_rate, "share; asked in both orders, which must agree; a tie is half a win"),
        ("verdicts for the first place", found.first_place, "share of the verdicts that name a place; 0.5 is fair"),
    ]
    told: dict[str, JSON] = {"prompt": PAIR_VERSION, **_counts(asdict(found)), "n_unpaired": n_unpaired}
    asked = [one for pair in compared for one in (pair.first, pair.second)]
    return [Figure(*one) for one in named], told, asked, found.n_without_verdict, len(pairs)


def _counts(found: dict[str, JSON]) -> dict[str, JSON]:
    return {name: value for name, value in found.items() if name.startswith("n_")}
