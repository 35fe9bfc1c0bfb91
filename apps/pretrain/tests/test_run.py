import json
import re
import signal
import sys

import pytest

from gpt_core import list_checkpoints, load_checkpoint
from gpt_pretrain import data, prepare, summary
from gpt_pretrain import run as run_module
from gpt_pretrain.cli import main
from gpt_pretrain.progress import Progress


@pytest.fixture
def after_step(monkeypatch):
    """Return a function that lets something happen once the progress of a step has been shown."""

    def install(step, happening):
        shown = Progress.update

        def update(self, report):
            shown(self, report)
            if report.step == step:
                happening()

        monkeypatch.setattr(Progress, "update", update)

    return install


def test_a_run_leaves_checkpoints_metrics_plot_and_readme_and_names_the_next_command(run, tmp_path, capsys):
    assert run() == 0
    folder = tmp_path / "run"
    out, err = capsys.readouterr()
    assert out.strip() == str(folder)
    assert f"gpt-pretrain sample {folder}" in err
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000004", "step-00000006"]
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step["step"] for step in steps if "val/loss" in step] == [3, 6]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    loss = f"{steps[-1]['val/loss']:.4f} nats a token"
    for needed in ("text.txt", "sha256", "| seed | 123 |", "| torch |", loss):
        assert needed in readme


def test_nats_a_character_are_the_scored_loss_by_the_characters_it_spells(run, tmp_path, text, capsys):
    assert run("--eval-tokens", "100000") == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    held_out = text.read_text(encoding="utf-8")
    held_out = held_out[int(0.9 * len(held_out)) :]
    from gpt_tokenizer import get_tokenizer

    tokenizer = get_tokenizer(str(tmp_path / "run" / "data" / "tokenizer.json"))
    ids = tokenizer.encode(held_out)
    scored = ids[1:]  # nothing comes before the first
    expected = last["val/loss"] * len(scored) / len(tokenizer.decode(scored))
    shown = re.findall(r"nats a token, ([\d.]+) nats a character", capsys.readouterr().err)
    assert float(shown[-1]) == pytest.approx(expected, abs=6e-4)


def test_the_tokenizer_has_not_seen_the_held_out_text(run, tmp_path):
    path = tmp_path / "two halves.txt"
    path.write_text("abcd " * 900 + "wxyz " * 100, encoding="utf-8")
    assert run("--data", str(path), "--vocab-size", "260") == 0
    file = tmp_path / "run" / "data" / "tokenizer.json"
    merges = str(json.loads(file.read_text(encoding="utf-8"))["model"]["merges"])
    assert "a" in merges
    assert not set(merges) & set("wxyz")


