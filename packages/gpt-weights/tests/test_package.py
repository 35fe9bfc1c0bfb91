"""The package's promise: its names, the README's example, and what importing it leaves out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import gpt_weights

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_name_in_the_readmes_table_is_promised_and_every_promise_is_there() -> None:
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    names = [part for row in rows for part in row.split("`")[1::2]]
    assert sorted(names) == sorted(gpt_weights.__all__)


def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = [part.split("```")[0] for part in README.split("```python\n")[1:]]
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "for-transformers" / "config.json").is_file()


def test_importing_the_package_loads_neither_tensorflow_nor_transformers_nor_gguf() -> None:
    code = "import json, sys, gpt_weights, gpt_weights.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, encoding="utf-8")
    assert not {"tensorflow", "transformers", "gguf", "tiktoken", "pandas"} & set(json.loads(done.stdout))
