"""`gpt-spam train`: what it writes, what it begins from, and how it ends where it cannot go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt_core import GPTConfig, GPTModel, load_checkpoint, save_checkpoint, verify_checkpoint
from gpt_finetune import fold, load_adapter, read_labelled
from gpt_spam.base_model import open_base_model
from gpt_spam.cli import main
from gpt_spam.run_folder import open_classifier, read_side
from gpt_spam.synthetic import SYNTHETIC_NOTE, synthetic_messages
from gpt_tokenizer import BPETokenizer, get_tokenizer

QUICKLY = ["--epochs", "1", "--device", "cpu"]


def test_a_run_holds_what_its_page_says(run: Path, data: Path) -> None:
    verify_checkpoint(run / "model")
    provenance = load_checkpoint(run / "model").provenance
    assert provenance["labels"] == ["ham", "spam"]
    assert provenance["template"] == "{text}"
    assert provenance["source"] == str(data)
    sides = [read_side(run, side) for side in ("train", "validation", "test")]
    rows = {(label, text) for side in sides for label, text in zip(side.labels, side.texts, strict=True)}
    whole = read_labelled(data)
    assert rows == set(zip(whole.labels, whole.texts, strict=True))
    assert sum(map(len, sides)) == len(whole)
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["epoch"] for line in epochs] == [1, 2]
    for picture in ("loss.png", "accuracy.png", "test/confusion.png", "test/roc.png", "test/calibration.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    page = (run / "README.md").read_text(encoding="utf-8")
    assert "95 % interval" in page
    for target in ("loss.png", "test/roc.png"):
        assert f"]({target})" in page
    report = json.loads((run / "test" / "report.json").read_text(encoding="utf-8"))
    assert report["n"] == len(sides[2])


def test_nothing_held_out_was_pretrained_on(run: Path) -> None:
    """The vocabulary holds merges of the training texts only: learning it again from them gives the same ids."""
    tokenizer = get_tokenizer(str(run / "model" / "tokenizer.json"))
    texts = [fold(text) for text in read_side(run, "train").texts]
    assert BPETokenizer.train(texts, vocab_size=tokenizer.n_vocab).sha256 == tokenizer.sha256


@pytest.mark.filterwarnings("ignore:the text has pairs")
@pytest.mark.parametrize("tune", ["last-block", "lora", "all"])
def test_a_model_that_was_given_is_tuned(tune: str, tmp_path: Path, data: Path) -> None:
    tokenizer = BPETokenizer.train([text for _, text in synthetic_messages(n=50)], vocab_size=300)
    torch.manual_seed(1)
    base = GPTModel(GPTConfig(vocab_size=300, context_length=48, emb_dim=16, n_heads=2, n_layers=2))
    save_checkpoint(tmp_path / "base", base, tokenizer=tokenizer)
    out = tmp_path / "run"
    command = ["train", "--data", str(data), "--model", str(tmp_path / "base"), "--tune", tune, "--out", str(out)]
    assert main([*command, *QUICKLY]) == 0
    model, before = load_checkpoint(out / "model").model, base.state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before.get(name, tensor))}
    first, last = (any(name.startswith(f"trf_blocks.{n}.") for name in changed) for n in (0, 1))
    assert last
    assert first == (tune != "last-block")
    assert ("tok_emb.weight" in changed) == (tune == "all")
    assert (out / "adapter").exists() == (tune == "lora")
    if tune == "lora":
        fresh = open_classifier(out, device="cpu").model
        texts = read_side(out, "test").texts[:8]
        expected = open_classifier(out, device="cpu").logits(texts)
        fresh.load_state_dict({**fresh.state_dict(), **{k: v for k, v in before.items() if k != "out_head.weight"}})
        load_adapter(out / "adapter", fresh)
        classifier = open_classifier(out, device="cpu")
        classifier.model = fresh
        torch.testing.assert_close(classifier.logits(texts), expected, atol=1e-5, rtol=0)


def test_without_data_and_network_the_built_in_texts_are_taken_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPT_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nothing listens
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), *QUICKLY]) == 0
    assert SYNTHETIC_NOTE in capsys.readouterr().err
    assert SYNTHETIC_NOTE in (out / "README.md").read_text(encoding="utf-8")
    assert load_checkpoint(out / "model").provenance["source"] == "built-in synthetic messages"


def test_other_columns_classes_and_a_quoted_file(tmp_path: Path) -> None:
    rows = ["kind,subject,body"]
    for number, (_, text) in enumerate(synthetic_messages(n=90)):
        kind = ("bill", "party", "work")[number % 3]
        rows.append(f'{kind},"about, {kind}","{text}\nsee ""{kind}"""')
    data = tmp_path / "mail.csv"
    data.write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "run"
    template = "Subject: {subject}\n\n{body}"
    command = ["train", "--data", str(data), "--label", "kind", "--template", template, "--out", str(out)]
    assert main([*command, "--validation", "0.2", *QUICKLY]) == 0
    classifier = open_classifier(out, device="cpu")
    assert classifier.labels == ("bill", "party", "work")
    assert classifier.template.text == template
    assert "mean over classes" in (out / "README.md").read_text(encoding="utf-8")


