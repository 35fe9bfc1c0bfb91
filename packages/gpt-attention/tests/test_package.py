"""The package's promise: its names, and the README's example."""

from pathlib import Path

import gpt_attention

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_promised_name_exists_and_stands_in_the_readmes_table() -> None:
    assert all(hasattr(gpt_attention, name) for name in gpt_attention.__all__)
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in row.split("`")[1::2]) == sorted(gpt_attention.__all__)


def test_the_readmes_example_runs() -> None:
    exec(compile(README.split("```python\n")[1].split("```")[0], "README.md", "exec"), {})
