"""docs/book-map.md is true: each of the book's names is where it says, with the book's arguments."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "book-map.md"
ROWS = re.findall(r"^\|.*\| `(\w+)(\(.*\))?` \| `(\w+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
CALLS = [(name, arguments, home) for name, arguments, home in ROWS if arguments]


@pytest.mark.parametrize(("name", "home"), [(name, home) for name, _, home in ROWS])
def test_each_name_is_public_in_its_home(name: str, home: str) -> None:
    package = importlib.import_module(home)
    assert name in package.__all__
    assert hasattr(package, name)


@pytest.mark.parametrize(("name", "arguments", "home"), CALLS, ids=[name for name, _, _ in CALLS])
def test_arguments_are_the_books_and_further_ones_have_defaults(name: str, arguments: str, home: str) -> None:
    ours = [*inspect.signature(getattr(importlib.import_module(home), name)).parameters.values()]
    books = [*inspect.signature(eval(f"lambda {arguments[1:-1]}: ...")).parameters.values()]
    for ours_one, books_one in zip(ours, books, strict=False):
        # The book passes cfg by position; ours takes a GPTConfig there too, and is called config.
        assert ours_one.name == books_one.name or (books_one.name == "cfg" and ours_one.name == "config")
        assert ours_one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if books_one.default is not inspect.Parameter.empty:
            assert ours_one.default == books_one.default
    assert len(ours) >= len(books)
    assert all(further.default is not inspect.Parameter.empty for further in ours[len(books) :])


def test_the_page_was_read_whole() -> None:
    assert len(ROWS) == PAGE.read_text(encoding="utf-8").count("| `gpt_")
    homes = {"gpt_tokenizer", "gpt_attention", "gpt_core", "gpt_train", "gpt_weights", "gpt_finetune", "gpt_eval"}
    assert {home for _, _, home in ROWS} == homes
