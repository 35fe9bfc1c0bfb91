"""A run so small that it takes a moment, and a text for it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.cli import main
from gpt_tokenizer import BPETokenizer

TINY = [
    "--vocab-size", "300", "--context-length", "16", "--emb-dim", "16", "--n-heads", "2", "--n-layers", "1",
    "--drop-rate", "0.1", "--batch-size", "4", "--max-steps", "6", "--warmup-steps", "1", "--eval-every", "3",
    "--save-every", "2", "--sample-tokens", "4", "--device", "cpu",
]
"""Flags of a run of 6 steps, saved after 2, 4 and 6, evaluated after 3 and 6."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Return a file of 4,000 words of which some follow each other more often than others."""
    words = "the cat sat on a mat and saw that cats like mats while dogs bark at night".split()  # noqa: SIM905
    chosen = [words[(k * k + k // 7) % len(words)] for k in range(4000)]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(chosen), encoding="utf-8")
    return path


@pytest.fixture
def run(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return the command on that text, into tmp_path / "run", unless the flags say otherwise."""
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)  # set where the tests run under "uv run"

    def command(*flags: str) -> int:
        out = [] if "--out" in flags else ["--out", str(tmp_path / "run")]
        data = [] if "--data" in flags else ["--data", str(text)]
        return main([*data, *out, *TINY, *flags])

    return command


@pytest.fixture
def contents() -> Callable[[Path], dict[str, str]]:
    """Return a function from a folder to the digest of each file in it that does not depend on the clock."""

    def digests(folder: Path) -> dict[str, str]:
        found = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and path.name == "metrics.jsonl":
                rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                for row in rows:
                    del row["tok_per_s"]
                found[name] = json.dumps(rows)
            elif path.is_file() and path.name not in (".lock", "README.md", "loss.png"):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    return digests


@pytest.fixture
def tiny() -> list[str]:
    """Return the flags of the smallest run."""
    return list(TINY)


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    """Return a tokenizer.json of 270 tokens."""
    path = tmp_path / "tokenizer.json"
    BPETokenizer.train(["the cat sat on the mat, the dog on a log"] * 9, vocab_size=270).save(path)
    return path
