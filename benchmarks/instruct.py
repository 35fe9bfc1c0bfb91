"""From raw text to a model that answers and stops: everything trained or LoRA, with time and memory.

    uv run python benchmarks/instruct.py --data instruction-data.json --text tinyshakespeare.txt  # a quarter of an hour

A small model is pretrained by gpt-pretrain on Python's documentation, Shakespeare's plays and the training part of the
instructions, as plain text; then it is finetuned in each way from the same weights, each way in a process of its own,
on the book's split of the instructions (935 to learn from, 55 to validate by, 110 to test on). Answers have at most 128
tokens, and are drawn in three ways. "124M": GPT-2's shape with random weights, a few steps on the same conversations,
for its time and memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peak_memory import peak_memory

from gpt_core import GPTModel, Sampling, gpt2_config, initialize_gpt2, load_checkpoint
from gpt_eval import (
    EvalReport,
    Figure,
    Measured,
    checkpoint_facts,
    diversity_report,
    installed_versions,
    wilson_interval,
)
from gpt_finetune import (
    ChatBatches,
    ChatConfig,
    ChatModel,
    Conversations,
    LoRAConfig,
    add_lora,
    chat_loss,
    encode_conversations,
    read_conversations,
    train_chat,
)
from gpt_tokenizer import get_tokenizer
from gpt_train import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "instruct"
WAYS = {
    "all": ChatConfig(epochs=4, batch_size=8, lr=1e-3),
    "LoRA, rank 16": ChatConfig(epochs=4, batch_size=8, lr=5e-3),
}
LARGE = ("all", "LoRA, rank 16")
MOST_TOKENS = 128
DRAWS = {
    "temperature 0.7": Sampling(temperature=0.7, seed=123),
    "greedy": Sampling.greedy(),
    "greedy, repetition penalty 1.2": Sampling(temperature=0.0, repetition_penalty=1.2),
}
PRETRAINING = (
    "--vocab-size", "2048", "--context-length", "256", "--emb-dim", "256", "--n-layers", "4", "--batch-size", "8",
    "--max-steps", "1000", "--eval-every", "250", "--save-every", "1000", "--lr", "1e-3",
)


def sides(data: Path) -> tuple[Conversations, Conversations, Conversations]:
    """Return the book's training, test and validation parts, in the file's order."""
    everything = read_conversations(data)
    n_train, n_test = int(len(everything) * 0.85), int(len(everything) * 0.1)
    ends = (0, n_train, n_train + n_test, len(everything))
    train, test, validation = (everything.select(range(a, b)) for a, b in pairwise(ends))
    return train, test, validation


def pretrain(train: Conversations, plays: Path, folder: Path) -> tuple[Path, float]:
    """Return the pretrained run and the seconds it took, start and imports included."""
    from pydoc_data.topics import topics

    texts = folder / "text"
    texts.mkdir()
    for name, text in topics.items():
        (texts / f"topic-{name.replace('/', '-')}.txt").write_text(text, encoding="utf-8")
    with (texts / "instructions.jsonl").open("w", encoding="utf-8") as file:
        for conversation in train:
            parts = [part for message in conversation.messages for part in (message.content, message.input) if part]
            file.write(json.dumps({"text": "\n".join(parts)}) + "\n")
    lines = plays.read_text(encoding="utf-8").splitlines(keepends=True)
    for start in range(0, len(lines), 1000):
        (texts / f"plays-{start}.txt").write_text("".join(lines[start : start + 1000]), encoding="utf-8")
    out = folder / "base"
    started = time.perf_counter()
    command = ["gpt-pretrain", "--data", str(texts), "--out", str(out), *PRETRAINING]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return out, time.perf_counter() - started


def prepare(model: GPTModel, way: str) -> None:
    """Say by ``requires_grad`` what is trained."""
    torch.manual_seed(0)
    if way.startswith("LoRA"):
        add_lora(model, LoRAConfig(rank=16, alpha=16))


def tune(base: Path, data: Path, way: str, out: Path) -> dict[str, Any]:
    """Finetune the base model in one way; return what was measured."""
    train, test, validation = sides(data)
    checkpoint = load_checkpoint(base)
    assert checkpoint.tokenizer_file is not None
    chat = ChatModel.from_base(checkpoint.model, get_tokenizer(checkpoint.tokenizer_file), template="alpaca")
    prepare(chat.model, way)
    examples, held_out = (encode_conversations(chat, side.conversations) for side in (train, validation))
    config = WAYS[way]
    before = chat_loss(chat, held_out)
    started, idle = time.perf_counter(), peak_memory()
    losses = [
        report.val_loss for report in train_chat(chat, examples, validation=held_out, config=config)
        if report.val_loss is not None
    ]
    seconds, peak = time.perf_counter() - started, peak_memory()
    chat.save(out, provenance={"seed": config.seed, "settings": asdict(config)})
    asked = [conversation.prompt for conversation in (*validation.conversations, *test.conversations)]
    n_validation = len(validation)
    answers = {
        name: chat.answer_all(asked, max_new_tokens=MOST_TOKENS, sampling=sampling) for name, sampling in DRAWS.items()
    }
    report_answers(out, {name: said[:n_validation] for name, said in answers.items()}, config)
    first = answers[next(iter(DRAWS))]
    right = [
        answer.text.strip() == conversation.answer.strip()
        for answer, conversation in zip(answers["greedy"], (*validation, *test), strict=True)
    ]
    return {
        "way": way, "n_trained": sum(p.numel() for p in chat.model.parameters() if p.requires_grad),
        "n_parameters": chat.model.n_parameters, "before": before, "losses": losses, "seconds": seconds,
        "idle": idle, "peak": peak,
        "padding": ChatBatches(examples, batch_size=config.batch_size, seed=config.seed).padding_share(),
        "examples": examples.report,
        "ended": {
            draw: [sum(of.finish == "stop" for of in part) for part in (said[:n_validation], said[n_validation:])]
            for draw, said in answers.items()
        },
        "right": sum(right),
        "shown": [
            {"question": asked[number].messages[-1].content, "input": asked[number].messages[-1].input,
             "answer": first[number].text} for number in range(4)
        ],
    }


def report_answers(checkpoint: Path, answers: dict[str, list[Any]], config: ChatConfig) -> None:
    """Write the report of the validation answers beside the results."""
    figures = []
    for draw, said in answers.items():
        n_ended = sum(answer.finish == "stop" for answer in said)
        low, high = wilson_interval(n_ended, len(said))
        ended = Measured(value=n_ended / len(said), low=low, high=high, n=len(said), method="Wilson")
        figures.append(Figure(
            f"answers that end by themselves, {draw}", ended, f"the template's end token within {MOST_TOKENS} tokens"))
    facts = {
        **checkpoint_facts(checkpoint), "training_seed": config.seed,
        **installed_versions("gpt-finetune", "gpt-core", "torch"),
    }
    first = next(iter(answers.values()))
    words = diversity_report([answer.text.split() for answer in first], facts, unit="word", seed=config.seed)
    name = checkpoint.name.replace(",", "").replace(" ", "-")
    EvalReport("Validation answers", (*figures, *words.figures), words.facts).save(
        RESULTS.with_name(f"instruct-{name}.json"))


def large(data: Path, way: str, n_steps: int) -> dict[str, Any]:
    """Return seconds a step and memory of GPT-2's shape."""
    model = GPTModel(gpt2_config("124M"))
    initialize_gpt2(model, seed=1)
    chat = ChatModel.from_base(model, get_tokenizer("gpt2"), template="alpaca")
    prepare(chat.model, way)
    conversations = sides(data)[0].conversations[: 4 * n_steps]
    examples = encode_conversations(chat, conversations)
    idle = peak_memory()
    steps = list(train_chat(chat, examples, config=ChatConfig(epochs=1, batch_size=4)))
    return {
        "way": way, "n_trained": sum(p.numel() for p in chat.model.parameters() if p.requires_grad),
        "step": statistics.median(report.seconds for report in steps[1:]), "idle": idle, "peak": peak_memory(),
    }


