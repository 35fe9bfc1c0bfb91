"""The time to choose a token from the logits, ours and transformers'; and 100,000 random samplings without a fault.

    uv run python benchmarks/sampling.py
    uv run python benchmarks/sampling.py --configurations 100000

The first measures ``gpt_core.sampling.next_token`` and transformers' logits processors with the same settings, as its
``generate`` calls them: a softmax and ``torch.multinomial`` at the end. Both take turns, token by token, in one process
(A B A B ...), on the same logits: medians count. The second makes samplings from the whole range of every field and
logits of every kind (ties, huge and tiny values, -inf), draws with them, and compares each draw with filters written
again in float64; it ends with the first fault. Either keeps the other's results.

Results go to ``benchmarks/results``: sampling.json, .md and .png.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_core import Sampling
from gpt_core.sampling import next_token, token_logprobs

VOCABULARIES = [4096, 50257, 128256]
N_PROMPT, N_ANSWER = 100, 100  # the tokens so far, which the penalties look at

PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5}
FILTERS = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.05}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "top_k 50": {"top_k": 50},
    "top_p 0.9": {"top_p": 0.9},
    "top_p 0.9, flat logits": {"top_p": 0.9},
    "min_p 0.05": {"min_p": 0.05},
    "repetition penalty": {"repetition_penalty": 1.2},
    "all three penalties": PENALTIES,
    "logit_bias of 10 ids": {"logit_bias": {i * 100: -100.0 for i in range(10)}},
    "all filters, repetition penalty": {**FILTERS, "repetition_penalty": 1.2},
    "all filters, all penalties": {**FILTERS, **PENALTIES},
}

Choose = Callable[[Tensor, Tensor], Tensor]


def ours(setting: dict[str, Any]) -> Choose:
    """Choose a token as ``generate_tokens`` does."""
    sampling = Sampling(**setting)
    return lambda logits, ids: next_token(logits, sampling=sampling, ids=ids, n_prompt=N_PROMPT)


def transformers_processors(setting: dict[str, Any]) -> Choose | None:
    """Choose a token as transformers' ``generate`` does; None where it has no such setting."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    if "presence_penalty" in setting:
        return None
    steps = LogitsProcessorList()
    if bias := setting.get("logit_bias"):
        steps.append(SequenceBiasLogitsProcessor({(i,): value for i, value in bias.items()}))
    makers = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor, "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    is_greedy = setting.get("temperature") == 0
    if not is_greedy:
        steps.extend(make(setting[name]) for name, make in makers.items() if name in setting)

    def choose(logits: Tensor, ids: Tensor) -> Tensor:
        scores = steps(ids, logits.to(copy=True, dtype=torch.float32))
        if is_greedy:
            return scores.argmax(dim=-1)
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)

    return choose


CONTENDERS: dict[str, Callable[[dict[str, Any]], Choose | None]] = {
    "ours": ours, "transformers": transformers_processors}


def some_logits(name: str, n_vocab: int, generator: torch.Generator) -> Tensor:
    """Return logits (1, V): Zipf's law, in which 0.9 of the probability is a few dozen tokens', or flat noise."""
    if "flat" in name:
        return torch.randn(1, n_vocab, generator=generator)
    ranks = torch.randperm(n_vocab, generator=generator) + 1
    return -1.5 * ranks.log()[None]


def measure(rounds: int) -> list[dict[str, Any]]:
    """Return the median milliseconds a token of each setting, vocabulary and contender."""
    rows = []
    for n_vocab in VOCABULARIES:
        for name, setting in SETTINGS.items():
            generator = torch.Generator().manual_seed(0)
            inputs = [some_logits(name, n_vocab, generator) for _ in range(8)]
            ids = torch.randint(n_vocab, (1, N_PROMPT + N_ANSWER), generator=generator)
            contenders = {who: choose for who, make in CONTENDERS.items() if (choose := make(setting)) is not None}
            seconds: dict[str, list[float]] = {who: [] for who in contenders}
            for n in range(rounds + 5):
                for who, choose in contenders.items():
                    start = time.perf_counter()
                    choose(inputs[n % 8], ids)
                    if n >= 5:
                        seconds[who].append(time.perf_counter() - start)
            medians = {who: round(statistics.median(found) * 1000, 4) for who, found in seconds.items()}
            rows.append({"vocabulary": n_vocab, "setting": name, **medians})
            print(rows[-1], file=sys.stderr)
    return rows


