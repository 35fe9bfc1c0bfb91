"""``gpt-eval judge``: scores of a model's answers by a judge, with what is missing counted and bounded."""

import argparse
from itertools import chain
from pathlib import Path

from gpt_eval.answers_file import read_answers
from gpt_eval.canaries import CANARIES
from gpt_eval.commands.judge_options import add_judge_arguments, exit_code, judge_of, patience_of, shown
from gpt_eval.commands.report_options import give_report, prepare_out
from gpt_eval.judge_report import is_as_expected, judge_report
from gpt_eval.judging import judge_answers
from gpt_eval.terminal import say

SUMMARY = "Let a judge behind Ollama's or OpenAI's API score a model's answers from 0 to 100."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("answers", type=Path, help="JSON array or .jsonl of instruction, input, output and answer")
    parser.add_argument("--key", default="model_response", help="what the answer is called there (model_response)")
    add_judge_arguments(parser)
    parser.add_argument("--prompt", choices=("fenced", "book"), default="fenced", help="the wording (fenced)")
    parser.add_argument("--no-canaries", action="store_true", help="leave out the twelve items whose scores are known")
    parser.add_argument("--checkpoint", type=Path, help="the checkpoint that answered: its hash is reported")


def run(options: argparse.Namespace) -> int:
    """Judge the file's answers and print the report; return the exit code."""
    judge, patience = judge_of(options), patience_of(options)
    items = read_answers(options.answers, key=options.key)
    facts = {"answers": options.answers.name, "key": options.key}
    if options.checkpoint is not None:
        from gpt_eval.provenance import checkpoint_facts

        facts |= checkpoint_facts(options.checkpoint)
    prepare_out(options)
    canaries = () if options.no_canaries else CANARIES
    # Canaries come first and in the same sequence: so a judge who is away is not waited for twice.
    every = chain((canary.item for canary in canaries), items)
    total = len(canaries) + len(items)
    judged = list(shown(
        judge_answers(every, judge, cache=options.cache, patience=patience, prompt=options.prompt),
        total=total, what="judged",
    ))  # fmt: skip
    of_canaries, judged = list(zip(canaries, judged, strict=False)), judged[len(canaries) :]
    report = judge_report(
        judged, judge, prompt=options.prompt, canaries=of_canaries, facts=facts, seed=options.seed
    )
    give_report(report, options)
    strange = [canary.name for canary, one in of_canaries if one.score is not None and not is_as_expected(canary, one)]
    if strange:
        say(f"gpt-eval: warning: the judge scores {len(strange)} canaries as it should not: {', '.join(strange)}")
    n_missing = sum(one.score is None for one in judged)
    return exit_code(
        [one.asked for one in judged], n_missing=n_missing, total=len(judged), options=options,
        besides=[one.asked for _, one in of_canaries],
    )  # fmt: skip
