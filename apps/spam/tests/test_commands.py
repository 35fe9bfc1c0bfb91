"""`gpt-spam evaluate`, and the command line itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_spam.cli import main
from gpt_spam.run_folder import open_classifier, read_side


def test_evaluate_without_data_judges_what_the_run_held_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    test = read_side(run, "test")
    found = open_classifier(run, device="cpu").classify(test.texts)
    n_right = sum(one.label == label for one, label in zip(found, test.labels, strict=True))
    assert report["n"] == len(test)
    assert report["accuracy"]["value"] == pytest.approx(n_right / len(test))
    assert report["accuracy"]["low"] < report["accuracy"]["value"] <= report["accuracy"]["high"]
    assert report["positive"] == "spam"


def test_evaluate_on_other_texts_with_pictures(run: Path, data: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(run), "--data", str(data), "--out", str(tmp_path / "judged")]) == 0
    assert {path.name for path in (tmp_path / "judged").iterdir()} == {
        "report.json", "confusion.png", "roc.png", "calibration.png",
    }


def test_an_unknown_label_is_named_with_its_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "texts.csv"
    file.write_text("label,text\nham,hello\njunk,win\njunk,cash\n", encoding="utf-8")
    assert main(["evaluate", str(run), "--data", str(file)]) == 3
    assert "texts.csv:3: unknown label 'junk' (of 2 such rows the first)" in capsys.readouterr().err


def test_one_class_only_leaves_what_is_undefined_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.csv"
    file.write_text("label,text\nham,hello\nham,see you\n", encoding="utf-8")
    assert main(["evaluate", str(run), "--data", str(file)]) == 0
    assert "undefined" in capsys.readouterr().out


def test_a_bare_checkpoint_is_a_classifier_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(run / "model"), "hello"]) == 0
    assert main(["evaluate", str(run / "model")]) == 1
    assert "holds no held-out texts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ([], 2, "usage: gpt-spam"),
        (["clasify", "x"], 2, "did you mean 'classify'?"),
        (["classify", "nowhere", "x"], 2, "nowhere is no folder"),
        (["--version"], 0, "0.1."),
        (["classify", "run", "--fiel", "x"], 2, "--fiel"),
    ],
)
def test_a_wrong_command_line_is_told(
    arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert expected in out + err


@pytest.mark.parametrize("command", ["train", "classify", "evaluate", "serve"])
def test_each_command_has_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"gpt-spam {command}" in capsys.readouterr().out


def test_a_typo_is_told_without_waiting_for_torch() -> None:
    code = "import sys; from gpt_spam.cli import main; main(['trian']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "False"


def test_evaluate_writes_into_a_new_folder_only(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "test" / "report.json").read_bytes()
    assert main(["evaluate", str(run), "--out", str(run / "test")]) == 2
    assert "holds something already" in capsys.readouterr().err
    assert main(["evaluate", str(run)]) == 0
    assert (run / "test" / "report.json").read_bytes() == before
