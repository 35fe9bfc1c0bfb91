"""Judge a model honestly: each number with its count and its interval."""

import importlib
from typing import TYPE_CHECKING, Any

from gpt_eval.agreement import Agreement, measure_agreement
from gpt_eval.answers_file import read_answers
from gpt_eval.asking import Asked, Patience
from gpt_eval.book import check_if_running, generate_model_scores, query_model
from gpt_eval.canaries import CANARIES, Canary
from gpt_eval.classification import evaluate_classifier
from gpt_eval.comparison import (
    AnswerPair,
    Compared,
    PairComparison,
    ScoreComparison,
    answer_pairs,
    compare_answers,
    compare_scores,
    summarize_comparison,
)
from gpt_eval.diversity import cut_share, distinct_n, diversity_report, sequence_repetition
from gpt_eval.exchange import Limits
from gpt_eval.figures import EvalReport, Figure
from gpt_eval.intervals import Measured, summarize_runs, wilson_interval
from gpt_eval.judge import Judge, JudgeError, Reply
from gpt_eval.judge_report import judge_report
from gpt_eval.judging import Judged, judge_answers
from gpt_eval.markdown import markdown_cell
from gpt_eval.near_duplicates import find_near_duplicates
from gpt_eval.ollama import OllamaJudge
from gpt_eval.openai_api import OpenAIJudge
from gpt_eval.plot import plot_calibration, plot_confusion, plot_roc
from gpt_eval.provenance import checkpoint_facts, checkpoint_sha256, installed_versions
from gpt_eval.report import ClassificationReport, ClassScores
from gpt_eval.scores import JudgeItem, parse_score

if TYPE_CHECKING:
    from gpt_eval.harness import GPTLM
    from gpt_eval.text_perplexity import PerplexityReport, perplexity

__all__ = [
    "CANARIES",
    "GPTLM",
    "Agreement",
    "AnswerPair",
    "Asked",
    "Canary",
    "ClassScores",
    "ClassificationReport",
    "Compared",
    "EvalReport",
    "Figure",
    "Judge",
    "JudgeError",
    "JudgeItem",
    "Judged",
    "Limits",
    "Measured",
    "OllamaJudge",
    "OpenAIJudge",
    "PairComparison",
    "Patience",
    "PerplexityReport",
    "Reply",
    "ScoreComparison",
    "answer_pairs",
    "check_if_running",
    "checkpoint_facts",
    "checkpoint_sha256",
    "compare_answers",
    "compare_scores",
    "cut_share",
    "distinct_n",
    "diversity_report",
    "evaluate_classifier",
    "find_near_duplicates",
    "generate_model_scores",
    "installed_versions",
    "judge_answers",
    "judge_report",
    "markdown_cell",
    "measure_agreement",
    "parse_score",
    "perplexity",
    "plot_calibration",
    "plot_confusion",
    "plot_roc",
    "query_model",
    "read_answers",
    "sequence_repetition",
    "summarize_comparison",
    "summarize_runs",
    "wilson_interval",
]

# These need the extras model and lm-eval: their modules are imported when they are asked for.
_WITH_A_MODEL = {
    "GPTLM": "gpt_eval.harness",
    "PerplexityReport": "gpt_eval.text_perplexity",
    "perplexity": "gpt_eval.text_perplexity",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_A_MODEL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _WITH_A_MODEL[name]
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        extra = "lm-eval" if module == "gpt_eval.harness" else "model"
        raise ImportError(f"{name} needs what an extra brings: install 'gpt-eval[{extra}]'") from error
