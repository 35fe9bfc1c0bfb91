"""The package's promise: its names, and the README's example."""

import subprocess
import sys
from pathlib import Path

import pytest

import gpt_train


def test_every_promised_name_is_there_and_they_are_sorted():
    assert gpt_train.__all__ == sorted(gpt_train.__all__, key=lambda name: (name.islower(), name))
    assert all(hasattr(gpt_train, name) for name in gpt_train.__all__)


def test_the_readme_names_every_promised_name():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

    assert [name for name in gpt_train.__all__ if f"`{name}`" not in readme] == []


@pytest.mark.filterwarnings("ignore")
def test_the_readmes_example_runs_and_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    exec(compile(readme.split("```python\n")[1].split("```")[0], "README.md", "exec"), {})
    metrics = gpt_train.read_metrics("metrics.jsonl")

    assert [line["step"] for line in metrics] == list(range(1, 21))
    assert metrics[-1]["val/loss"] < metrics[9]["val/loss"] < metrics[0]["train/loss"]
    assert (tmp_path / "run" / "step-20" / "trainer" / "state.json").is_file()


def test_importing_it_brings_neither_matplotlib_nor_the_compiler():
    code = "import sys, gpt_train; print(sorted({'matplotlib', 'torch._inductor'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
