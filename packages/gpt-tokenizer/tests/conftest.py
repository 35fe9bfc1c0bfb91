"""Real data beside the checkout, where it is there, and one small trained tokenizer."""

import os
from pathlib import Path

import pytest

from gpt_tokenizer import BPETokenizer

ENGLISH = [
    "It was the best of times, it was the worst of times, it was the age of wisdom,\n\n    it was the age "
    "of foolishness; 1859, 1775. It's we'll they've I'm he'd you're don't!\r\n\tEnd.  ",
    "naïve café, Ελληνικά, русский текст, 日本語のテキスト, עברית, \U0001f600\u200d\U0001f680, é",
]


@pytest.fixture(scope="session")
def data() -> Path:
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "data" / "README.md").is_file():
            return parent / "shared" / "data"
    pytest.skip("no folder shared/data beside the checkout")


@pytest.fixture
def tiktoken_cache() -> None:
    """Skip where GPT-2's vocabulary is not in a cache of tiktoken's; the workspace's conftest names one."""
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("TIKTOKEN_CACHE_DIR is not set, and tests do not use the network")


@pytest.fixture(scope="session")
def english() -> list[str]:
    return ENGLISH


@pytest.fixture(scope="session")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(ENGLISH, vocab_size=300)