def test_the_same_run_twice_is_the_same_to_the_last_byte(run, tmp_path, contents):
    assert run("--out", str(tmp_path / "a")) == run("--out", str(tmp_path / "b")) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_samples_and_evaluations_do_not_change_what_is_learned(run, tmp_path, contents):
    assert run("--out", str(tmp_path / "a"), "--sample-tokens", "0", "--eval-every", "0") == 0
    assert run("--out", str(tmp_path / "b"), "--sample-tokens", "9", "--eval-every", "1") == 0
    weights = [contents(tmp_path / name)["step-00000006/model.safetensors"] for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_at_the_next_step_and_says_how_to_go_on(run, tmp_path, contents, after_step, capsys, number, code):
    assert run("--out", str(tmp_path / "whole")) == 0
    after_step(3, lambda: signal.raise_signal(number))
    assert run() == code
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000003"]
    err = capsys.readouterr().err
    assert re.search(r"saved after step 3; go on with: gpt-pretrain .*--max-steps 6 .*--resume", err)
    assert run("--resume") == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_the_command_to_go_on_with_is_the_one_that_was_typed_under_uv_too(run, after_step, monkeypatch, capsys):
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    after_step(3, lambda: signal.raise_signal(signal.SIGINT))
    assert run() == 130
    assert "go on with: uv run gpt-pretrain --data" in capsys.readouterr().err


def test_second_signal_stops_at_once_and_leaves_a_folder_to_go_on_with(
    run, tmp_path, contents, after_step, monkeypatch, capsys
):
    assert run("--out", str(tmp_path / "whole")) == 0

    def twice():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    after_step(3, twice)
    assert run() == 143
    assert re.search(r"stopped by SIGTERM; go on with: gpt-pretrain .*--resume\n$", capsys.readouterr().err)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000002"]
    monkeypatch.undo()
    assert run("--resume") == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("module", "name"), [(data, "read_split"), (prepare, "write_shards"), (summary, "plot_metrics")]
)
def test_signal_outside_the_steps_says_how_to_go_on_too(run, tmp_path, contents, monkeypatch, capsys, module, name):
    assert run("--out", str(tmp_path / "whole")) == 0
    with monkeypatch.context() as patched:
        patched.setattr(module, name, lambda *args, **kwargs: signal.raise_signal(signal.SIGINT))
        assert run() == 130
    assert re.search(r"stopped by SIGINT; go on with: gpt-pretrain .*--resume\n$", capsys.readouterr().err)
    assert run("--resume") == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_resume_starts_a_run_that_is_not_there_and_says_when_it_is_finished(run, tmp_path, contents, capsys):
    assert run("--resume") == 0
    before = contents(tmp_path / "run")
    assert run("--resume") == 0
    assert "finished after 6 steps" in capsys.readouterr().err
    assert contents(tmp_path / "run") == before


def test_a_run_that_is_there_is_not_started_again_without_resume(run, tmp_path, contents, capsys):
    assert run() == 0
    before = contents(tmp_path / "run")
    assert run() == 1
    assert re.search("holds this run already; add --resume .*--out", capsys.readouterr().err)
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_another_configuration_is_refused_with_what_differs_and_nothing_is_changed(
    run, tmp_path, contents, capsys, flags
):
    assert run() == 0
    before = contents(tmp_path / "run")
    assert run(*flags, "--lr", "0.5", "--n-layers", "2") == 1
    err = capsys.readouterr().err
    differences = r"n_layers is 1 there, asked for 2; lr is 0\.001 there, asked for 0\.5"
    assert re.search(rf"another configuration.*{differences}", err)
    assert contents(tmp_path / "run") == before


def test_another_text_in_the_same_file_is_another_configuration(run, text, capsys):
    assert run() == 0
    text.write_text(text.read_text(encoding="utf-8") + " more", encoding="utf-8")
    assert run("--resume") == 1
    assert "data_sha256 is" in capsys.readouterr().err


def test_the_text_may_have_moved(run, text, tmp_path):
    assert run() == 0
    moved = text.rename(tmp_path / "elsewhere.txt")
    assert run("--resume", "--data", str(moved)) == 0


def test_folder_of_something_else_is_refused_and_left_alone(run, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work", encoding="utf-8")
    assert run() == 1
    assert "holds files of something else (thesis.tex)" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["data/train/a.txt", "data/tokenizer.json"])
def test_data_folder_that_no_run_made_is_refused_and_left_alone(run, text, tmp_path, capsys, name):
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    text.rename(mine)
    before = mine.read_bytes()
    assert run("--data", str(mine)) == 1
    assert "holds files of something else (data)" in capsys.readouterr().err
    assert mine.read_bytes() == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["data"]


def test_prepared_text_of_other_settings_in_a_runs_place_is_left_alone(run, text, tmp_path, contents, capsys):
    mine = tmp_path / "run" / "data"
    assert main(["prepare", "--data", str(text), "--out", str(mine), "--vocab-size", "280"]) == 0
    before = contents(mine)
    assert run() == 1
    assert "holds prepared text already" in capsys.readouterr().err
    assert contents(mine) == before