def in_own_process(*arguments: str) -> dict[str, Any]:
    """Run this script for one contender; return what it prints."""
    command = [sys.executable, __file__, *arguments]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    result: dict[str, Any] = json.loads(found.stdout)
    print(result, file=sys.stderr, flush=True)
    return result


def page(pretraining: float, rows: list[dict[str, Any]], large_rows: list[dict[str, Any]]) -> str:
    """Return the Markdown."""
    lines = ["# From raw text to a model that answers and stops", "", (__doc__ or "").strip(), "",
             f"Pretraining: {pretraining:.0f} s, {rows[0]['n_parameters']:,} parameters. {rows[0]['examples']}. "
             f"Padding: {100 * rows[0]['padding']:.1f} % of the tokens.", "",
             "| trained | parameters | s for 4 epochs | memory before, GiB | peak, GiB | validation loss before | "
             "after each epoch | equal to the reference, greedy |",
             "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |"]
    for row in rows:
        losses = ", ".join(f"{loss:.3f}" for loss in row["losses"])
        lines.append(
            f"| {row['way']} | {row['n_trained']:,} | {row['seconds']:.0f} | {row['idle'] / 2**30:.2f} | "
            f"{row['peak'] / 2**30:.2f} | {row['before']:.3f} | {losses} | {row['right']} of 165 |")
    lines += ["", "Losses are nats a token of the answers, their ends included; the weights of the lowest are kept.",
              "", "Answers that end by themselves:", "", "| trained | drawn | of 55 validation | of 110 test |",
              "| --- | --- | ---: | ---: |"]
    lines += [f"| {row['way']} | {draw} | {n[0]} | {n[1]} |" for row in rows for draw, n in row["ended"].items()]
    lines += ["", "What does not end repeats itself, the more so the less is drawn at random.",
              "", "## 124M", "",
              "| trained | parameters | s a step of 4 conversations | memory before, GiB | peak, GiB |",
              "| --- | ---: | ---: | ---: | ---: |"]
    for row in large_rows:
        lines.append(
            f"| {row['way']} | {row['n_trained']:,} | {row['step']:.2f} | {row['idle'] / 2**30:.2f} | "
            f"{row['peak'] / 2**30:.2f} |")
    lines += ["", "## What it says", "",
              "The first validation questions, everything trained, temperature 0.7. The quality is that of "
              f"{rows[0]['n_parameters']:,} parameters and some minutes of pretraining.", ""]
    for shown in rows[0]["shown"]:
        question = " ".join(f"{shown['question']} {shown['input']}".split())
        lines += [f"- {question}", f"  - {' '.join(shown['answer'].split()) or '(nothing)'}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run all and write the page; with --way run one contender and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--text", type=Path, help="plays to pretrain on, too")
    parser.add_argument("--steps", type=int, default=6, help="steps that 124M is timed on")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    keep_freed_memory()
    if options.way:
        result = (tune(options.base, options.data, options.way, options.out) if options.base else
                  large(options.data, options.way, options.steps))
        print(json.dumps(result))
        return 0
    if options.text is None:
        parser.error("--text is needed: the plays to pretrain on")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, pretraining = pretrain(sides(options.data)[0], options.text, folder)
        common = ("--data", str(options.data))
        rows = [in_own_process(*common, "--way", way, "--base", str(base), "--out", str(folder / way)) for way in WAYS]
        large_rows = [in_own_process(*common, "--way", way, "--steps", str(options.steps)) for way in LARGE]
    RESULTS.with_suffix(".md").write_text(page(pretraining, rows, large_rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
