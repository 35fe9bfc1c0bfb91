"""The device a command computes on."""

from typing import Literal, get_args

from gpt_pretrain.errors import RESOURCE, USAGE, PretrainError

Device = Literal["auto", "cpu", "cuda", "mps"]
KNOWN = get_args(Device)


def resolve_device(name: str) -> str:
    """Return "cpu", "cuda" or "mps" for ``name``; auto takes the first of cuda, mps, cpu that is there.

    Raises PretrainError for an unknown name (exit code 2) and a device that this machine or torch lacks (5).
    """
    import torch

    if name not in KNOWN:
        raise PretrainError(f"unknown device {name!r}; there are {', '.join(KNOWN)}", exit_code=USAGE)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, is_there in there.items() if is_there)
    if not there[name]:
        raise PretrainError(
            f"--device {name}: torch {torch.__version__} finds none here; use --device auto or cpu",
            exit_code=RESOURCE,
        )
    return name
