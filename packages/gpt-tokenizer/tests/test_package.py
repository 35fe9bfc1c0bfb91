import subprocess
import sys
from pathlib import Path

import pytest

import gpt_tokenizer


def test_import_leaves_torch_and_numpy_out() -> None:
    code = "import sys, gpt_tokenizer; print(sorted({'torch', 'numpy', 'regex'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8",
                         check=True)
    assert run.stdout.strip() == "[]"


def test_training_and_encoding_leave_torch_and_numpy_out() -> None:
    code = ("import sys; from gpt_tokenizer import BPETokenizer as B; "
            "t = B.train(['é abc ab'], vocab_size=258); assert t.decode(t.encode('éa')) == 'éa'; "
            "print(sorted({'torch', 'numpy'} & sys.modules.keys()))")
    run = subprocess.run([sys.executable, "-X", "utf8", "-c", code], capture_output=True, text=True,
                         encoding="utf-8", check=True)
    assert run.stdout.strip() == "[]"


def test_every_promised_name_exists_and_the_list_is_sorted() -> None:
    assert gpt_tokenizer.__all__ == sorted(gpt_tokenizer.__all__)
    assert all(hasattr(gpt_tokenizer, name) for name in gpt_tokenizer.__all__)


def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(readme.split("```python\n")[1].split("```")[0], "README.md", "exec"), {})
    assert (tmp_path / "tokenizer.json").is_file()
