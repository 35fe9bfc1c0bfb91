"""``gpt-eval harness``: tasks of EleutherAI's evaluation harness on a checkpoint's model."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_eval.commands.model_options import add_model_arguments, device_of, whole
from gpt_eval.commands.report_options import add_report_arguments, give_report, prepare_out
from gpt_eval.figures import EvalReport, Figure
from gpt_eval.intervals import Measured, undefined
from gpt_eval.provenance import installed_versions

SUMMARY = "Run tasks of lm-eval on a checkpoint's model; the numbers and standard errors are lm-eval's own."
_Z = 1.959963984540054  # the normal distribution's quantile for 95 %
# Those of lm-eval's metrics that are shares in every task; f1 and mcc are not, and bleu goes to 100.
_SHARES = frozenset({"acc", "acc_all", "acc_bytes", "acc_mutual_info", "acc_norm", "em", "exact_match"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("--tasks", required=True, metavar="A,B", help="names of tasks; * stands for anything")
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="a folder with tasks of your own")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="only the first N documents of each task")
    parser.add_argument("--num-fewshot", type=whole(0), metavar="N", help="examples before a question (the task's own)")
    parser.add_argument("--batch-size", type=whole(1), default=8, help="requests computed together (8)")
    parser.add_argument("--max-gen-toks", type=whole(1), default=256, help="tokens of an answer if no task says (256)")
    parser.add_argument("--seed", type=whole(0), default=1234, help="of examples and draws (1234, as lm-eval has it)")
    add_report_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the tasks, print the report and save it if asked; return the exit code."""
    names = [name for name in options.tasks.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError("--tasks names no task; give some, separated by commas")
    if options.include_path is not None and not options.include_path.is_dir():
        raise argparse.ArgumentTypeError(f"--include-path {options.include_path} is no folder; give one with tasks")
    from gpt_eval.harness import GPTLM  # first: it says how to install what is missing

    device = device_of(options)
    own_tasks = None if options.include_path is None else str(options.include_path)
    from lm_eval import simple_evaluate  # type: ignore[import-untyped]
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    manager = TaskManager(include_path=own_tasks)
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise ValueError(f"lm-eval knows no task {unknown[0]!r}; see its list, or give --include-path with yours")
    prepare_out(options)
    model = GPTLM.from_checkpoint(
        options.checkpoint, device=device, batch_size=options.batch_size, max_gen_toks=options.max_gen_toks
    )
    seeds = dict.fromkeys(
        ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), options.seed
    )
    results = simple_evaluate(
        model=model, tasks=manager.match_tasks(names), limit=options.limit, num_fewshot=options.num_fewshot,
        task_manager=manager, log_samples=False, **seeds,
    )  # fmt: skip
    report = harness_report(results, {
        **model.facts, "seed": options.seed, "limit": options.limit, "n_truncated": model.n_truncated,
        "versions": installed_versions("gpt-eval", "gpt-core", "torch", "tokenizers", "lm-eval"),
    })  # fmt: skip
    give_report(report, options)
    return 0


def harness_report(results: Mapping[str, Any], facts: Mapping[str, Any]) -> EvalReport:
    """Return lm-eval's ``results`` as a report: a figure for each task's metric and filter.

    The interval is 1.96 of lm-eval's standard errors to both sides, that of a share cut at 0 and 1; ``n`` counts
    documents.
    """
    figures = []
    for task, found in results["results"].items():
        n = int(results.get("n-samples", {}).get(task, {}).get("effective", found.get("sample_len", 0)))
        shots, version = results.get("n-shot", {}).get(task), results.get("versions", {}).get(task)
        for key, value in found.items():
            metric, _, of_filter = key.partition(",")
            if not of_filter or metric.endswith("_stderr") or isinstance(value, bool | str):
                continue
            convention = f"lm-eval's {metric}, filter {of_filter}, {shots} shots, task version {version}"
            error = found.get(f"{metric}_stderr,{of_filter}")
            figures.append(Figure(f"{task}: {metric}", _measured(metric, float(value), error, n), convention))
    return EvalReport("Tasks of lm-eval", tuple(figures), facts)


def _measured(metric: str, value: float, error: Any, n: int) -> Measured:
    if not math.isfinite(value):
        return undefined(f"lm-eval found {value}", n=n)
    if not isinstance(error, float) or not math.isfinite(error):
        return Measured(value=value, low=None, high=None, n=n, method="no interval: lm-eval gives no standard error")
    if error == 0:  # all documents alike, or one
        return Measured(value=value, low=None, high=None, n=n, method="no interval: lm-eval's standard error is 0")
    low, high = value - _Z * error, value + _Z * error
    if metric in _SHARES and 0 <= value <= 1:
        low, high = max(0.0, low), min(1.0, high)
    return Measured(value=value, low=low, high=high, n=n, method="normal, lm-eval's standard error")
