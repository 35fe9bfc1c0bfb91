"""A classifier trained once for all tests of this app, by its own command, on its built-in texts."""

from pathlib import Path

import pytest

from gpt_spam.cli import main
from gpt_spam.run_folder import write_lines
from gpt_spam.synthetic import synthetic_messages

QUICKLY = ["--epochs", "2", "--device", "cpu"]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled texts in a file."""
    path = tmp_path_factory.mktemp("data") / "messages.jsonl"
    write_lines(path, ({"label": label, "text": text} for label, text in synthetic_messages(n=300)))
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run's folder."""
    folder = tmp_path_factory.mktemp("run") / "spam"
    assert main(["train", "--data", str(data), "--out", str(folder), *QUICKLY]) == 0
    return folder