def test_what_a_kill_while_preparing_left_is_prepared_anew(run, tmp_path, monkeypatch, contents):
    assert run("--out", str(tmp_path / "whole")) == 0

    def killed(*args, **kwargs):
        raise SystemExit(9)  # nothing is cleaned up after a real kill

    with monkeypatch.context() as patched:
        patched.setattr(prepare, "write_json", killed)
        patched.setattr(prepare, "clear", lambda folder: None)
        assert run() == 9
    assert run() == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_damaged_newest_checkpoint_is_named_and_the_one_before_taken(run, tmp_path, contents, capsys):
    assert run("--out", str(tmp_path / "whole")) == 0
    assert run() == 0
    (tmp_path / "run" / "README.md").unlink()
    weights = tmp_path / "run" / "step-00000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert run("--resume") == 0
    assert re.search(r"warning: .*step-00000006", capsys.readouterr().err)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(run, tmp_path, capsys):
    assert run("--lr", "1e30", "--grad-clip", "0", "--save-every", "1") == 1
    err = capsys.readouterr().err
    assert re.search(r"(loss|norm) is (nan|inf) at step \d in batch \d; checkpoints saved before are kept", err)
    assert load_checkpoint(tmp_path / "run").config.n_layers == 1


@pytest.mark.parametrize(
    ("flags", "what"), [(["--eval-every", "1"], "validation loss is"), ([], "weights are not finite")]
)
def test_divergence_seen_after_a_step_stops_the_run_before_it_is_saved(run, tmp_path, capsys, flags, what):
    assert run("--lr", "1e38", "--warmup-steps", "0", "--save-every", "1", *flags) == 1
    assert re.search(rf"the {what}.* after step 1; checkpoints saved before are kept", capsys.readouterr().err)
    assert list_checkpoints(tmp_path / "run") == []


def test_run_that_ended_with_a_validation_loss_that_is_not_finite_is_one_sentence(run, tmp_path, capsys):
    assert run() == 0
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(re.sub(r'"val/loss": [^,]+', '"val/loss": null', log.read_text(encoding="utf-8")), encoding="utf-8")
    (tmp_path / "run" / "README.md").unlink()
    assert run("--resume") == 1
    assert "the validation loss is not finite after step 6" in capsys.readouterr().err


@pytest.mark.parametrize("opening", ["\n\nTo be", " ", "x"])
def test_next_command_begins_as_the_held_out_text_does_white_space_or_not(run, tmp_path, capsys, opening):
    path = tmp_path / "text.txt"
    words = "the cat sat on the mat " * 900
    path.write_text(words + opening + " " * (len(words) // 9 - len(opening)), encoding="utf-8")
    assert run("--vocab-size", "262") == 0
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.endswith("sample " + str(tmp_path / "run") + " 'To be'" * (opening == "\n\nTo be"))


def test_settings_in_the_readme_stay_cells_of_a_table(run, tmp_path):
    assert run("--prompt", "ROMEO:\n| a") == 0
    readme = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert r"| prompt | 'ROMEO:\n\| a' |" in readme
    assert "| seed | 123 |" in readme


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files as Linux does")
def test_no_room_for_a_checkpoint_is_exit_code_5_and_what_was_saved_stays(
    run, tmp_path, contents, after_step, monkeypatch, capsys
):
    import resource

    assert run("--out", str(tmp_path / "whole")) == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    after_step(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1])))
    try:
        assert run() == 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.search(r"no room on disk: cannot write the checkpoint .*--resume\n$", capsys.readouterr().err)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000002"]
    monkeypatch.undo()
    assert run("--resume") == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize("reason", ["can't allocate memory", "not enough memory"])  # on Linux, on Windows
def test_memory_that_runs_out_is_exit_code_5(run, monkeypatch, capsys, reason):
    def too_much(*args, **kwargs):
        raise RuntimeError(f"DefaultCPUAllocator: {reason}: you tried to allocate 9 bytes.")

    monkeypatch.setattr(run_module, "train", too_much)
    assert run() == 5
    assert "not enough memory" in capsys.readouterr().err


def test_damaged_record_is_named(run, tmp_path, capsys):
    assert run() == 0
    (tmp_path / "run" / "run.json").write_text("{", encoding="utf-8")
    assert run("--resume") == 1
    assert re.search(r"run\.json is damaged", capsys.readouterr().err)
