"""The package's promise: its names, and the README's examples."""

from pathlib import Path
from typing import Any

import pytest

import gpt_core

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_promised_name_exists_and_the_list_has_no_double() -> None:
    assert len(set(gpt_core.__all__)) == len(gpt_core.__all__)
    assert all(hasattr(gpt_core, name) for name in gpt_core.__all__)


def test_every_name_in_the_readmes_table_is_promised() -> None:
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    names = [part.split("(")[0] for row in rows for part in row.split("`")[1::2]]
    assert len(names) > 40
    assert sorted(names) == sorted(gpt_core.__all__)


def test_the_readmes_examples_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [part.split("```")[0] for part in README.split("```python\n")[1:]]
    assert len(blocks) > 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "model" / "manifest.json").is_file()
