"""The package's promise: its names, and the README's examples."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gpt_finetune

README = Path(__file__).parents[1] / "README.md"


def test_every_promised_name_is_there_and_they_are_sorted():
    order = sorted(gpt_finetune.__all__, key=lambda name: (name.islower(), not name.isupper(), name))
    assert gpt_finetune.__all__ == order
    assert all(hasattr(gpt_finetune, name) for name in gpt_finetune.__all__)


def test_the_readmes_table_names_every_promised_name():
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("|")]

    assert [name for name in gpt_finetune.__all__ if not any(f"`{name}" in row for row in rows)] == []


@pytest.mark.filterwarnings("ignore")
def test_the_readmes_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


def test_importing_it_brings_nothing_that_an_extra_or_a_compiler_brings():
    heavy = {"pandas", "requests", "matplotlib", "torch._inductor"}
    code = f"import sys, gpt_finetune; print(sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
