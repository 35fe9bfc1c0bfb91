import errno
import os
import re
import subprocess
import sys

import pytest

from gpt_pretrain.cli import main
from gpt_pretrain.lock import locked


def refused(capsys, code, *arguments):
    """Return the one sentence on stderr of a command that must end with ``code`` and print no result."""
    assert main([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", [[], ["prepare"], ["sample"]])
def test_help_lists_every_flag_and_exits_0(capsys, command):
    assert main([*command, "--help"]) == 0
    assert "show this help message" in capsys.readouterr().out


def test_help_names_the_recipes_the_other_commands_and_the_settings_of_model_and_training(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for needed in (
        "shakespeare",
        "gpt-pretrain prepare",
        "gpt-pretrain sample",
        "--emb-dim",
        "--warmup-steps",
    ):
        assert needed in out


def test_defaults_are_the_recipes(capsys):
    assert main(["--recipe", "gpt2-124m", "--help"]) == main(["--recipe=gpt2-124m", "--help"]) == 0
    assert capsys.readouterr().out.count("(default: 600000)") == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-stps", "3"], "unknown option '--max-stps' (did you mean '--max-steps'?); see gpt-pretrain --help"),
        (["--seeds=3"], "unknown option '--seeds' (did you mean '--seed'?); see gpt-pretrain --help"),
        (["--optimizer", "x"], "unknown option '--optimizer' (did you mean '--tokenizer'?); see gpt-pretrain --help"),
        (["-q"], "unknown option '-q'; see gpt-pretrain --help"),
        (
            ["prepare", "--out", "none", "--vocab-siz", "9"],
            "unknown option '--vocab-siz' (did you mean '--vocab-size'?); see gpt-pretrain prepare --help",
        ),
        (
            ["sample", "none", "one", "--topk", "3"],
            "unknown option '--topk' (did you mean '--top-k'?); see gpt-pretrain sample --help",
        ),
        (["sample", "none", "one", "two"], "unexpected argument 'two'; see gpt-pretrain sample --help"),
        (
            ["trian"],
            "unknown command 'trian': the commands are prepare and sample, and without one it trains; "
            "see gpt-pretrain --help",
        ),
        (
            ["prepar"],
            "unknown command 'prepar' (did you mean 'prepare'?): the commands are prepare and sample, "
            "and without one it trains; see gpt-pretrain --help",
        ),
    ],
)
def test_what_is_not_known_is_one_sentence_that_names_the_nearest(capsys, arguments, sentence):
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"gpt-pretrain: {sentence}\n")


def test_unknown_recipe_names_the_nearest(capsys):
    assert "did you mean 'quick'" in refused(capsys, 2, "--recipe", "quik")


def test_value_that_breaks_a_rule_is_named_with_the_rule(capsys):
    assert "emb_dim must be a multiple of n_heads" in refused(capsys, 2, "--n-heads", "3")


def test_recipe_that_is_meant_for_a_text_asks_for_it(capsys):
    assert "give --data with the-verdict.txt" in refused(capsys, 2, "--recipe", "verdict")


