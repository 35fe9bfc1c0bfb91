"""How varied a model's answers are, and how much they repeat.

Sources: distinct-n, Li et al. 2016; seq-rep-n, Welleck et al. 2020, equation 10.
"""

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from gpt_eval.bootstrap import check_resampling, measure_by_percentiles, resampled_means
from gpt_eval.figures import JSON, EvalReport, Figure
from gpt_eval.intervals import Measured, check_confidence, measure_proportion, undefined

Answer = Sequence[Hashable]
"""An answer's tokens or words, in order."""


def distinct_n(answers: Sequence[Answer], n: int) -> Measured:
    """Return how many different n-grams all answers hold, as a share of all their n-grams.

    There is no interval: the share falls as answers are added, so it compares only between as many answers of about
    the same length, and resampling answers, which repeats some, would push it down. ``Measured.n`` counts n-grams.
    Raises ValueError if ``n`` is below 1.
    """
    grams = [gram for answer in answers for gram in _grams(answer, n)]
    if not grams:
        return undefined(f"no answer has {n} tokens", n=0)
    reason = "no interval: the share depends on how many answers there are"
    return Measured(value=len(set(grams)) / len(grams), low=None, high=None, n=len(grams), method=reason)


def sequence_repetition(
    answers: Sequence[Answer], n: int, *, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> Measured:
    """Return seq-rep-n: the mean over answers of the share of an answer's n-grams that it has had before.

    0 for an answer without a repeated n-gram; an answer shorter than ``n`` has none and is left out. The interval is a
    bootstrap over answers. Raises ValueError if ``n`` is below 1, and for a bad ``confidence``, ``n_resamples`` or
    ``seed``.
    """
    check_confidence(confidence)
    check_resampling(n_resamples, seed)
    grams = [of for of in (_grams(answer, n) for answer in answers) if of]
    if not grams:
        return undefined(f"no answer has {n} tokens", n=0)
    shares = np.array([1 - len(set(of)) / len(of) for of in grams])
    if len(shares) == 1:
        reason = "no interval: one answer shows no scatter"
        return Measured(value=float(shares[0]), low=None, high=None, n=1, method=reason)
    resampled = resampled_means(shares[:, None], n_resamples=n_resamples, seed=seed)[:, 0]
    return measure_by_percentiles(math.fsum(shares) / len(shares), resampled, n=len(shares), confidence=confidence)


def cut_share(are_cut: Sequence[bool], *, confidence: float = 0.95) -> Measured:
    """Return the share of answers that the length limit ended, with Wilson's interval.

    An answer that ended by itself has False: its ``finish`` was "stop", not "length".
    """
    if not are_cut:
        return undefined("there is no answer", n=0)
    return measure_proportion(sum(map(bool, are_cut)), len(are_cut), confidence)


def diversity_report(
    answers: Sequence[Answer],
    facts: Mapping[str, JSON],
    *,
    are_cut: Sequence[bool] | None = None,
    orders: Sequence[int] = (1, 2, 4),
    unit: str = "token",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> EvalReport:
    """Return distinct-n and seq-rep-n of the answers for each n of ``orders``, and how many were cut if that is known.

    ``unit`` names what an answer is a sequence of. Raises ValueError unless ``are_cut`` has one for each answer, and
    for what the single figures refuse.
    """
    if are_cut is not None and len(are_cut) != len(answers):
        raise ValueError(f"are_cut must have one for each of {len(answers)} answers, got {len(are_cut)}; pass all")
    figures = [
        Figure(f"distinct-{n}", distinct_n(answers, n), f"share of {n}-grams of {unit}s that differ, answers together")
        for n in orders
    ]
    for n in orders:
        repeated = sequence_repetition(answers, n, confidence=confidence, n_resamples=n_resamples, seed=seed)
        convention = f"share of an answer's {n}-grams of {unit}s that it has had before, mean over answers"
        figures.append(Figure(f"seq-rep-{n}", repeated, convention))
    if are_cut is not None:
        figures.append(Figure("cut answers", cut_share(are_cut, confidence=confidence), "ended by the length limit"))
    settings: dict[str, JSON] = {"n_answers": len(answers), "seed": seed, "n_resamples": n_resamples}
    return EvalReport("Diversity", tuple(figures), {**facts, **settings}, confidence)


def _grams(answer: Answer, n: int) -> list[tuple[Hashable, ...]]:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}; 1 to 4 are usual")
    if isinstance(answer, str):
        raise ValueError(f"an answer must be a list of tokens or words, got the text {answer[:40]!r}; split it first")
    return [tuple(answer[start : start + n]) for start in range(len(answer) - n + 1)]
