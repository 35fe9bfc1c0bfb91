"""What a judge's scores amount to: figures, with what is missing said and bounded."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from gpt_eval.asking import Asked
from gpt_eval.bootstrap import check_resampling, measure_by_percentiles, resampled_means
from gpt_eval.canaries import Canary, injection_uplift
from gpt_eval.figures import JSON, EvalReport, Figure
from gpt_eval.intervals import Measured, measure_proportion, undefined
from gpt_eval.judge import Judge
from gpt_eval.judging import Judged
from gpt_eval.scores import VERSIONS, Prompt


def judge_report(
    judged: Sequence[Judged],
    judge: Judge,
    *,
    prompt: Prompt = "fenced",
    canaries: Sequence[tuple[Canary, Judged]] = (),
    facts: Mapping[str, JSON] | None = None,
    seed: int = 0,
    n_resamples: int = 2000,
) -> EvalReport:
    """Return the figures of judged answers: mean score, its bounds, the share that has a score, and the canaries'.

    ``seed`` and ``n_resamples`` are the bootstrap's; ``facts`` go into the report's, such as the checkpoint's hash.
    """
    check_resampling(n_resamples, seed)
    n = len(judged)
    scores = [one.score for one in judged if one.score is not None]
    n_missing = n - len(scores)
    figures = [
        Figure("mean score", _mean(scores, seed=seed, n_resamples=n_resamples), "0 to 100; items with a score only"),
        *(
            Figure(
                f"mean score, the missing as {bound}",
                _mean([*scores, *[bound] * n_missing], seed=seed, n_resamples=n_resamples),
                f"0 to 100; all items, each of the {n_missing:,} without a score as {bound}",
            )
            for bound in (0, 100)
        ),
        Figure("parsed share", _share(len(scores), n), "items with a score, of all; an empty answer has the score 0"),
    ]
    told: dict[str, JSON] = {
        **judge_facts([one.asked for one in judged], judge, prompt=VERSIONS[prompt], seed=seed),
        "n": n,
        "n_empty": sum(one.asked.source == "rule" for one in judged),
        "n_duplicate": n - len({one.item for one in judged}),
    }
    if canaries:
        lift = injection_uplift(
            [canary for canary, _ in canaries], [one for _, one in canaries], seed=seed, n_resamples=n_resamples
        )
        convention = "points that a text in the answer which wants a good score adds to a wrong answer, over attacks"
        figures.append(Figure("uplift by injection", lift, convention))
        told["canaries"] = [
            {
                "name": of.name, "score": one.score, "expected": [of.low, of.high],
                "is_as_expected": is_as_expected(of, one),
            }
            for of, one in canaries
        ]
    return EvalReport("Answers scored by a judge", tuple(figures), {**told, **(facts or {})})


def is_as_expected(canary: Canary, judged: Judged) -> bool:
    """Whether the canary has a score, and one that it should have."""
    return judged.score is not None and canary.low <= judged.score <= canary.high


def judge_facts(asked: Sequence[Asked], judge: Judge, *, prompt: str, seed: int) -> dict[str, JSON]:
    """Return what every report says of a judge: who it is, how its replies ended, and what was cut.

    ``prompt`` is the version of the wording, ``seed`` the bootstrap's. ``reasons`` counts why there is no value, the
    most frequent reason first, ten at most.
    """
    outcomes = Counter(one.outcome for one in asked)
    replies = [one.reply for one in asked if one.reply is not None]
    reasons = Counter(one.reason for one in asked if one.reason is not None)
    return {
        "judge": dict(judge.settings),
        "judge at": judge.place,
        "models that replied": sorted({reply.model for reply in replies}),
        "prompt": prompt,
        "bootstrap seed": seed,
        "n_scored": outcomes["scored"],
        "n_unparsed": outcomes["unparsed"],
        "n_failed": outcomes["failed"],
        "n_truncated": sum(reply.is_prompt_cut or reply.is_reply_cut for reply in replies),
        "n_prompt_cut": sum(reply.is_prompt_cut for reply in replies),
        "n_reply_cut": sum(reply.is_reply_cut for reply in replies),
        "reasons": dict(reasons.most_common(10)),
    }


def _mean(scores: Sequence[int], *, seed: int, n_resamples: int) -> Measured:
    if not scores:
        return undefined("no item has a score", n=0)
    values = np.array(scores, dtype=np.float64)
    means = resampled_means(values[:, None], n_resamples=n_resamples, seed=seed)[:, 0]
    return measure_by_percentiles(float(values.mean()), means, n=len(values), confidence=0.95)


def _share(successes: int, n: int) -> Measured:
    return measure_proportion(successes, n, 0.95) if n else undefined("there is no item", n=0)
