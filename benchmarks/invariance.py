"""Does an answer depend on how it was computed? Random cases through the engine, against a plain loop over the model.

    uv run python benchmarks/invariance.py --cases 10000

A case is a random model (four shapes: GPT-2's, grouped heads with a window, rotary positions, one head) and up to six
prompts of random lengths, some longer than the context, each greedy or sampled with a seed of its own. The oracle reads
each prompt's whole window through the model's modules for every token: no cache, no batch, no engine. The engine
gets them joined at random times, read in random pieces, in batches of random size, with and without cache, with and
without drafts. What is counted is answers whose ids differ. float32 on the CPU; sums of different shapes may round
differently, so the largest difference of a reported log-probability is given too, and of an answer that differs the
log-probabilities of the two tokens: where they are one number to float32's precision, either is the best.

Results go to ``benchmarks/results``: invariance.md and .png.
"""

import argparse
import multiprocessing
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "GPT-2": {"n_heads": 4, "qkv_bias": True, "tie_weights": True},
    "grouped heads, window of 7": {"n_heads": 6, "n_kv_heads": 2, "sliding_window": 7},
    "rotary, RMSNorm": {"n_heads": 4, "positions": "rotary", "norm": "rmsnorm", "n_kv_heads": 1},
    "one head": {"n_heads": 1},
}
VOCABULARY, CONTEXT, WIDTH, LAYERS = 211, 24, 48, 2
WAYS = ("alone", "alone, without cache", "alone, in pieces", "in a batch", "in a batch, in pieces",
        "in a batch, with drafts", "in a batch, without cache")


def make_models() -> dict[str, Any]:
    """Return one random model a shape, in eval mode."""
    import torch

    from gpt_core import GPTModel

    torch.manual_seed(11)
    return {name: GPTModel({"vocab_size": VOCABULARY, "context_length": CONTEXT, "emb_dim": WIDTH, "n_layers": LAYERS,
                            **shape}).eval() for name, shape in SHAPES.items()}


def plain_loop(model: Any, prompt: list[int], n: int, sampling: Any) -> tuple[list[int], list[float]]:
    """Return the ids and their log-probabilities, each from the whole window through the modules."""
    import torch

    from gpt_core.sampling import next_token

    ids, logprobs = list(prompt), []
    generator = torch.Generator().manual_seed(sampling.seed)
    for _ in range(n):
        with torch.no_grad():
            logits = model(torch.tensor([ids[-CONTEXT:]]))[:, -1]
            chosen = int(next_token(logits, sampling=sampling, ids=torch.tensor([ids]), n_prompt=len(prompt),
                                    generator=generator))
        ids.append(chosen)
        logprobs.append(float(logits[0].log_softmax(dim=-1)[chosen]))
    return ids[len(prompt):], logprobs


def engine_run(model: Any, way: str, requests: list[tuple[list[int], int, Any]], chance: random.Random) -> list[Any]:
    """Return (ids, log-probabilities) of each request, computed in this way."""
    from gpt_core import Engine, PromptLookup

    max_batch = chance.randint(1, 6) if "batch" in way else 1
    drafter = PromptLookup(n_draft=chance.randint(1, 5), ngram=2) if "drafts" in way else None
    engine = Engine(model, max_batch=max_batch, use_cache="without cache" not in way, drafter=drafter)
    if "pieces" in way:
        engine._piece = chance.randint(1, 9)
    waiting, answers = list(enumerate(requests)), {}
    numbers: dict[int, int] = {}
    while waiting or not engine.is_idle:
        if waiting and (engine.is_idle or chance.random() < 0.4):
            number, (prompt, n, sampling) = waiting.pop(0)
            numbers[engine.add(prompt, max_new_tokens=n, sampling=sampling)] = number
            answers[number] = ([], [])
        for key, token in engine.step():
            answers[numbers[key]][0].append(token.id)
            answers[numbers[key]][1].append(token.logprob)
    return [answers[number] for number in range(len(requests))]


