"""`gpt-spam classify` and `evaluate`, and the command line itself."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_spam.cli import main
from gpt_spam.run_folder import open_classifier, read_side


class Stdin:
    """Standard input with these bytes, no terminal."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


def test_texts_of_the_command_line_get_label_and_probability(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(run), "hello there", "two\nlines <|endoftext|>"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for _, _, text in lines] == ["hello there", "two lines <|endoftext|>"]
    expected = open_classifier(run, device="cpu").classify(["hello there", "two\nlines <|endoftext|>"])
    for (label, share, _), prediction in zip(lines, expected, strict=True):
        assert label == prediction.label
        assert float(share) == pytest.approx(prediction.probabilities[label], abs=1e-4)


def test_json_tells_all_classes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(run), "--json", "hello there"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert set(row["probabilities"]) == {"ham", "spam"}
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert row["line"] == 1


def test_each_line_of_standard_input_is_a_text(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin("\ufeffhello\r\n\ncall 0900 now\n".encode()))
    assert main(["classify", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["line"], row["text"]) for row in rows] == [(1, "hello"), (3, "call 0900 now")]
    assert "left out: 1 empty" in err


def test_input_that_is_not_utf8_is_named_by_its_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"fine\ncaf\xe9\n"))
    assert main(["classify", str(run)]) == 3
    assert "standard input, line 2: byte 3 (0xe9) is not UTF-8" in capsys.readouterr().err


def test_a_file_is_read_by_the_classifiers_template(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.csv"
    file.write_text('number,text\n1,"one, and"\n2,\n3,three\n', encoding="utf-8")
    assert main(["classify", str(run), "--file", str(file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["line"] for line in out.splitlines()] == [2, 4]
    assert "left out: 1 of 3 rows" in err


def test_a_long_text_is_read_up_to_the_context_and_that_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(run), "--json", "word " * 2000]) == 0
    out, err = capsys.readouterr()
    row = json.loads(out)
    assert row["truncated"]
    assert row["n_tokens"] == open_classifier(run, device="cpu").max_length
    assert "1 texts were longer" in err


def test_control_characters_do_not_reach_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(run), "red \x1b[31m alert \x07"]) == 0
    assert "\x1b" not in capsys.readouterr().out


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
