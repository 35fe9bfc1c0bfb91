"""Run as a script: save checkpoints in child processes that are killed, or whose disk fails, at each step.

    broken_disk.py ROOT SCENARIO-FAULT...

For n = 1, 2, ... a child process works in the folder ROOT/SCENARIO-FAULT/n, a copy of folder 0, and meets
the fault at its n-th call of the operating system (every open for writing, mkdir, fsync, rename, remove and
rmdir, and the middle of writing the weights), until a child gets through. The error of one that survived to
report it is left in n.json beside the folder.

Forking from one process that has imported torch makes hundreds of real kills cheap.
"""

import errno
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from gpt_core.checkpoint import prune_checkpoints, save_checkpoint
from gpt_core.config import GPTConfig
from gpt_core.model import GPTModel

CONFIG = GPTConfig(vocab_size=11, context_length=4, emb_dim=4, n_heads=2, n_layers=1)


def make_model(seed: int) -> GPTModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTModel(CONFIG)


def write_trainer(tmp: Path) -> None:
    (tmp / "trainer").mkdir()
    (tmp / "trainer" / "state.json").write_text("{}", encoding="utf-8")


def prepare(folder: Path, scenario: str) -> None:
    """Write what is there before a child starts; model n is always made from seed n."""
    folder.mkdir(parents=True)
    for step in (1, 2, 3, 4) if scenario == "prune" else (1,):
        name = "model" if scenario == "replace" else f"step-{step}"
        save_checkpoint(folder / name, make_model(step), extra=write_trainer)


def act(folder: Path, scenario: str) -> None:
    """Do what the fault interrupts."""
    if scenario == "prune":
        prune_checkpoints(folder, keep=2)
    else:
        name = "model" if scenario == "replace" else "step-2"
        save_checkpoint(folder / name, make_model(2), extra=write_trainer)


def install(fault: str, n: int) -> None:
    """Make the n-th call of the operating system from now on meet the fault, if it is not a "limit"."""
    count = 0

    def step(event: str) -> None:
        nonlocal count
        count += 1
        if fault == "kill" and count == n:
            os.kill(os.getpid(), signal.SIGKILL)
        # A full disk stays full, but renaming and removing still work on one.
        grows = event in ("open", "os.mkdir", "fsync", "save_file")
        is_hit = count == n or (count > n and grows)
        if fault == "full" and is_hit and event not in ("os.remove", "os.rmdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        flags = arguments[2] if event == "open" else 0
        is_write = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        if is_write or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            step(event)

    save_file = safetensors.torch.save_file

    def counted_save_file(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(safetensors.torch.save(tensors, metadata)[:500])  # opening it is a step already
        step("save_file")
        save_file(tensors, path, metadata)

    # Counted, not carried out: a kill loses nothing that was written, and the real call takes milliseconds.
    vars(os)["fsync"] = lambda descriptor: step("fsync")
    vars(safetensors.torch)["save_file"] = counted_save_file
    sys.addaudithook(hook)  # cannot be removed again, one more reason for a process of its own


def child(folder: Path, scenario: str, fault: str, n: int) -> int:
    report = folder.with_suffix(".json").open("w", encoding="utf-8")  # opened before the disk is full
    install(fault, n)
    if fault == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (80 * n, resource.RLIM_INFINITY))
    try:
        act(folder, scenario)
    except OSError as error:
        if fault == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        json.dump({"errno": error.errno, "message": str(error)}, report)
        report.close()
        return 1
    return 0


def break_at_every_step(root: Path, scenario: str, fault: str) -> None:
    """Run the scenario with the fault at its first step, its second, ... until a child gets through."""
    prepare(root / "0", scenario)
    for n in range(1, 1000):
        folder = root / str(n)
        shutil.copytree(root / "0", folder)
        process = os.fork()
        if process == 0:
            try:
                os._exit(child(folder, scenario, fault, n))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(99)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code == 0:
            return
        if code != (-signal.SIGKILL if fault == "kill" else 1):
            sys.exit(f"the child with {fault} at step {n} of {scenario} ended with {code}")


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        scenario, fault = name.split("-")
        break_at_every_step(Path(sys.argv[1]) / name, scenario, fault)


if __name__ == "__main__":
    main()