def run_cases(arguments: tuple[int, int]) -> tuple[dict[str, list[float]], list[str]]:
    """Run the cases with these numbers in this process; return counts a way, and a line for each differing answer."""
    import torch

    from gpt_core import Sampling

    torch.set_num_threads(1)
    models = make_models()
    counts: dict[str, list[float]] = {way: [0, 0, 0, 0.0] for way in WAYS}  # answers, differing, tokens, difference
    differing: list[str] = []
    for number in range(*arguments):
        chance = random.Random(number)
        model = models[chance.choice(list(models))]
        requests = []
        for _ in range(chance.randint(1, 6)):
            greedy = chance.random() < 0.5
            sampling = Sampling(
                temperature=0.0 if greedy else chance.uniform(0.3, 2.0), top_k=chance.choice([None, 10, 50]),
                top_p=chance.choice([1.0, 0.9]), repetition_penalty=chance.choice([1.0, 1.2]),
                seed=chance.randrange(2**63))
            length = chance.randint(1, CONTEXT + 4)
            prompt = [chance.randrange(VOCABULARY) for _ in range(length)]
            requests.append((prompt, chance.randint(1, 12), sampling))
        way = WAYS[number % len(WAYS)]
        oracle = [plain_loop(model, *request) for request in requests]
        found = engine_run(model, way, requests, chance)
        for (ids, logprobs), (other_ids, other_logprobs) in zip(oracle, found, strict=True):
            count = counts[way]
            count[0] += 1
            count[1] += ids != other_ids
            count[2] += len(ids)
            if ids == other_ids:
                difference = max(abs(a - b) for a, b in zip(logprobs, other_logprobs, strict=True))
                count[3] = max(count[3], difference)
            else:
                place = next(i for i, (a, b) in enumerate(zip(ids, other_ids, strict=True)) if a != b)
                differing.append(
                    f"Case {number}, {way}: token {place + 1} of {len(ids)} is {other_ids[place]} instead of "
                    f"{ids[place]}, log-probabilities {other_logprobs[place]:.7f} and {logprobs[place]:.7f}.")
    return counts, differing


def plot(total: dict[str, list[float]], path: Path) -> None:
    """Draw the largest rounding difference of each way of computing."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 2.6), dpi=90, layout="constrained")
    axis.barh(list(total)[::-1], [count[3] for count in total.values()][::-1])
    axis.set_xlabel("largest difference of a log-probability from the plain loop's, nats")
    figure.savefig(path)


def main() -> int:
    """Run the cases, print the table and write it; 1 if any answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    start, step = time.perf_counter(), 100
    parts = [(first, min(first + step, options.cases)) for first in range(0, options.cases, step)]
    total: dict[str, list[float]] = {way: [0, 0, 0, 0.0] for way in WAYS}
    told: list[str] = []
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for counts, differing_here in pool.imap_unordered(run_cases, parts):
            told += differing_here
            for way, count in counts.items():
                total[way] = [*(a + b for a, b in zip(total[way][:3], count[:3], strict=True)),
                              max(total[way][3], count[3])]
    import torch

    lines = ["# Invariance of generation", "",
             f"{options.cases:,} random cases, Python {platform.python_version()}, torch {torch.__version__}, float32, "
             f"CPU; {time.perf_counter() - start:.0f} s. Each answer against a plain loop over the model's modules.",
             "",
             "| computed | answers | tokens | answers that differ | largest difference of a log-probability |",
             "| --- | ---: | ---: | ---: | ---: |"]
    for way, (answers, differing, tokens, difference) in total.items():
        lines.append(f"| {way} | {answers:,} | {tokens:,} | {differing:,} | {difference:.1e} |")
    differing = sum(count[1] for count in total.values())
    lines.append(f"| all | {sum(c[0] for c in total.values()):,} | {sum(c[2] for c in total.values()):,} | "
                 f"{differing:,} | {max(c[3] for c in total.values()):.1e} |")
    options.out.mkdir(parents=True, exist_ok=True)
    if told:
        lines += ["", *told]
    text = "\n".join(lines) + "\n"
    (options.out / "invariance.md").write_text(text, encoding="utf-8")
    print(text)
    plot(total, options.out / "invariance.png")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