def check_configuration(number: int) -> Counter[str]:
    """Draw with the ``number``-th random sampling, compare with float64, and return what it was made of.

    Raises AssertionError for a draw that the filters forbid; whatever ``next_token`` raises is a fault, too.
    """
    dice = random.Random(number)
    generator = torch.Generator().manual_seed(number)
    B, V = dice.randint(1, 4), dice.choice([1, 2, 3, dice.randint(1, 300)])
    logits, kind = random_logits(dice, generator, B, V)
    T = dice.randint(0, 40)
    n_prompt = dice.randint(0, T)
    ids = torch.randint(V, (B, T), generator=generator) if dice.random() < 0.9 else None
    sampling = random_sampling(dice, V)
    forbidden: list[int] = []
    if dice.random() < 0.3:  # but never the first finite logit of a row, so that something is left
        spared = set((logits > -math.inf).int().argmax(dim=-1).tolist())
        forbidden = [i for i in dice.choices(range(V), k=dice.randint(0, V)) if i not in spared]
    chosen = next_token(
        logits, sampling=sampling, ids=ids, n_prompt=n_prompt, forbidden=forbidden, generator=generator)
    assert chosen.shape == (B,), number
    for row in range(B):
        history = None if ids is None else ids[row].tolist()
        fault = fault_of(int(chosen[row]), logits[row].tolist(), sampling, history, n_prompt, forbidden)
        assert fault is None, f"configuration {number}, row {row}: {fault}; {sampling}"
    n_top = dice.randint(0, 20)
    logprob, top = token_logprobs(logits[0], int(chosen[0]), n_top)
    assert logprob <= 0, number  # and so no NaN
    assert all(-math.inf < value <= 0 for _, value in top), number
    assert min(n_top, 1) <= len(top) <= n_top, number
    made = Counter({"draws": B, kind: 1})
    made["-inf"] = int(bool((logits == -math.inf).any()))
    for name in ("top_k", "top_p", "min_p", "repetition_penalty", "logit_bias"):
        made[name] = int(getattr(sampling, name) != getattr(Sampling(), name))
    made["greedy"], made["forbidden"] = int(sampling.temperature == 0), int(bool(forbidden))
    return made


def random_logits(dice: random.Random, generator: torch.Generator, B: int, V: int) -> tuple[Tensor, str]:
    """Return logits (B, V) of a random kind, and the kind's name; each row has at least one finite logit."""
    logits = torch.randn(B, V, generator=generator) * dice.choice([0.1, 1.0, 5.0])
    kind = dice.choice(["plain", "plain", "ties", "equal", "huge", "tiny", "extreme", "bfloat16"])
    most = torch.finfo(torch.float32).max
    if kind == "ties":
        logits = logits.round()
    elif kind == "equal":
        logits = torch.full((B, V), dice.choice([0.0, -7.5, most, -most]))
    elif kind == "huge":
        logits = logits * 10.0 ** dice.randint(3, 37)
    elif kind == "tiny":
        logits = logits * 10.0 ** -dice.randint(3, 44)
    elif kind == "extreme":
        values = torch.tensor([most, -most, 0.0, 1.0, -1.0, 1e-45, 3e38])
        logits = values[torch.randint(len(values), (B, V), generator=generator)]
    elif kind == "bfloat16":
        logits = logits.bfloat16()
    if dice.random() < 0.3:
        barred = torch.rand(B, V, generator=generator) < dice.choice([0.1, 0.9])
        barred[:, dice.randrange(V)] = False
        logits = logits.masked_fill(barred, -math.inf)
    return logits, kind


