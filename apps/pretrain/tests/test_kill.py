"""Real processes, killed for real."""

import multiprocessing
import random
import sys
import time

import pytest

N_KILLS = 6


# Text, as a forked server cannot import this module under the name that pytest gives it.
TRAIN = """
import os, sys, torch
from gpt_pretrain.cli import main
torch.set_num_threads(1)
sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
os._exit(main({arguments!r}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no process to fork from there")
def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(text, tmp_path, contents, tiny):
    # Forked from a server that has imported what takes long, a process starts in a moment instead of seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpt_pretrain.run", "matplotlib.figure", "torch._dynamo"])
    flags = [*tiny, "--max-steps", "150", "--save-every", "3", "--eval-every", "20", "--sample-tokens", "0"]

    def start(name):
        out = ["--data", str(text), "--out", str(tmp_path / name)]
        process = context.Process(target=exec, args=(TRAIN.format(arguments=[*out, *flags, "--resume"]),))
        process.start()
        return process

    def finish(process):
        process.join(60)
        return process.exitcode

    assert finish(start("whole")) == 0
    moments = random.Random(0)
    log = tmp_path / "killed" / "metrics.jsonl"
    for _ in range(N_KILLS):
        written = log.stat().st_mtime_ns if log.exists() else 0
        process = start("killed")
        # Kills before the first step would prove little: wait until this process has logged one.
        while process.is_alive() and (not log.exists() or log.stat().st_mtime_ns == written):
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.15))
        process.kill()
        assert finish(process) == -9, "it finished before it was killed: the test needs more steps"
    assert finish(start("killed")) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
