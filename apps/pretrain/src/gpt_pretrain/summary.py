"""The end of a run: the loss curve, a README that says what was done, and the next command to type."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from gpt_pretrain.progress import say
from gpt_pretrain.run_folder import METRICS, PLOT, README, versions
from gpt_pretrain.text_out import command_line, printable
from gpt_train import plot_metrics, read_metrics

if TYPE_CHECKING:
    from gpt_pretrain.run import Run


def finish(run: Run, *, command: str) -> None:
    """Write loss.png and README.md (last: it marks a finished run), and print the next command to type."""
    metrics = read_metrics(run.folder / METRICS)
    plot_metrics(metrics, run.folder / PLOT)
    sample = run.sample() if run.config.sample_tokens else ""
    temporary = run.folder / f"{README}.tmp"
    temporary.write_text(readme(run, metrics, sample), encoding="utf-8", newline="\n")
    temporary.replace(run.folder / README)
    if sample:
        say(f"it writes: {sample}\n")
    say(f"the run is in {run.folder}: checkpoints, {METRICS}, {PLOT}, {README}; let it write:")
    say(f"  {sample_command_line(command, run)}")
    print(run.folder)


def sample_command_line(command: str, run: Run) -> str:
    """Return the command that lets the run write, started the way ``command`` was."""
    program = command[: command.index("gpt-pretrain") + len("gpt-pretrain")]
    prompt = run.prompt.strip()
    return command_line(program, "sample", str(run.folder), *([prompt] if prompt else []))


def readme(run: Run, metrics: list[dict[str, Any]], sample: str) -> str:
    """Return the run's README, as Markdown: data, losses, a sample, configuration, versions."""
    data, last = run.data.prepared, metrics[-1]
    loss = last["val/loss"]
    if loss is None:  # the log's word for what is not finite
        raise FloatingPointError(f"the validation loss is not finite after step {last['step']}")
    scored = [m for m in metrics if m.get("val/loss") is not None]
    best = min(scored, key=lambda m: m["val/loss"])
    n_epochs = run.state.tokens_seen / run.data.train.n_tokens
    rates = sorted(m["tok_per_s"] for m in metrics)
    losses = "\n".join(
        f"| {m['step']:,} | {m['tokens']:,} | {m['train/loss']:.3f} | {m['val/loss']:.3f} "
        f"| {run.validation.per_character(m['val/loss']):.3f} |"
        for m in scored
    )
    settings = "\n".join(f"| {name} | {_cell(value)} |" for name, value in run.settings.items())
    made_with = "\n".join(f"| {name} | {version} |" for name, version in versions().items())
    return f"""# A GPT trained by gpt-pretrain: {run.config.recipe}

{run.model.n_parameters:,} parameters, {run.state.step:,} steps, {run.state.tokens_seen:,} tokens
({n_epochs:.1f} passes over the training text), {rates[len(rates) // 2]:,.0f} tokens/s (median of the steps).
Validation loss **{loss:.4f} nats a token, {run.validation.per_character(loss):.4f} nats a character** at the
end (lowest: {best["val/loss"]:.4f} nats a token at step {best["step"]:,}).

    {sample_command_line("gpt-pretrain", run)}

## Data

Source: {data.source}. {data.characters:,} characters in {data.train.documents + data.val.documents:,} pieces,
sha256 `{data.sha256}`.

| | documents | characters | tokens |
| --- | ---: | ---: | ---: |
| training | {data.train.documents:,} | {data.train.characters:,} | {data.train.tokens:,} |
| validation | {data.val.documents:,} | {data.val.characters:,} | {data.val.tokens:,} |

Scored for the validation loss: {run.validation.n_tokens:,} tokens that spell {run.validation.n_characters:,}
characters. Nats a character are nats a token x tokens / characters: unlike nats a token they can be compared
between vocabularies. Tokenizer: {data.tokenizer}, {data.n_vocab:,} tokens, sha256 `{data.tokenizer_sha256}`.

## Losses

![loss]({PLOT})

| step | tokens | training | validation | validation, nats a character |
| ---: | ---: | ---: | ---: | ---: |
{losses}

## A sample

{textwrap.indent(printable(sample), "    ")}

## Configuration

| setting | value |
| --- | --- |
{settings}

## Made with

| | version |
| --- | --- |
{made_with}
"""


def _cell(value: object) -> str:
    """Return a setting as one cell of a Markdown table: a text within quotes, its line ends and bars escaped."""
    return repr(value).replace("|", "\\|")