FAULTS = {
    "empty": ("", "no row"),
    "one class only": ("label,text\nham,hello\nham,there\n", "has 1 of the 2 labels"),
    "missing column": ("label,message\nham,hello\n", "no column 'text'"),
    "extra field": ("label,text\nham,hello,you\n", "messages.csv:2: the row has 3 fields"),
    "unclosed quote": ('label,text\nham,"hello\nspam,win\n', "messages.csv:2: a quote is opened"),
    "NUL": ("label,text\nham,hel\0lo\n", "messages.csv:2:8: a NUL"),
    "latin-1": ("label,text\nham,caf\xe9\n".encode("latin-1"), "byte 0xe9 is not UTF-8"),
    "UTF-16": ("label,text\nham,hello\n".encode("utf-16"), "is UTF-16"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_data_ends_in_one_sentence_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, expected = FAULTS[name]
    data, out = tmp_path / "messages.csv", tmp_path / "run"
    data.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["train", "--data", str(data), "--out", str(out), *QUICKLY]) == 3
    assert expected in capsys.readouterr().err
    assert not out.exists()


def test_rows_without_text_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [text.replace(",", "") for _, text in synthetic_messages(n=40)]
    rows = [f"{('ham', 'spam')[number % 2]},{text}" for number, text in enumerate(texts)]
    data = tmp_path / "messages.csv"
    data.write_bytes(("\ufefflabel,text\r\n" + "\r\n".join([*rows, "ham,", "spam,  "]) + "\r\n").encode())
    out = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(out), *QUICKLY]) == 0
    assert "left out: 2 of 42 rows" in capsys.readouterr().err
    assert "42 rows: 40 texts, 2 left out" in (out / "README.md").read_text(encoding="utf-8")


def test_a_folder_with_something_in_it_is_not_written_into(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("keep me", encoding="utf-8")
    assert main(["train", "--data", str(data), "--out", str(tmp_path), *QUICKLY]) == 2
    assert "holds something already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_run_keeps_its_best_classifier(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpt_spam import terminal

    update = terminal.Progress.update

    def until_the_second_epoch(self: terminal.Progress, step: int, loss: float) -> None:
        if self._what == "training" and step > self._n_steps // 2:
            raise KeyboardInterrupt
        update(self, step, loss)

    monkeypatch.setattr(terminal.Progress, "update", until_the_second_epoch)
    out = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(out), "--epochs", "2", "--device", "cpu"]) == 130
    assert "what was trained until then is kept" in capsys.readouterr().err
    assert main(["evaluate", str(out)]) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "125M"], "unknown GPT-2 size '125M'"),
        (["--validation", "0.9", "--test", "0.5"], "leave nothing to train on"),
        (["--validation", "0"], "--validation must lie between 0 and 1, got 0.0"),
        (["--test", "1"], "--test must lie between 0 and 1"),
        (["--epochs", "0"], "epochs must be"),
        (["--lr", "nan"], "lr must be"),
        (["--lora-rank", "8"], "needs --tune lora"),
        (["--tune", "lora", "--lora-rank", "0"], "rank must be"),
        (["--max-length", "9999"], "more than the small model's context"),
        (["--seed", "99999999999999999999"], "seed must be below"),
        (["--data", "nowhere.tsv"], "nowhere.tsv is no file"),
    ],
)
def test_a_setting_that_cannot_be_is_a_usage_error(
    arguments: list[str], expected: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code = main(["train", "--data", str(data), "--out", str(out), "--device", "cpu", *arguments])
    error = capsys.readouterr().err
    assert code == (3 if "no file" in expected else 2)
    assert expected in error
    assert "pretraining" not in error
    assert not out.exists()


def test_sigterm_cleans_up_as_ctrl_c_does(tmp_path: Path, data: Path) -> None:
    code = "import sys; from gpt_spam.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "train", "--data", str(data), "--out", str(tmp_path / "run"), *QUICKLY]
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("pretraining: step"):
                process.terminate()
                break
        rest = process.stderr.read()
    assert process.returncode == (1 if os.name == "nt" else 143)
    if os.name != "nt":  # where there is no such signal, only an end without one
        assert "stopped" in rest
        assert not (tmp_path / "run").exists()


def test_a_model_in_16_bits_is_trained_in_32(tmp_path: Path) -> None:
    tokenizer = BPETokenizer.train([text for _, text in synthetic_messages(n=50)], vocab_size=300)
    base = GPTModel(GPTConfig(vocab_size=300, context_length=48, emb_dim=16, n_heads=2, n_layers=2))
    save_checkpoint(tmp_path / "base", base.to(torch.bfloat16), tokenizer=tokenizer)
    assert open_base_model(str(tmp_path / "base"), device="cpu").model.tok_emb.weight.dtype == torch.float32