def random_sampling(dice: random.Random, V: int) -> Sampling:
    """Return a sampling in which each field is, half of the time, something from its whole allowed range."""

    def some(default: Any, *values: Any) -> Any:
        return dice.choice(values) if dice.random() < 0.5 else default

    def shift() -> float:
        return some(0.0, dice.uniform(-2, 2), -2.0, 2.0)

    size = dice.choice([1, 3, V])
    bias = {dice.randrange(V): dice.choice([-100.0, 100.0, dice.uniform(-100, 100)]) for _ in range(size)}
    return Sampling(
        temperature=some(1.0, 0.0, 5e-324, 1e-30, 1e-6, 1e6, 1e30, 1.7e308, dice.uniform(0.1, 3)),
        top_k=some(None, 1, dice.randint(1, V), V, 10**18),
        top_p=some(1.0, dice.uniform(1e-9, 1), 5e-324, 1e-30, 0.5, 1 - 2**-53, 0.9),
        min_p=some(0.0, dice.random(), 5e-324, 1.0, 0.05),
        repetition_penalty=some(1.0, dice.uniform(0.01, 100), 0.01, 100.0, 1.2),
        presence_penalty=shift(),
        frequency_penalty=shift(),
        logit_bias=some({}, bias),
    )


def fault_of(
    token: int, row: list[float], sampling: Sampling, ids: list[int] | None, n_prompt: int, forbidden: Sequence[int]
) -> str | None:
    """Return why ``token`` could not be drawn from a row of logits, in float64; None if it could.

    What float32 rounds is given the benefit of the doubt: each comparison allows for a few units of its last place.
    """
    most, unit = torch.finfo(torch.float32).max, 2.0**-21  # eight times float32's half a unit in the last place
    scores = list(row)
    for i, value in dict(sampling.logit_bias).items():
        scores[i] += value
    size = max(abs(x) for x in [*row, *scores] if x > -math.inf)
    if ids is not None:
        for i in set(ids):
            if scores[i] > -math.inf and sampling.repetition_penalty != 1:
                factor = sampling.repetition_penalty
                scores[i] = max(-most, min(most, scores[i] / factor if scores[i] > 0 else scores[i] * factor))
        for i, n in Counter(ids[n_prompt:]).items():
            scores[i] -= sampling.frequency_penalty * n + sampling.presence_penalty
    for i in forbidden:
        scores[i] = -math.inf
    size = max(size, *(abs(x) for x in scores if x > -math.inf), 1.0 if sampling.has_penalties else 0.0)
    doubt = size * unit + 1e-44
    mine, best = scores[token], max(scores)
    if mine == -math.inf:
        return "its logit is -inf"
    if sampling.temperature == 0:
        return None if mine >= best - doubt else "it is not the best"
    n_better = sum(x > mine + 2 * doubt for x in scores)
    if sampling.top_k is not None and n_better >= sampling.top_k:
        return f"{n_better} are better"
    # Beyond these limits a draw may be as at the limit.
    temperature = min(max(sampling.temperature, 1e-30), 1e30)
    below = [min((best - x) / temperature, 1e4) for x in scores]  # in nats, below the best
    doubt = doubt / temperature + 1e-5
    if below[token] - 2 * doubt > 104:  # float32's least number is e^-103.3
        return "its probability is 0 in float32"
    if sampling.min_p > 0 and below[token] - 2 * doubt > -math.log(sampling.min_p):
        return "its probability is below min_p of the best one's"
    # The least that the better ones can add up to: they are as improbable as they can be, the others as probable.
    factor = math.exp(min(doubt, 300))
    better = sum(math.exp(-x) / factor for x in below if x < below[token] - 2 * doubt)
    limit = math.inf if sampling.top_k is None else sorted(below)[min(sampling.top_k, len(below)) - 1] + 2 * doubt
    rest = sum(math.exp(-x) * factor for x in below if below[token] - 2 * doubt <= x <= limit)
    if better > 0 and better / (better + rest) > sampling.top_p + 1e-5:
        return "the better ones add up to more than top_p"
    return None


