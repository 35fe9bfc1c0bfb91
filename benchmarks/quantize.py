"""What smaller weights cost: validation loss, perplexity and kept tokens of a trained model, quantized.

    uv run gpt-pretrain --out RUN                 # trains the recipe "quick", or any other
    uv run python benchmarks/quantize.py --run RUN

Forms of one trained checkpoint: float32 (the model itself), the three of ``gpt_core.quantize``, and torch's own dynamic
quantisation (int8 weights and 8-bit activations with one scale a batch). The loss is that of the run's held-out
text, all of it or the first ``--tokens``. "keeps" is the mean number of greedy tokens, of 64, before the first that is
not the float32 model's, over 40 prompts of 16 held-out tokens; "agrees" the share of held-out positions where the most
probable token is the float32 model's.

Results go to ``benchmarks/results``: quantize.md and .png.
"""

import argparse
import copy
import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

N_PROMPTS, PROMPT, N_NEW = 40, 16, 64


def make_forms(model: Any) -> dict[str, tuple[Any, Callable[[list[int]], list[int]]]]:
    """Return of each form something that maps ids (B, T) to logits, and a function from a prompt to an answer."""
    import torch

    from gpt_core import generate_tokens, quantize

    def answers(one: Any) -> Callable[[list[int]], list[int]]:
        return lambda prompt: [token.id for token in generate_tokens(one, prompt, max_new_tokens=N_NEW)]

    forms = {"float32": (model, answers(model))}
    for form in ("float32", "bfloat16", "int8"):
        quantized = quantize(model, form)
        forms[f"quantize, {form}"] = (quantized, answers(quantized))
    # By class name: torch swaps exact classes, and ours are subclasses that compute the same.
    plain = copy.deepcopy(model)
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Linear):
                twin = torch.nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                twin.load_state_dict(child.state_dict())
                setattr(module, name, twin)
    dynamic = torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear}, dtype=torch.qint8)
    forms["torch quantize_dynamic"] = (dynamic, answers(dynamic))
    return forms


def measure(run: Path, most_tokens: int) -> tuple[list[dict[str, Any]], str]:
    """Return a row a form, and a description of the run."""
    import torch

    from gpt_core import load_checkpoint
    from gpt_train import ShardDataset

    checkpoint = load_checkpoint(run)
    model, length = checkpoint.model, checkpoint.config.context_length
    held_out = ShardDataset(run / "data" / "val", n_vocab=checkpoint.config.vocab_size)
    windows = held_out.windows(batch_size=8, context_length=length)
    batches = [windows[i] for i in range(min(len(windows), max(1, most_tokens // (8 * length))))]
    flat = torch.cat([inputs.flatten() for inputs, _ in batches])
    places = torch.linspace(0, len(flat) - PROMPT, N_PROMPTS).long().tolist()
    prompts = [flat[place : place + PROMPT].tolist() for place in places]
    rows: list[dict[str, Any]] = []
    base_best: list[Any] = []
    base_answers: list[list[int]] = []
    for name, (form, answer) in make_forms(model).items():
        total, count, agreed, places_seen = 0.0, 0, 0, 0
        for number, (inputs, targets) in enumerate(batches):
            with torch.no_grad():
                logits = form(inputs).float()
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
            count += int((targets >= 0).sum())
            best = logits.argmax(dim=-1)
            if len(base_best) == number:
                base_best.append(best)
            agreed += int((best == base_best[number]).sum())
            places_seen += best.numel()
        found = [answer(prompt) for prompt in prompts]
        base_answers = base_answers or found
        kept = [next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), N_NEW)
                for x, y in zip(found, base_answers, strict=True)]
        loss = total / count
        rows.append({"form": name, "loss": loss, "perplexity": math.exp(loss), "agrees": agreed / places_seen,
                     "keeps": sum(kept) / len(kept)})
        print(rows[-1], file=sys.stderr)
    config = checkpoint.config
    return rows, (f"{config.n_layers} layers, {config.emb_dim} wide, vocabulary {config.vocab_size:,}; "
                  f"{rows and count:,} held-out tokens")


def main() -> int:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows, description = measure(options.run, options.tokens)
    import torch

    base = rows[0]
    lines = ["# What quantized weights cost", "",
             f"A trained model: {description}. Python {platform.python_version()}, torch {torch.__version__}.", "",
             "| form | loss, nats a token | more than float32 | perplexity | same best token | greedy tokens kept |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        lines.append(f"| {row['form']} | {row['loss']:.5f} | {row['loss'] - base['loss']:+.5f} | "
                     f"{row['perplexity'] / base['perplexity'] - 1:+.3%} | {row['agrees']:.2%} | {row['keeps']:.1f} |")
    text = "\n".join(lines) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "quantize.md").write_text(text, encoding="utf-8")
    print(text)
    plot(rows, options.out / "quantize.png")
    return 0


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the greedy tokens kept and the loss added."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), dpi=90, layout="constrained", sharey=True)
    names = [row["form"] for row in rows[1:]][::-1]
    axes[0].barh(names, [row["keeps"] for row in rows[1:]][::-1])
    axes[0].set_xlabel(f"greedy tokens kept, of {N_NEW}")
    axes[1].barh(names, [abs(row["loss"] - rows[0]["loss"]) for row in rows[1:]][::-1])
    axes[1].set_xlabel("change of the loss, nats a token")
    axes[1].set_xscale("log")
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
