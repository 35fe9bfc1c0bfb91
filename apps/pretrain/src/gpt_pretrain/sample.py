"""Let a trained model write: `gpt-pretrain sample RUN "prompt"`, and the samples shown while training."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from gpt_pretrain.device import KNOWN
from gpt_pretrain.errors import USAGE, PretrainError
from gpt_pretrain.text_out import printable

if TYPE_CHECKING:
    from torch import nn

    from gpt_core import Sampling
    from gpt_tokenizer import BPETokenizer


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Let the model of a run go on from a prompt; the text appears as it is written."""

    run: tyro.conf.Positional[Path]
    """A run's folder (its newest checkpoint is taken) or a checkpoint's."""

    prompt: tyro.conf.Positional[str] = ""
    """What the text begins with; empty: the start of a document."""

    max_new_tokens: int = 200
    """Most tokens to write; the model may end its text before."""

    temperature: float = 0.8
    """0 always takes the likeliest token; 1 draws as the model was trained; above, more surprising."""

    top_k: int | None = None
    """Draw from the k likeliest tokens only."""

    top_p: float = 1.0
    """Draw from the fewest tokens whose probabilities add up to this."""

    seed: int | None = None
    """The same seed writes the same text; without one each call writes another."""

    device: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(KNOWN)}}}")] = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""


def sample_text(
    model: "nn.Module", tokenizer: "BPETokenizer", prompt: str, *, max_new_tokens: int, sampling: "Sampling"
) -> Iterator[str]:
    """Yield what the model writes after ``prompt``, in pieces; special tokens in it are ordinary text.

    An empty prompt is the start of a document. The model ends its text with the end-of-text token, which is
    not shown. Raises FloatingPointError, while it writes, for a model whose training diverged.
    """
    from gpt_core import decode_stream, generate_tokens

    ids = tokenizer.encode(prompt) or [tokenizer.eot_token]
    tokens = generate_tokens(
        model, ids, max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=(tokenizer.eot_token,)
    )
    try:
        yield from decode_stream(tokens, tokenizer)
    except ValueError as error:  # the ids were checked before: only logits that are not finite are left
        raise FloatingPointError(str(error)) from None


def sample_command(config: SampleConfig) -> int:
    """Print the prompt and what the model of ``config.run`` makes of it; return the exit code."""
    from gpt_core import Sampling, load_checkpoint
    from gpt_pretrain.device import resolve_device
    from gpt_tokenizer import get_tokenizer

    try:
        sampling = Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, seed=config.seed)
    except ValueError as error:
        raise PretrainError(str(error), exit_code=USAGE) from None
    if config.max_new_tokens < 1:
        raise PretrainError(f"max_new_tokens must be at least 1, got {config.max_new_tokens}", exit_code=USAGE)
    if not config.run.exists():
        raise PretrainError(f"{config.run} does not exist; give the folder of a run, such as runs/quick")
    checkpoint = load_checkpoint(config.run, device=resolve_device(config.device))
    if checkpoint.tokenizer_file is None:
        raise PretrainError(f"{checkpoint.folder} holds no tokenizer.json, so its tokens cannot be read as text")
    tokenizer = get_tokenizer(str(checkpoint.tokenizer_file))
    pieces = sample_text(
        checkpoint.model, tokenizer, config.prompt, max_new_tokens=config.max_new_tokens, sampling=sampling
    )
    is_terminal = sys.stdout.isatty()
    first = next(pieces, "")  # before anything is shown: a model that diverged writes nothing
    for piece in chain([config.prompt, first], pieces):
        sys.stdout.write(printable(piece) if is_terminal else piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return 0
