"""The command line as a person uses it: results on stdout, one sentence on stderr, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hand_made import write_huggingface

from gpt_core import GPTConfig, GPTModel, load_checkpoint
from gpt_weights.cli import main


def test_convert_writes_a_checkpoint_and_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = write_huggingface(tmp_path / "hf")
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "ours"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["checkpoint"] == str(tmp_path / "ours")
    n_theirs = sum(tensor.numel() for tensor in theirs.values())
    assert (told["parameters"], told["bytes"], told["tied"], told["tokens"]) == (n_theirs, 4 * n_theirs, False, 23)
    assert load_checkpoint(tmp_path / "ours").model.n_parameters == n_theirs


def test_inspect_tells_format_config_count_dtype_and_tie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_huggingface(tmp_path, tokenizer=False)
    assert main(["inspect", str(tmp_path)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["format"] == "huggingface, safetensors"
    assert lines["config"].startswith("vocab_size=23, context_length=8, emb_dim=8, n_heads=2, n_layers=2")
    assert (lines["dtypes"], lines["tied"], lines["tokens"]) == ("F32=29", "False", "-")
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtypes"] == {"F32": 29}


def test_what_shapes_do_not_tell_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = GPTModel(GPTConfig(vocab_size=30, context_length=8, emb_dim=8, n_heads=4, n_layers=1))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    convert = ["convert", str(tmp_path / "model.pth"), str(tmp_path / "ours")]
    assert main(convert) == 3
    assert "give n_heads (--n-heads), a divisor of 8" in capsys.readouterr().err
    assert main([*convert, "--n-heads", "4", "--vocab-size", "20", "--dtype", "bfloat16"]) == 0
    loaded = load_checkpoint(tmp_path / "ours")
    assert (loaded.config.n_heads, loaded.config.vocab_size) == (4, 20)
    assert torch.equal(loaded.model.tok_emb.weight, model.tok_emb.weight[:20].bfloat16())


def test_a_tokenizer_from_elsewhere_goes_into_the_checkpoint(tmp_path: Path) -> None:
    write_huggingface(tmp_path / "hf", tokenizer=False)
    write_huggingface(tmp_path / "with")
    arguments = ["convert", str(tmp_path / "hf"), str(tmp_path / "ours"), "--tokenizer"]
    assert main([*arguments, str(tmp_path / "hf")]) == 3
    assert main([*arguments, str(tmp_path / "with")]) == 0
    assert load_checkpoint(tmp_path / "ours").tokenizer_file is not None


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_export_writes_what_inspect_reads(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    write_huggingface(tmp_path / "hf")
    target = tmp_path / ("out" if form == "hf" else "out.gguf")
    kind = [] if form == "hf" else ["--kind", "f32"]
    assert main(["export", str(tmp_path / "hf"), str(target), "--format", form, "--json", *kind]) == 0
    assert json.loads(capsys.readouterr().out)["largest_difference"] == 0
    assert main(["inspect", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 23
    assert main(["export", str(tmp_path / "hf"), str(target), "--format", form]) == 3
    assert str(target) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "COMMAND"),
        (["convret"], 2, "convret"),
        (["inspect", "{tmp}/nothing"], 3, "there is no file or folder"),
        (["inspect", "{tmp}"], 3, "holds no weights: expected"),
        (["download", "gpt5"], 2, "unknown GPT-2 size 'gpt5'"),
        (["download", "gpt2", "{tmp}/x", "--offline"], 4, "no network is allowed"),
        (["export", "{tmp}/hf", "{tmp}/x", "--format", "hf", "--kind", "f16"], 2, "--kind is for --format gguf"),
        (["export", "{tmp}/hf", "{tmp}/x", "--format", "gguf", "--dtype", "float16"], 2, "--dtype are for --format hf"),
    ],
)
def test_an_error_is_one_sentence_and_a_code(
    arguments: list[str], code: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_huggingface(tmp_path / "hf")
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
    assert "Traceback" not in printed.err


def test_help_and_a_closed_pipe_are_no_failure(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    command = [sys.executable, "-m", "gpt_weights.cli"]
    done = subprocess.run([*command, "--help"], capture_output=True, encoding="utf-8")
    assert (done.returncode, "download" in done.stdout) == (0, True)
    if os.name == "posix":
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([*command, "inspect", str(tmp_path)], stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b"")


def test_nothing_in_a_file_reaches_the_terminal_as_a_command_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = GPTModel(GPTConfig(vocab_size=30, context_length=8, emb_dim=8, n_heads=4, n_layers=1))
    torch.save({**model.state_dict(), "\x1b]0;mine\x07\x9b2J": torch.zeros(1)}, tmp_path / "model.pth")
    assert main(["inspect", str(tmp_path / "model.pth"), "--n-heads", "4"]) == 3
    printed = capsys.readouterr().err
    assert r"\x1b]0;mine\x07\x9b2J" in printed
    assert printed.rstrip("\n").isprintable()
