"""The package's promise: its names, and the README's example."""

from pathlib import Path

import pytest

import gpt_core


def test_every_promised_name_exists_and_the_list_has_no_double() -> None:
    assert len(set(gpt_core.__all__)) == len(gpt_core.__all__)
    assert all(hasattr(gpt_core, name) for name in gpt_core.__all__)


def test_every_name_in_the_readmes_table_is_promised() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in readme.splitlines() if line.startswith("| `")]
    names = [part.split("(")[0] for row in rows for part in row.split("`")[1::2]]
    assert len(names) > 25
    assert sorted(names) == sorted(gpt_core.__all__)


def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(readme.split("```python\n")[1].split("```")[0], "README.md", "exec"), {})
    assert (tmp_path / "model" / "manifest.json").is_file()
