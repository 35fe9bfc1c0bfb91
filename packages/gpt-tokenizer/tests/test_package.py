import subprocess
import sys

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
