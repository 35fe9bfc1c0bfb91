"""Crash safety: writers killed at every step, full disks, flipped bits, leftovers of the dead."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gpt_core.durable
from gpt_core.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, verify_checkpoint
from gpt_core.config import GPTConfig
from gpt_core.durable import CheckpointError, publish_folder, verify_folder
from gpt_core.model import GPTModel

CONFIG = GPTConfig(vocab_size=11, context_length=4, emb_dim=4, n_heads=2, n_layers=1)
on_posix = pytest.mark.skipif(os.name == "nt", reason="forks children and kills them")


def make_model(seed: int) -> GPTModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTModel(CONFIG)


def seed_of(folder: Path) -> int:
    """Return the seed whose model the checkpoint holds, bit for bit, or fail."""
    weights = load_checkpoint(folder).model.state_dict()
    for seed in (1, 2, 3, 4):
        if all(torch.equal(tensor, weights[name]) for name, tensor in make_model(seed).state_dict().items()):
            return seed
    raise AssertionError(f"{folder} holds a model that nobody saved")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


RUNS = ["replace-kill", "next-kill", "prune-kill", "replace-full", "next-full", "replace-limit"]
Broken = dict[str, list[Path]]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Broken:
    """For each run the folders that a fault at the first, second, ... step left; the last had none.

    One process runs them all, because importing torch takes longer than the two hundred saves.
    """
    root = tmp_path_factory.mktemp("broken")
    script = Path(__file__).with_name("broken_disk.py")
    done = subprocess.run(
        [sys.executable, str(script), str(root), *RUNS],
        capture_output=True, encoding="utf-8", timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    folders = {}
    for name in RUNS:
        numbers = sorted(int(path.name) for path in (root / name).iterdir() if path.is_dir())
        assert len(numbers) > 15  # fewer would mean that the faults did not happen
        folders[name] = [root / name / str(n) for n in numbers[1:]]  # 0 is what each started from
    return folders


@on_posix
def test_killed_at_any_step_while_replacing_leaves_the_old_or_the_new_checkpoint(
    broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    *killed, finished = broken["replace-kill"]
    seeds = [seed_of(folder / "model") for folder in killed]
    assert seeds == sorted(seeds)
    assert set(seeds) == {1, 2}  # some kills came before the new one counted, some after
    assert seed_of(finished / "model") == 2
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thirty saves; the real call takes milliseconds
    for folder in killed:
        save_checkpoint(folder / "model", make_model(3))
        assert names_in(folder) == ["model"]  # the next save swept up
        assert seed_of(folder / "model") == 3


@on_posix
def test_killed_at_any_step_of_the_next_checkpoint_the_newest_complete_one_loads(broken: Broken) -> None:
    *killed, finished = broken["next-kill"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no half checkpoint is even seen
        for folder in killed:
            newest = list_checkpoints(folder)[-1]
            assert seed_of(folder) == int(newest.name.removeprefix("step-"))
            verify_checkpoint(newest)
        assert seed_of(finished) == 2


@on_posix
def test_killed_at_any_step_of_pruning_leaves_only_whole_checkpoints(broken: Broken) -> None:
    *killed, finished = broken["prune-kill"]
    for folder in killed:
        for path in list_checkpoints(folder):
            verify_checkpoint(path)
        assert [path.name for path in list_checkpoints(folder)][-2:] == ["step-3", "step-4"]
    assert names_in(finished) == ["step-3", "step-4"]


@on_posix
@pytest.mark.parametrize(("scenario", "before"), [("replace", ["model"]), ("next", ["step-1"])])
def test_full_disk_at_any_step_keeps_the_old_removes_the_new_and_says_so(
    broken: Broken, scenario: str, before: list[str]
) -> None:
    *failed, finished = broken[f"{scenario}-full"]
    for folder in failed:
        report = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
        assert report["errno"] == errno.ENOSPC
        assert "cannot write the checkpoint" in report["message"]
        assert "it needs at least" in report["message"]
        if seed_of(folder / "model" if scenario == "replace" else folder) == 1:
            assert names_in(folder) == before
        else:  # the new one was in place and only the last fsync, or removing the old one, failed
            assert not [name for name in names_in(folder) if ".tmp-" in name]
    assert seed_of(finished / "model" if scenario == "replace" else finished) == 2


@on_posix
def test_a_file_that_cannot_grow_any_more_is_an_oserror_that_leaves_nothing_behind(broken: Broken) -> None:
    *failed, finished = broken["replace-limit"]  # a real limit of 80, 160, ... bytes a file
    for folder in failed:
        report = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
        assert report["errno"] == errno.EFBIG
        assert names_in(folder) == ["model"]
        assert seed_of(folder / "model") == 1
    assert seed_of(finished / "model") == 2


def test_everything_is_forced_to_the_disk_before_the_rename_that_publishes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, Path]] = []
    for name in ("_fsync_file", "_fsync_folder"):
        real = getattr(gpt_core.durable, name)

        def noted(path: Path, real: Callable[[Path], None] = real) -> None:
            events.append(("fsync", path))
            real(path)

        monkeypatch.setattr(gpt_core.durable, name, noted)
    rename = Path.rename

    def noted_rename(self: Path, target: Path) -> Path:
        inside = [path.relative_to(self) for path in self.rglob("*")]
        events.extend([("holds", self / path) for path in inside] + [("rename", self)])
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", noted_rename)

    def write(tmp: Path) -> None:
        (tmp / "a").write_bytes(b"1")
        (tmp / "sub").mkdir()
        (tmp / "sub" / "b").write_bytes(b"2")

    publish_folder(tmp_path / "x", write, needed=2)
    (at,) = (i for i, (event, _) in enumerate(events) if event == "rename")
    tmp = events[at][1]
    held = {path for event, path in events if event == "holds"}
    assert held == {tmp / name for name in ("a", "sub", "sub/b", "manifest.json")}
    synced = [path for event, path in events[:at] if event == "fsync"]
    assert set(synced) == held | {tmp}
    assert synced.index(tmp / "manifest.json") > max(synced.index(tmp / "a"), synced.index(tmp / "sub" / "b"))
    assert synced[-1] == tmp
    assert events[at + 1 :] == [("fsync", tmp_path.resolve())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def write_trainer(tmp: Path) -> None:
        (tmp / "trainer").mkdir()
        (tmp / "trainer" / "state.bin").write_bytes(bytes(range(256)))

    folder = tmp_path_factory.mktemp("whole") / "step-7"
    return save_checkpoint(folder, make_model(1), provenance={"data": "é"}, extra=write_trainer)


FILES = ["config.json", "manifest.json", "model.safetensors", "trainer/state.bin"]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found_and_the_file_named(whole: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "x"
    shutil.copytree(whole, folder)
    data = (folder / name).read_bytes()
    for bit in random.Random(0).sample(range(8 * len(data)), min(600, 8 * len(data))):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(flipped)
        # A flip in the manifest may also blame the file whose entry it changed.
        with pytest.raises(CheckpointError, match="damaged|missing" if name == "manifest.json" else name):
            verify_folder(folder)
    (folder / name).write_bytes(data)
    verify_folder(folder)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_found_and_the_file_named(whole: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "x"
    shutil.copytree(whole, folder)
    data = (folder / name).read_bytes()
    for percent in range(100):
        (folder / name).write_bytes(data[: len(data) * percent // 100])
        with pytest.raises(CheckpointError, match=name):
            verify_folder(folder)
        if name != "manifest.json":
            with pytest.raises(CheckpointError, match=name):
                verify_folder(folder, digests=False)  # sizes suffice
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        verify_folder(folder)


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "a/../../b", "a//b", "./a", "a\\b", "C:x", "C:/x", "a\0b", "", "a/", ".."],
)
def test_a_manifest_that_names_files_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    entry = {name: {"size": 1, "sha256": "0" * 64}}
    text = json.dumps({"format": "manifest/1", "files": entry}, indent=2) + "\n"
    (tmp_path / "manifest.json").write_text(text, encoding="ascii", newline="")
    with pytest.raises(CheckpointError, match="is not the name of a file inside the folder"):
        verify_folder(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "[" * 100_000, '{"files": 3}', '{"files": {"a": 1}}', "\xff"]
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        verify_folder(tmp_path)


@on_posix
def test_a_symlink_that_leads_out_of_the_folder_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(whole, folder)
    (folder / "config.json").rename(tmp_path / "outside.json")
    (folder / "config.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        verify_folder(folder)


def dead_process() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@on_posix
def test_leftovers_of_the_dead_are_ignored_by_readers_and_swept_by_the_next_writer(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", make_model(1))
    dead, alive = dead_process(), os.getppid()
    for name in (f"model.tmp-{dead}", f"model.old-{dead}", f"model.tmp-{alive}", f"other.tmp-{dead}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("half", encoding="utf-8")
    assert seed_of(tmp_path / "model") == 1
    assert list_checkpoints(tmp_path) == []
    save_checkpoint(tmp_path / "model", make_model(2))
    assert names_in(tmp_path) == ["model", f"model.tmp-{alive}", f"other.tmp-{dead}"]


@on_posix
def test_a_checkpoint_left_aside_is_read_and_put_back_before_the_next_save(tmp_path: Path) -> None:
    aside = tmp_path / f"model.old-{dead_process()}"
    save_checkpoint(tmp_path / "model", make_model(1)).rename(aside)
    assert seed_of(tmp_path / "model") == 1

    def fail(tmp: Path) -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        save_checkpoint(tmp_path / "model", make_model(2), extra=fail)
    assert names_in(tmp_path) == ["model"]
    assert seed_of(tmp_path / "model") == 1


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt(), ValueError("no")])
def test_whatever_the_callers_part_raises_the_old_checkpoint_is_unchanged(
    tmp_path: Path, error: BaseException
) -> None:
    save_checkpoint(tmp_path / "model", make_model(1))

    def fail(tmp: Path) -> None:
        (tmp / "more").write_bytes(b"")
        raise error

    with pytest.raises(type(error)):
        save_checkpoint(tmp_path / "model", make_model(2), extra=fail)
    assert names_in(tmp_path) == ["model"]
    assert seed_of(tmp_path / "model") == 1


def test_interrupted_between_the_two_renames_the_old_checkpoint_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "model", make_model(1))
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "model", make_model(2))
    assert names_in(tmp_path) == ["model"]
    assert seed_of(tmp_path / "model") == 1


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work", encoding="utf-8")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text("{}", encoding="utf-8")
    save_checkpoint(tmp_path / "run" / "step-1", make_model(1))
    for name, why in (
        ("thesis", "holds chapter1.txt"),
        ("file", "is a file"),
        ("config", "no manifest"),
        ("run", "step-1"),
    ):
        with pytest.raises(CheckpointError, match=why):
            save_checkpoint(tmp_path / name, make_model(2))
    assert (tmp_path / "thesis" / "chapter1.txt").read_text(encoding="utf-8") == "years of work"
    assert seed_of(tmp_path / "run") == 1


def test_a_checkpoint_with_a_strangers_file_in_it_is_not_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", make_model(1))
    (tmp_path / "model" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"it holds notes\.txt; choose another folder or empty it"):
        save_checkpoint(tmp_path / "model", make_model(2))
    assert seed_of(tmp_path / "model") == 1


def test_dot_files_count_unless_macos_made_them(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", make_model(1))
    for name in (".DS_Store", "._config.json"):
        (tmp_path / "model" / name).write_text("", encoding="utf-8")
    save_checkpoint(tmp_path / "model", make_model(2))
    assert seed_of(tmp_path / "model") == 2
    (tmp_path / "model" / ".env").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"it holds \.env; choose another folder or empty it"):
        save_checkpoint(tmp_path / "model", make_model(3))
    assert (tmp_path / "model" / ".env").read_text(encoding="utf-8") == "mine"


def test_the_error_names_the_file_that_the_callers_part_could_not_use(tmp_path: Path) -> None:
    class Tokenizer:
        def save(self, path: Path) -> None:
            shutil.copy(tmp_path / "vocab.json", path)

    with pytest.raises(FileNotFoundError, match=r"cannot write the checkpoint .*model: .*vocab\.json") as caught:
        save_checkpoint(tmp_path / "model", make_model(1), tokenizer=Tokenizer())
    assert caught.value.errno == errno.ENOENT


def test_a_code_of_windows_becomes_the_errno_that_belongs_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        if os.name != "nt":  # a stand-in for what OSError does there with its fourth argument
            known = {112: SimpleNamespace(errno=errno.ENOSPC)}
            patch.setattr(gpt_core.durable, "OSError", lambda *given: known[given[3]], raising=False)
            patch.setattr(os, "name", "nt")
        found = gpt_core.durable._errno_of(112)
    assert found == errno.ENOSPC


def test_an_empty_folder_and_a_damaged_checkpoint_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_checkpoint(tmp_path / "model", make_model(1))
    (tmp_path / "model" / "manifest.json").write_text("damaged", encoding="utf-8")
    save_checkpoint(tmp_path / "model", make_model(2))
    assert seed_of(tmp_path / "model") == 2


def test_the_name_of_a_leftover_is_refused(tmp_path: Path) -> None:
    for name in ("a.tmp-1", "a.old-22"):
        with pytest.raises(CheckpointError, match="mark leftovers"):
            save_checkpoint(tmp_path / name, make_model(1))


@on_posix
def test_a_symlink_to_a_checkpoint_stays_one_when_it_is_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "real", make_model(1))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save_checkpoint(tmp_path / "link", make_model(2))
    assert (tmp_path / "link").is_symlink()
    assert seed_of(tmp_path / "real") == 2


@on_posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="cannot write the checkpoint"):
            save_checkpoint(tmp_path / "model", make_model(1))
    finally:
        tmp_path.chmod(0o700)
