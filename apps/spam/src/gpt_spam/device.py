"""The device that a command computes on."""

from typing import Literal

from gpt_spam.errors import RESOURCE, SpamError

Device = Literal["auto", "cpu", "cuda", "mps"]


def resolve_device(name: str) -> str:
    """Return the device for ``name``; auto takes the first of cuda, mps, cpu.

    Raises SpamError (exit code 5) if it is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, is_there in there.items() if is_there)
    if not there[name]:
        raise SpamError(f"--device {name}: torch finds none here; use --device auto or cpu", exit_code=RESOURCE)
    return name
