"""`gpt-spam classify`: texts of the command line, of a file, and of a pipe that is still open."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpt_spam.cli import main
from gpt_spam.messages import SYNTHETIC
from gpt_spam.run_folder import open_classifier
from gpt_spam.synthetic import SYNTHETIC_NOTE
from gpt_spam.terminal import counted

LINE_END = os.linesep.encode()


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
    assert "left out: 1 empty text\n" in err


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
    assert f"longer than {row['n_tokens']} tokens and read up to there: 1 text\n" in err


def test_control_characters_do_not_reach_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(run), "red \x1b[31m alert \x07"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_pipe_that_stays_open_is_answered_line_by_line(run: Path) -> None:
    command = [sys.executable, "-c", "from gpt_spam.cli import main; raise SystemExit(main())", "classify", str(run)]
    with subprocess.Popen(
        [*command, "--device", "cpu"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(120, process.kill)  # else a failure would wait for ever
        watch.start()
        try:
            process.stdin.write(b"first\nsecond, be")
            assert process.stdout.readline().endswith(b"\tfirst" + LINE_END)
            process.stdin.write(b"gun above\r\nthird")
            assert process.stdout.readline().endswith(b"\tsecond, begun above" + LINE_END)
            process.stdin.close()
            assert process.stdout.readline().endswith(b"\tthird" + LINE_END)
            assert process.wait() == 0
        finally:
            watch.cancel()
            process.kill()


def test_many_lines_are_answered_in_order(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"message {k} \u2014 {'x' * (k % 50)}" for k in range(1500)]  # several reads, some end within a character
    monkeypatch.setattr(sys, "stdin", Stdin("\n".join(texts).encode()))
    assert main(["classify", str(run), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["line"], row["text"]) for row in rows] == list(enumerate(texts, start=1))


BAD_LINES = {
    "latin-1": (b"caf\xe9", "byte 3 (0xe9) is not UTF-8"),
    "NUL": (b"a\0b", "a NUL stands in the text"),
    "carriage return": (b"a\rb", "a carriage return stands within"),
    "too long": (b"x" * (16 * 2**20 + 1), "more than 16,777,216 bytes"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_lines_before_a_bad_one_are_answered_and_it_is_named(
    line: bytes, reason: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"one\ntwo\n" + line + b"\nfour\n"))
    assert main(["classify", str(run)]) == 3
    out, err = capsys.readouterr()
    assert [row.split("\t")[2] for row in out.splitlines()] == ["one", "two"]
    assert "standard input, line 3: " in err
    assert reason in err


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\n"])
def test_standard_input_without_text_is_bad_data(
    content: bytes, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    assert main(["classify", str(run)]) == 3
    assert "there is no text to classify" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a text", "--file", "texts.txt"], "give one of both"),
        (["a text", "--max-bad", "3"], "--max-bad is about the rows of a file"),
        (["--max-bad", "3"], "--max-bad is about the rows of a file"),
        (["--columns", "text"], "--columns is about the rows of a file"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_a_sentence(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", "runs/spam", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gpt-spam: ")
    assert expected in err


def test_a_classifier_of_synthetic_texts_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = open_classifier(run, device="cpu")
    for source, is_told in ((SYNTHETIC, True), ("messages.csv", False)):
        folder = classifier.save(tmp_path / source, provenance={"source": source})
        assert main(["classify", str(folder), "hello"]) == 0
        assert (SYNTHETIC_NOTE in capsys.readouterr().err) == is_told


def test_a_count_agrees_with_its_noun() -> None:
    assert [counted(n, "text") for n in (0, 1, 2, 2000)] == ["0 texts", "1 text", "2 texts", "2,000 texts"]
