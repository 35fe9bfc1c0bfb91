"""``gpt-eval harness``: tasks of EleutherAI's evaluation harness on a checkpoint's model."""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_eval.figures import EvalReport, Figure
from gpt_eval.intervals import Measured, undefined
from gpt_eval.provenance import installed_versions
from gpt_eval.terminal import printable

SUMMARY = "Run tasks of lm-eval on a checkpoint's model; the numbers and standard errors are lm-eval's own."
_Z = 1.959963984540054  # the normal distribution's quantile for 95 %


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint directory, or a run with step-N in it")
    parser.add_argument("--tasks", required=True, metavar="A,B", help="names of tasks, separated by commas")
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="a folder with tasks of your own")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N documents of each task")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question (the task's own)")
    parser.add_argument("--batch-size", type=int, default=8, help="requests computed together (8)")
    parser.add_argument("--max-gen-toks", type=int, default=256, help="tokens of an answer if a task sets none (256)")
    parser.add_argument("--device", default="cpu", help="where to compute, as torch names it (cpu)")
    parser.add_argument("--seed", type=int, default=1234, help="of examples and draws (1234, as lm-eval has it)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--out", type=Path, metavar="PATH", help="save it: a folder, or a file that ends in .json")


def run(options: argparse.Namespace) -> int:
    """Run the tasks, print the report and save it if asked; return the exit code."""
    names = [name for name in options.tasks.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError("--tasks names no task; give some, separated by commas")
    if options.include_path is not None and not options.include_path.is_dir():
        raise argparse.ArgumentTypeError(f"--include-path {options.include_path} is no folder; give one with tasks")
    from gpt_eval.harness import GPTLM  # first: it says how to install what is missing

    own_tasks = None if options.include_path is None else str(options.include_path)
    from lm_eval import simple_evaluate  # type: ignore[import-untyped]
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    manager = TaskManager(include_path=own_tasks)
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise ValueError(f"lm-eval knows no task {unknown[0]!r}; see its list, or give --include-path with yours")
    model = GPTLM.from_checkpoint(
        options.checkpoint, device=options.device, batch_size=options.batch_size, max_gen_toks=options.max_gen_toks
    )
    seeds = dict.fromkeys(
        ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), options.seed
    )
    results = simple_evaluate(
        model=model, tasks=names, limit=options.limit, num_fewshot=options.num_fewshot, task_manager=manager,
        log_samples=False, **seeds,
    )
    report = harness_report(results, {
        **model.facts, "seed": options.seed, "limit": options.limit, "n_truncated": model.n_truncated,
        "versions": installed_versions("gpt-eval", "gpt-core", "torch", "tokenizers", "lm-eval"),
    })  # fmt: skip
    if options.out is not None:
        report.save(options.out)
    print(json.dumps(report.to_dict()) if options.json else printable(report.to_markdown()), flush=True)
    return 0


def harness_report(results: Mapping[str, Any], facts: Mapping[str, Any]) -> EvalReport:
    """Return lm-eval's ``results`` as a report: a figure for each task's metric and filter.

    The interval is 1.96 of lm-eval's standard errors to both sides; ``n`` counts documents.
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
            figures.append(Figure(f"{task}: {metric}", _measured(float(value), error, n), convention))
    return EvalReport("Tasks of lm-eval", tuple(figures), facts)


def _measured(value: float, error: Any, n: int) -> Measured:
    if not math.isfinite(value):
        return undefined(f"lm-eval found {value}", n=n)
    if not isinstance(error, float) or not math.isfinite(error):
        return Measured(value=value, low=None, high=None, n=n, method="no interval: lm-eval gives no standard error")
    method = "normal, lm-eval's standard error"
    return Measured(value=value, low=value - _Z * error, high=value + _Z * error, n=n, method=method)
