"""The package's promise: its names, and the README's code."""

from pathlib import Path
from typing import Any

import pytest
import torch

import gpt_attention
from gpt_attention import attend

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = [part.split("```")[0] for part in README.split("```python\n")[1:]]


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_every_promised_name_exists_and_stands_in_the_readmes_table() -> None:
    assert all(hasattr(gpt_attention, name) for name in gpt_attention.__all__)
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in row.split("`")[1::2]) == sorted(gpt_attention.__all__)


def test_the_readmes_first_example_runs() -> None:
    run(BLOCKS[0])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["attend_by_einsum", pytest.param("attend_by_flex", marks=pytest.mark.slow)])
def test_the_readmes_other_forms_are_the_same_sum(name: str) -> None:
    (form,) = [run(block)[name] for block in BLOCKS if f"def {name}(" in block]
    for T, S, G, window in ((9, 9, 4, None), (5, 12, 1, None), (5, 12, 2, 3), (1, 12, 2, 5), (7, 7, 2, 20)):
        queries, keys, values = torch.randn(2, 4, T, 8), torch.randn(2, G, S, 8), torch.randn(2, G, S, 8)
        expected = attend(queries, keys, values, window=window, explicit=True)
        torch.testing.assert_close(form(queries, keys, values, window=window), expected)