def test_importing_the_command_line_leaves_torch_out():
    code = "import sys, gpt_pretrain.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_text_is_named_and_no_folder_is_made(run, tmp_path, capsys):
    assert run("--data", str(tmp_path / "none.txt")) == 3
    assert "none.txt does not exist" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_folder_without_text_is_refused_with_what_counts_as_text(run, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").touch()
    assert run("--data", str(tmp_path / "pictures")) == 3
    assert "pictures holds no text: no .txt, .md, .jsonl file at any depth" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_empty_text_is_refused(run, tmp_path, capsys):
    (tmp_path / "empty.txt").touch()
    assert run("--data", str(tmp_path / "empty.txt")) == 3
    assert "there is no text in empty.txt" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("is_learned", [True, False])
def test_too_short_text_says_how_many_tokens_there_are_and_are_needed(
    run, tmp_path, tokenizer_file, capsys, is_learned
):
    (tmp_path / "short.txt").write_text("To be or not", encoding="utf-8")
    flags = [] if is_learned else ["--tokenizer", str(tokenizer_file), "--vocab-size", "270"]
    assert run("--data", str(tmp_path / "short.txt"), *flags) == 3
    err = capsys.readouterr().err
    assert re.search(r"too short: \d+ tokens for training, but at least 17 are needed", err)
    assert not (tmp_path / "run").exists()


def test_validation_text_of_one_token_is_refused(run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("ab" * 400, encoding="utf-8")
    assert run("--data", str(tmp_path / "a.txt"), "--val-fraction", "0.001", "--vocab-size", "258") == 3
    assert "1 token for validation, but at least 2 are needed" in capsys.readouterr().err


def test_documents_too_long_for_the_fraction_to_be_held_out_are_refused(run, tmp_path, capsys):
    (tmp_path / "many").mkdir()
    for k in range(20):
        (tmp_path / "many" / f"{k}.md").write_text(f"{k} is a number " * 9, encoding="utf-8")
    assert run("--data", str(tmp_path / "many"), "--val-fraction", "0.01") == 3
    assert "no document is short enough for val_fraction 0.01" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_text_that_repeats_too_little_for_the_vocabulary_names_the_size_it_gives(run, capsys):
    assert run("--vocab-size", "9000") == 3
    assert re.search(
        r"for a vocabulary of 9000 tokens: it gives \d+; give more text, or --vocab", capsys.readouterr().err
    )


def test_vocabulary_below_the_bytes_is_refused(run, capsys):
    assert run("--vocab-size", "100") == 2
    assert "256 bytes and 1 special tokens need 257" in capsys.readouterr().err


def test_invalid_utf8_is_named_by_file_and_byte(run, tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    assert run("--data", str(tmp_path / "latin.txt")) == 3
    assert "latin.txt is not UTF-8: byte 3" in capsys.readouterr().err


def test_jsonl_without_the_field_is_named_by_line(run, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n', encoding="utf-8")
    assert run("--data", str(tmp_path / "rows.jsonl")) == 3
    assert "rows.jsonl:2: no field 'text'" in capsys.readouterr().err


def test_vocabulary_that_does_not_fit_the_model_names_the_size(run, tmp_path, tokenizer_file, capsys):
    assert run("--tokenizer", str(tokenizer_file)) == 2
    assert "give --vocab-size 270" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unknown_tokenizer_is_refused(run, capsys):
    assert run("--tokenizer", "gpt3") == 2
    assert "did you mean 'gpt2'" in capsys.readouterr().err


def test_tokenizer_that_cannot_be_downloaded_is_exit_code_4(run, monkeypatch, capsys):
    from gpt_pretrain import prepare

    def unreachable(name):
        raise ConnectionError("GPT-2's vocabulary could not be downloaded")

    monkeypatch.setattr(prepare, "get_tokenizer", unreachable)
    assert run("--tokenizer", "gpt2") == 4
    assert "could not be downloaded" in capsys.readouterr().err


def test_folder_in_use_is_refused_with_who_uses_it(run, tmp_path, capsys):
    with locked(tmp_path / "run"):
        assert run() == 1
    assert re.search(rf"is in use by process {os.getpid()} on ", capsys.readouterr().err)


def test_device_that_is_not_there_is_refused(run, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("--device", "cuda") == 5
    assert "--device cuda: torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "way_on"),
    [([], "go on with: gpt-pretrain .* --resume"), (["prepare"], "start again with: gpt-pretrain prepare .* 300")],
)
def test_full_disk_names_the_way_on(text, tmp_path, monkeypatch, capsys, command, way_on):
    from gpt_pretrain import prepare

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "shard")

    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    monkeypatch.setattr(prepare, "write_shards", full)
    out = tmp_path / "out"
    assert main([*command, "--data", str(text), "--out", str(out), "--vocab-size", "300"]) == 5
    err = capsys.readouterr().err
    assert re.search(rf"no room on disk: No space left on device; .*make room, then {way_on}\n$", err)


def test_fault_of_our_own_is_not_dressed_up_as_the_persons(run, monkeypatch):
    from gpt_pretrain import run as run_module

    def broken(*args, **kwargs):
        raise AttributeError("ours")

    monkeypatch.setattr(run_module, "train", broken)
    with pytest.raises(AttributeError, match="ours"):
        run()
