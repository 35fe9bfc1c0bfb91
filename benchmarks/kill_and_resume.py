"""Kill a real training run at random moments, resume it, and compare with a run that nobody touched.

    python benchmarks/kill_and_resume.py --kills 10

A small model is trained twice by the command ``gpt-pretrain``, each in a process of its own: once without
disturbance, once killed (SIGKILL) again and again and started with the very same command. Printed: each kill,
and whether weights, optimizer state, data and the log without its times are identical to the last byte in the
end. The exit code is 0 only if they are.
"""

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "import sys; from gpt_pretrain.cli import main; sys.exit(main())"]
SETTINGS = [
    "--vocab-size", "512", "--context-length", "64", "--emb-dim", "32", "--n-heads", "2", "--n-layers", "2",
    "--drop-rate", "0.1", "--batch-size", "8", "--warmup-steps", "10", "--eval-every", "20",
    "--eval-tokens", "2048", "--save-every", "7", "--sample-tokens", "8", "--device", "cpu", "--resume",
]
TIMES = ("tok_per_s",)
"""What a log line says about the clock: the only thing that may differ between two runs."""


def start(run: Path, max_steps: int) -> subprocess.Popen[str]:
    """Start the training command on the folder ``run``."""
    return subprocess.Popen(
        [*COMMAND, "--out", str(run), "--max-steps", str(max_steps), *SETTINGS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], timeout: float = 600) -> str:
    """Wait ``timeout`` seconds for a run to end well and return what it said."""
    _, said = process.communicate(timeout=timeout)
    if process.returncode != 0:
        raise SystemExit(f"the training command failed with {process.returncode}:\n{said}")
    return said


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    return max((int(path.name[5:]) for path in run.glob("step-*") if path.name[5:].isdigit()), default=0)


def digests(run: Path) -> dict[str, str]:
    """Return a digest of every file that must not depend on how often the run was killed."""
    checkpoint = run / max(path.name for path in run.glob("step-*") if path.name[5:].isdigit())
    files = [*checkpoint.rglob("*"), *(run / "data").rglob("*")]
    found = {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }
    log = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        log.append({name: value for name, value in json.loads(line).items() if name not in TIMES})
    found["metrics.jsonl without times"] = hashlib.sha256(json.dumps(log).encode()).hexdigest()
    return found


def main() -> int:
    """Run the experiment and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--max-steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        started = time.monotonic()
        process = start(whole, arguments.max_steps)
        while process.poll() is None and not (whole / "metrics.jsonl").exists():
            time.sleep(0.05)
        starting = time.monotonic() - started
        finish(process)
        training = time.monotonic() - started - starting
        print(f"undisturbed: {starting:.1f} s to start, {training:.1f} s for {arguments.max_steps} steps\n")
        print("| kill | after (s) | step in the log | newest checkpoint | lost steps |")
        print("| ---: | ---: | ---: | ---: | ---: |")
        kills = 0
        while kills < arguments.kills:
            process = start(killed, arguments.max_steps)
            # Most after the imports, some before; all together use up about half of the training.
            after = moments.uniform(0.7 * starting, starting + 1.2 * training / arguments.kills)
            try:
                said = finish(process, after)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            else:
                if newest_step(killed) < arguments.max_steps:
                    raise SystemExit(f"the training command ended by itself before its last step:\n{said}")
                print(f"\nfinished after {kills} kills: take more --max-steps for {arguments.kills}")
                break
            kills += 1
            log = killed / "metrics.jsonl"
            reached = re.findall(r'"step": (\d+)', log.read_text(encoding="utf-8")) if log.exists() else []
            step, saved = int(reached[-1]) if reached else 0, newest_step(killed)
            print(f"| {kills} | {after:.2f} | {step} | {saved} | {step - saved} |")
        finish(start(killed, arguments.max_steps))
        one, other = digests(whole), digests(killed)
        print("\n| file | identical | sha256 |\n| --- | --- | --- |")
        for name in sorted(one.keys() | other.keys()):
            same = one.get(name) == other.get(name)
            print(f"| {name} | {'yes' if same else 'NO'} | {one.get(name, 'missing')[:16]} |")
        differ = sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())
        print(f"\n{kills} kills, {differ} files that differ")
        return 0 if one == other else 1


if __name__ == "__main__":
    sys.exit(main())
