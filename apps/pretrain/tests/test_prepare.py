import errno
import json
import shutil
import sys

import pytest

from gpt_pretrain import data_folder
from gpt_pretrain import prepare as prepare_module
from gpt_pretrain.cli import main
from gpt_tokenizer import get_tokenizer
from gpt_train import ShardDataset


@pytest.fixture
def shards(text, tmp_path):
    """Return a folder prepared from the text with a vocabulary of 300."""
    assert main(["prepare", "--data", str(text), "--out", str(tmp_path / "shards"), "--vocab-size", "300"]) == 0
    return tmp_path / "shards"


def ids_of(folder):
    dataset = ShardDataset(folder)
    inputs, targets = dataset.windows(batch_size=1, context_length=dataset.n_tokens - 1)[0]
    return [*inputs[0].tolist(), int(targets[0, -1])]


def test_shards_hold_the_ids_of_both_sides_of_the_text(shards, text):
    tokenizer = get_tokenizer(str(shards / "tokenizer.json"))
    whole = text.read_text(encoding="utf-8")
    cut = int(len(whole) * 0.9)
    assert ids_of(shards / "train") == tokenizer.encode(whole[:cut])
    assert ids_of(shards / "val") == tokenizer.encode(whole[cut:])


def test_an_end_of_text_token_stands_between_documents_and_text_cannot_forge_one(tmp_path, tokenizer_file):
    texts = [f"document {k} says <|endoftext|> and more" for k in range(40)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    out = tmp_path / "shards"
    command = ["--data", str(tmp_path / "rows.jsonl"), "--out", str(out), "--tokenizer", str(tokenizer_file)]
    assert main(["prepare", *command]) == 0
    tokenizer = get_tokenizer(tokenizer_file)
    summary = json.loads((out / "prepare.json").read_text(encoding="utf-8"))
    found = []
    for side in ("train", "val"):
        ids = ids_of(out / side)
        assert ids.count(tokenizer.eot_token) == summary[side]["documents"] - 1
        found += tokenizer.decode(ids).split(" and more")
    assert summary["train"]["documents"] + summary["val"]["documents"] == 40
    assert sum("says" in part for part in found) == 40


def test_what_is_prepared_does_not_depend_on_how_much_is_encoded_at_a_time(shards, text, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "BATCH_CHARACTERS", 10)
    assert main(["prepare", "--data", str(text), "--out", str(tmp_path / "b"), "--vocab-size", "300"]) == 0
    for name in ("tokenizer.json", "train/shard-00000.bin", "val/shard-00000.bin", "prepare.json"):
        assert (shards / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_training_on_shards_is_training_on_their_text(run, shards, tmp_path, contents):
    assert run("--out", str(tmp_path / "a")) == 0
    assert run("--out", str(tmp_path / "b"), "--data", str(shards)) == 0
    weights = [contents(tmp_path / name)["step-00000006/model.safetensors"] for name in "ab"]
    assert weights[0] == weights[1]
    assert not (tmp_path / "b" / "data").exists()


def test_prepared_text_is_not_overwritten(shards, text, capsys, contents):
    before = contents(shards)
    assert main(["prepare", "--data", str(text), "--out", str(shards), "--vocab-size", "290"]) == 1
    assert "holds prepared text already" in capsys.readouterr().err
    assert contents(shards) == before


def test_folder_of_something_else_is_left_alone(text, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    assert main(["prepare", "--data", str(text), "--out", str(tmp_path / "thesis"), "--vocab-size", "300"]) == 1
    assert "something else (chapter.tex)" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize("name", ["train/a.txt", "val/b.txt", "tokenizer.json", "train/shard-00000.bin"])
def test_what_has_only_the_names_of_prepared_text_is_refused_and_left_alone(text, tmp_path, capsys, contents, name):
    mine = tmp_path / "mine"
    (mine / name).parent.mkdir(parents=True)
    (mine / name).write_text("years of work", encoding="utf-8")
    before = contents(mine)
    assert main(["prepare", "--data", str(text), "--out", str(mine), "--vocab-size", "300"]) == 1
    assert f"holds files of something else ({name.partition('/')[0]}" in capsys.readouterr().err
    assert contents(mine) == before


def test_folder_of_the_tokenizer_is_no_folder_for_shards(text, tokenizer_file, tmp_path):
    folder = tmp_path / "tok"
    folder.mkdir()
    before = tokenizer_file.read_bytes()
    file = tokenizer_file.rename(folder / "tokenizer.json")
    assert main(["prepare", "--data", str(text), "--out", str(folder), "--tokenizer", str(file)]) == 1
    assert file.read_bytes() == before


def test_lock_file_with_something_in_it_is_not_ours(text, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".lock").write_text("4711", encoding="utf-8")
    assert main(["prepare", "--data", str(text), "--out", str(tmp_path / "mine"), "--vocab-size", "300"]) == 1
    assert "something else (.lock)" in capsys.readouterr().err
    assert (tmp_path / "mine" / ".lock").read_text(encoding="utf-8") == "4711"


def kill_while_preparing(command, monkeypatch):
    """Let ``command`` die before its summary is written, with nothing cleaned up, as after a real kill."""

    def killed(*args, **kwargs):
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "write_json", killed)
        patched.setattr(prepare_module, "clear", lambda folder: None)
        assert main(command) == 9


def test_interrupted_preparation_leaves_nothing_that_looks_whole(text, shards, tmp_path, monkeypatch, contents):
    out = tmp_path / "again"
    command = ["prepare", "--data", str(text), "--out", str(out), "--vocab-size", "300"]
    kill_while_preparing(command, monkeypatch)
    assert (out / "val").exists()
    assert not (out / "prepare.json").exists()
    assert main(["--data", str(out)]) == 3  # no text and no shards, as far as training can tell
    assert main(command) == 0
    assert contents(out) == contents(shards)


def test_what_a_person_put_beside_an_interrupted_preparation_is_left_alone(text, tmp_path, monkeypatch, capsys):
    out = tmp_path / "shards"
    command = ["prepare", "--data", str(text), "--out", str(out), "--vocab-size", "300"]
    kill_while_preparing(command, monkeypatch)
    (out / "train" / "mine.txt").write_text("years of work", encoding="utf-8")
    assert main(command) == 1
    assert "something else (train/mine.txt)" in capsys.readouterr().err
    assert (out / "train" / "mine.txt").read_text(encoding="utf-8") == "years of work"


def test_summary_that_cannot_be_written_leaves_nothing(text, tmp_path, monkeypatch):
    def full(values, file, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "shards"
    monkeypatch.setattr(data_folder.json, "dump", full)
    assert main(["prepare", "--data", str(text), "--out", str(out), "--vocab-size", "300"]) == 5
    monkeypatch.undo()
    assert not (out / "train").exists()
    assert [path.name for path in out.glob("*")] in ([], [".lock"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files as Linux does")
@pytest.mark.parametrize("most", [1000, 6000])  # bytes: too few for the tokenizer, for the shards
def test_no_room_for_prepared_text_is_exit_code_5_and_leaves_nothing(text, tmp_path, tokenizer_file, capsys, most):
    import resource

    out = tmp_path / "shards"
    command = ["prepare", "--data", str(text), "--out", str(out), "--tokenizer", str(tokenizer_file)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        assert main(command) == 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no room on disk: File too large" in capsys.readouterr().err
    assert not out.exists()
    assert main(command) == 0


def test_shards_of_another_tokenizer_are_refused(run, shards, text, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("some other words altogether " * 500, encoding="utf-8")
    other = tmp_path / "other"
    command = ["prepare", "--data", str(tmp_path / "other.txt"), "--out", str(other), "--vocab-size", "270"]
    assert main(command) == 0
    shutil.copy(other / "tokenizer.json", shards / "tokenizer.json")
    assert run("--data", str(shards)) == 3
    assert "was written with another tokenizer" in capsys.readouterr().err


def test_shards_of_another_vocabulary_than_the_models_are_refused(run, shards, capsys):
    assert run("--data", str(shards), "--vocab-size", "400") == 2
    assert "the tokenizer has 300 tokens, but vocab_size is 400" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: b"XXXX" + data[4:], "is not a shard file"),
        (lambda data: data[:12] + b"\x04" + data[13:], "damaged header"),
        (lambda data: data[:-1], r"write the shards again"),
        (lambda data: data[:-2] + b"\x00\x00", "is damaged"),
    ],
)
def test_damaged_shard_is_refused_before_the_first_step(run, shards, tmp_path, capsys, damage, problem):
    shard = shards / "train" / "shard-00000.bin"
    shard.write_bytes(damage(shard.read_bytes()))
    assert run("--data", str(shards)) == 3
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_damaged_summary_is_refused(run, shards, capsys):
    (shards / "prepare.json").write_text('{"format": "gpt-pretrain/data-1"}', encoding="utf-8")
    assert run("--data", str(shards)) == 3
    assert "prepare.json is damaged" in capsys.readouterr().err


def test_a_vocabulary_to_be_learned_needs_its_size(text, tmp_path, capsys):
    assert main(["prepare", "--data", str(text), "--out", str(tmp_path / "shards")]) == 2
    assert "--vocab-size N" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()
