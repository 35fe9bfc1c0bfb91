import sys

import pytest

from gpt_pretrain.cli import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run of 2 steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("one two three four five six seven " * 300, encoding="utf-8")
    flags = "--vocab-size 270 --context-length 8 --emb-dim 8 --n-heads 1 --n-layers 1 --max-steps 2 --device cpu"
    command = ["--data", str(folder / "text.txt"), "--out", str(folder / "run"), "--sample-tokens", "0"]
    assert main([*command, *flags.split()]) == 0
    return folder / "run"


def test_sample_prints_the_prompt_and_more(trained, capsys):
    assert main(["sample", str(trained), "one two", "--max-new-tokens", "20"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("one two")
    assert len(out) > len("one two\n")


def test_same_seed_same_text_other_seed_other_text(trained, capsys):
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["sample", str(trained), "one", "--seed", seed, "--max-new-tokens", "30"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_temperature_0_needs_no_seed(trained, capsys):
    texts = set()
    for _ in range(2):
        assert main(["sample", str(trained), "one", "--temperature", "0", "--max-new-tokens", "12"]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


def test_prompt_cannot_hold_a_control_token(trained, capsys):
    assert main(["sample", str(trained), "<|endoftext|>", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("<|endoftext|>")


def test_a_terminal_gets_no_control_characters(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["sample", str(trained), "\x1b[31mred", "--max-new-tokens", "60", "--temperature", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("[31mred")
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--temperature", "-1"], "temperature must be"),
        (["--top-k", "0"], "top_k must be"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_bad_value_is_refused(trained, capsys, flags, problem):
    assert main(["sample", str(trained), "one", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err


def test_model_that_diverged_is_one_sentence(trained, tmp_path, capsys):
    import torch

    from gpt_core import load_checkpoint, save_checkpoint
    from gpt_tokenizer import get_tokenizer

    checkpoint = load_checkpoint(trained)
    with torch.no_grad():
        checkpoint.model.out_head.weight.fill_(float("nan"))
    assert checkpoint.tokenizer_file is not None
    save_checkpoint(tmp_path / "nan", checkpoint.model, tokenizer=get_tokenizer(str(checkpoint.tokenizer_file)))
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "nan"), "one"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gpt-pretrain: the model's logits are not finite")
    assert err.count("\n") == 1


def test_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["sample", str(tmp_path), "one"]) == 1
    assert main(["sample", str(tmp_path / "none"), "one"]) == 1
    err = capsys.readouterr().err
    assert "holds no checkpoint" in err
    assert "does not exist" in err
