"""The package's promise: its names, and the README's examples."""

import subprocess
import sys
from pathlib import Path

import gpt_eval

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_promised_name_exists_and_the_list_is_sorted():
    assert gpt_eval.__all__ == sorted(gpt_eval.__all__)
    assert all(hasattr(gpt_eval, name) for name in gpt_eval.__all__)


def test_every_name_in_the_readmes_table_is_promised():
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    names = [part for row in rows for part in row.split("`")[1::2]]
    assert sorted(names) == gpt_eval.__all__


def test_the_readmes_example_runs_and_shows_what_stands_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = README.split("```python\n")[1].split("```")[0]
    exec(compile(code, "README.md", "exec"), {})

    shown = [line.split("# ")[1] for line in code.splitlines() if line.startswith("print(") and "# " in line]
    assert capsys.readouterr().out.splitlines() == shown
    assert len(shown) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "confusion.png", "roc.png", "calibration.png"}


def test_importing_it_brings_neither_matplotlib_nor_torch_nor_what_only_tests_need():
    code = "import sys, gpt_eval; print(sorted({'matplotlib', 'scipy', 'sklearn', 'torch'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
