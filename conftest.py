"""What holds for every test of the workspace, wherever it lives; in a member's isolated environment too."""

import os
from pathlib import Path

from hypothesis import settings

# One thread a process: under `pytest -n auto` the workers fill the cores, and torch's default (every core in every
# worker) makes them wait for each other. Set before anything imports torch; the commands that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# GPT-2's vocabulary from the data folder beside the checkout, where there is one: tests need no network.
TIKTOKEN_CACHE = Path(__file__).resolve().parents[1] / "shared" / "data" / "tiktoken-cache"
if TIKTOKEN_CACHE.is_dir():
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_CACHE))

# The same examples in each run, with no time limit that a busy machine would break;
# `pytest --hypothesis-profile explore` (the weekly run) draws new ones, and many more of them.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, derandomize=False, max_examples=2_000)
settings.load_profile("steady")