def check_configurations(n: int) -> dict[str, Any]:
    """Check the first ``n`` random samplings; return how many of them had what."""
    start, made = time.perf_counter(), Counter[str]()
    for number in range(n):
        made += check_configuration(number)
    return {"n": n, "seconds": round(time.perf_counter() - start), **made}


def as_table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = ["# Choosing a token", "",
             f"Python {report['python']}, {report['cores']} cores; "
             + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + "."]
    if "rows" in report:
        lines += ["", f"Milliseconds a token, batch 1, {N_PROMPT + N_ANSWER} tokens so far, median of "
                  f"{report['rounds']} in turns. The logits follow Zipf's law (exponent 1.5), in \"flat\" rows "
                  "they are normal with a deviation of 1. transformers has no presence and frequency penalties."]
        for n_vocab in VOCABULARIES:
            lines += ["", f"## Vocabulary of {n_vocab:,}", "",
                      "| setting | ours | transformers | ours of transformers |", "| --- | ---: | ---: | ---: |"]
            for row in report["rows"]:
                if row["vocabulary"] == n_vocab:
                    theirs, ratio = "", ""
                    if "transformers" in row:
                        theirs, ratio = f"{row['transformers']:.3f}", f"{row['ours'] / row['transformers']:.2f}"
                    lines.append(f"| {row['setting']} | {row['ours']:.3f} | {theirs} | {ratio} |")
    if "configurations" in report:
        found = report["configurations"]
        lines += ["", "## Random samplings", "",
                  f"{found['n']:,} samplings with random fields over their whole range, on random logits of 1 to 4 "
                  f"rows and 1 to 300 tokens: no exception, no NaN, and each of the {found['draws']:,} draws is one "
                  f"that the filters, written again in float64, allow ({found['seconds']} s). So many had", "",
                  "| what | samplings |", "| --- | ---: |",
                  *(f"| {name} | {found[name]:,} |" for name in sorted({*found} - {"n", "draws", "seconds"}))]
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the milliseconds as bars, a panel a vocabulary."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(VOCABULARIES), figsize=(10, 3.6), dpi=90, layout="constrained", sharey=True)
    for n_vocab, axis in zip(VOCABULARIES, axes, strict=True):
        rows = [row for row in report["rows"] if row["vocabulary"] == n_vocab][::-1]
        for shift, who in ((0.2, "ours"), (-0.2, "transformers")):
            places = [n + shift for n, row in enumerate(rows) if who in row]
            axis.barh(places, [row[who] for row in rows if who in row], height=0.4, label=who)
        axis.set_yticks(range(len(rows)), [row["setting"] for row in rows])
        axis.set_title(f"vocabulary of {n_vocab:,}")
        axis.set_xlabel("ms a token")
    axes[0].legend()
    figure.savefig(path)


def main() -> int:
    """Measure or check, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--configurations", type=int, help="check so many random samplings instead of measuring")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    file = options.out / "sampling.json"
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    report |= {"python": platform.python_version(), "cores": os.cpu_count(),
               "versions": {name: importlib.metadata.version(name) for name in ("gpt-core", "transformers", "torch")}}
    if options.configurations:
        report["configurations"] = check_configurations(options.configurations)
    else:
        report |= {"rounds": options.rounds, "rows": measure(options.rounds)}
        options.out.mkdir(parents=True, exist_ok=True)
        plot(report, options.out / "sampling.png")
    options.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "sampling.md").write_text(as_table(report), encoding="utf-8")
    print(as_table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
