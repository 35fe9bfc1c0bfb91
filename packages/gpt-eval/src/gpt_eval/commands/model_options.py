"""What ``gpt-eval perplexity`` and ``gpt-eval harness`` share: the checkpoint, where to compute, and whole numbers."""

import argparse
from collections.abc import Callable
from pathlib import Path


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint and --device, which ``device_of`` reads."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint directory, or a run with step-N in it")
    parser.add_argument("--device", default="cpu", help="where to compute, as torch names it (cpu)")


def whole(least: int) -> Callable[[str], int]:
    """Return what reads a whole number of at least ``least``; it raises ArgumentTypeError for others."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}; give one")
        return value

    return number


def device_of(options: argparse.Namespace) -> str:
    """Return --device, once torch has computed there; raise ArgumentTypeError, with torch's reason, if it cannot."""
    import torch  # heavy, and only the extra model brings it

    try:
        torch.zeros(1, device=options.device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # AssertionError: a build without CUDA or XPU
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise argparse.ArgumentTypeError(
            f"--device {options.device!r} cannot be used here: {reason}; give another, such as cpu"
        ) from error
    return str(options.device)
