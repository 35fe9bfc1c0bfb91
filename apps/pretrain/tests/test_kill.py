"""A real process, killed for real."""

import os
import random
import subprocess
import sys
import time

COMMAND = [sys.executable, "-c", "import sys; from gpt_pretrain.cli import main; sys.exit(main())"]


def start(text, out, flags):
    return subprocess.Popen(
        [*COMMAND, "--data", str(text), "--out", str(out), *flags, "--resume"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(text, tmp_path, contents, tiny):
    flags = [*tiny, "--max-steps", "150", "--save-every", "3", "--eval-every", "20", "--sample-tokens", "0"]
    assert start(text, tmp_path / "whole", flags).wait(60) == 0
    moments = random.Random(0)
    log = tmp_path / "killed" / "metrics.jsonl"
    for _ in range(4):
        written = log.stat().st_mtime_ns if log.exists() else 0
        process = start(text, tmp_path / "killed", flags)
        # Kills during the imports would prove nothing: wait until this process has logged a step.
        while process.poll() is None and (not log.exists() or log.stat().st_mtime_ns == written):
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        assert process.wait(60) != 0, "it finished before it was killed: the test needs more steps"
    assert start(text, tmp_path / "killed", flags).wait(60) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
