"""The checkpoint directory: what it holds, what comes back, which of a run's is taken, what is refused."""

import hashlib
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gpt_core.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from gpt_core.config import GPTConfig
from gpt_core.durable import CheckpointError
from gpt_core.model import GPTModel

CONFIG = GPTConfig(
    vocab_size=11, context_length=4, emb_dim=4, n_heads=2, n_layers=1, drop_rate=0.1, qkv_bias=True
)
PROVENANCE = {"data": ["a.txt", "ß.txt"], "steps": 7, "loss": 1.25, "resumed": None, "seed": {"value": 2**70}}


class FakeTokenizer:
    def save(self, path: Path) -> None:
        path.write_text('{"version": "1.0"}', encoding="utf-8")


def make_model(seed: int = 0) -> GPTModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTModel(CONFIG)


def save_run(run: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(run / f"step-{step}", make_model(step))
    return run


def damage(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def equals(model: GPTModel, seed: int) -> bool:
    expected = make_model(seed).state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_loading_undoes_saving(tmp_path: Path) -> None:
    def write_trainer(tmp: Path) -> None:
        (tmp / "trainer").mkdir()
        (tmp / "trainer" / "state.json").write_text("{}", encoding="utf-8")

    model = make_model().train()
    folder = save_checkpoint(
        tmp_path / "new" / "deep" / "model", model,
        tokenizer=FakeTokenizer(), provenance=PROVENANCE, extra=write_trainer,
    )
    loaded = load_checkpoint(folder)
    assert loaded.folder == folder == tmp_path / "new" / "deep" / "model"
    assert loaded.config == loaded.model.config == CONFIG
    assert loaded.provenance == PROVENANCE
    assert loaded.tokenizer_file == folder / "tokenizer.json"
    assert loaded.tokenizer_file.read_text(encoding="utf-8") == '{"version": "1.0"}'
    assert (folder / "trainer" / "state.json").read_text(encoding="utf-8") == "{}"
    assert equals(loaded.model, 0)
    assert not any(module.training for module in loaded.model.modules())
    assert model.training  # saving leaves the model alone


def test_a_path_may_be_text_and_a_tokenizer_may_be_missing(tmp_path: Path) -> None:
    assert save_checkpoint(str(tmp_path / "x"), make_model()) == tmp_path / "x"
    loaded = load_checkpoint(str(tmp_path / "x"), device="cpu")
    assert (loaded.tokenizer_file, loaded.provenance) == (None, {})


def test_a_relative_folder_is_found_from_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint("x", make_model())
    assert load_checkpoint("x").folder == Path("x")
    assert (tmp_path / "x" / "manifest.json").is_file()


def test_the_files_are_those_of_the_format(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "x", make_model(), tokenizer=FakeTokenizer(), provenance=PROVENANCE)
    names = {"config.json", "manifest.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "config.json").read_bytes()) == {
        "format": "gpt-core/1",
        "requires": "gpt-core>=0.1",
        "model": CONFIG.to_dict(),
        "provenance": PROVENANCE,
    }
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    assert files.keys() == names - {"manifest.json"}
    for name, entry in files.items():
        data = (folder / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    folders = [save_checkpoint(tmp_path / name, make_model(), provenance=PROVENANCE) for name in ("a", "b")]
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()


@pytest.mark.parametrize(
    "provenance",
    [{"x": math.nan}, {"x": object()}, {1: "x"}, {"x": (1, 2)}, {"x": "\ud800"}, {"x": {2: 3}}, [1]],
)
def test_a_provenance_that_would_not_come_back_equal_is_refused(tmp_path: Path, provenance: Any) -> None:
    with pytest.raises(ValueError, match="provenance must be"):
        save_checkpoint(tmp_path / "x", make_model(), provenance=provenance)
    assert not list(tmp_path.iterdir())


def test_a_compiled_model_is_saved_as_the_model_it_wraps(tmp_path: Path) -> None:
    compiled: Any = torch.nn.Module()  # as torch.compile makes them, but that would take seconds to import
    compiled._orig_mod = make_model(3)
    save_checkpoint(tmp_path / "x", compiled)
    assert equals(load_checkpoint(tmp_path / "x").model, 3)


def test_the_newest_checkpoint_of_a_run_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    run = save_run(tmp_path, 9, 10, 2)
    (run / "step-99.txt").write_text("", encoding="utf-8")
    (run / "step-x").mkdir()
    (run / "step-11.tmp-1").mkdir()
    assert [path.name for path in list_checkpoints(run)] == ["step-2", "step-9", "step-10"]
    loaded = load_checkpoint(run)
    assert loaded.folder == run / "step-10"
    assert equals(loaded.model, 10)


def test_damaged_checkpoints_of_a_run_are_passed_over_with_a_warning_that_names_them(tmp_path: Path) -> None:
    run = save_run(tmp_path, 1, 2, 3)
    damage(run / "step-3")
    (run / "step-2" / "config.json").unlink()
    with pytest.warns(UserWarning, match="is passed over for an earlier checkpoint") as warned:
        loaded = load_checkpoint(run)
    assert equals(loaded.model, 1)
    texts = [str(warning.message) for warning in warned]
    assert len(texts) == 2
    assert "model.safetensors is damaged" in texts[0]
    assert "config.json is missing" in texts[1]
    assert all(warning.filename == __file__ for warning in warned)


def test_a_run_without_an_intact_checkpoint_is_an_error(tmp_path: Path) -> None:
    run = save_run(tmp_path, 1)
    damage(run / "step-1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CheckpointError, match=r"none of the 1 checkpoints in .* is intact"):
            load_checkpoint(run)


def test_a_single_damaged_checkpoint_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    folder = save_run(tmp_path, 1) / "step-1"
    verify_checkpoint(folder)
    damage(folder)
    for check in (load_checkpoint, verify_checkpoint):
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its sha256 is"):
            check(folder)


def test_where_there_is_no_checkpoint_the_error_says_what_was_looked_for(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(CheckpointError, match="it is a file; give the folder that holds it"):
        load_checkpoint(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: no manifest\.json and no folder step-N"):
        load_checkpoint(tmp_path)


def rewrite_config(folder: Path, **changes: Any) -> None:
    """Change config.json as another program would that also keeps the manifest right."""
    config = json.loads((folder / "config.json").read_bytes())
    data = json.dumps({**config, **changes}).encode()
    (folder / "config.json").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["config.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_bytes((json.dumps(manifest, indent=2) + "\n").encode())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "gpt-core/2", "requires": "gpt-core>=0.9"}, "install 'gpt-core>=0.9'"),
        ({"format": "gpt-core/2", "requires": "rm -rf /"}, "install a newer gpt-core"),
        ({"format": "gpt-core/2", "requires": None}, "has format 'gpt-core/2', this one reads 'gpt-core/1'"),
        ({"format": None}, "has format None"),
        ({"model": []}, "must hold the objects 'model' and 'provenance'"),
        ({"provenance": "x"}, "must hold the objects 'model' and 'provenance'"),
        ({"model": {**CONFIG.to_dict(), "n_head": 2}}, "unknown key 'n_head' .*did you mean 'n_heads'"),
        ({"model": {**CONFIG.to_dict(), "n_heads": 0}}, "n_heads must be a whole number"),
        ({"model": {**CONFIG.to_dict(), "n_layers": 2}}, r"model\.safetensors does not fit its config\.json"),
        ({"model": {**CONFIG.to_dict(), "n_layers": 10**12}}, "are too few for 1000000000000 layers"),
    ],
)
def test_an_intact_checkpoint_of_another_format_or_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run = save_run(tmp_path, 1, 2)
    rewrite_config(run / "step-2", **changes)
    verify_checkpoint(run / "step-2")
    for folder in (run / "step-2", run):  # no older one is taken instead: this one is intact
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(folder)


def test_a_manifest_that_does_not_cover_the_model_is_refused(tmp_path: Path) -> None:
    folder = save_run(tmp_path, 1) / "step-1"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["files"]["model.safetensors"]
    (folder / "manifest.json").write_bytes((json.dumps(manifest, indent=2) + "\n").encode())
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is missing: the manifest does not name it"
    ):
        load_checkpoint(folder)


def test_pruning_keeps_the_newest_complete_ones_and_whatever_is_newer(tmp_path: Path) -> None:
    run = save_run(tmp_path, 1, 2, 3, 4, 5)
    (run / "step-4" / "model.safetensors").write_bytes(b"short")
    (run / "notes.txt").write_text("mine", encoding="utf-8")
    removed = prune_checkpoints(run, keep=2)
    assert [path.name for path in removed] == ["step-1", "step-2"]
    assert sorted(path.name for path in run.iterdir()) == ["notes.txt", "step-3", "step-4", "step-5"]
    assert prune_checkpoints(run, keep=2) == []
    assert prune_checkpoints(run / "nowhere") == []


def test_pruning_removes_no_folder_but_checkpoints_and_what_dead_writers_left_of_them(tmp_path: Path) -> None:
    ours = ["step-4.tmp-20240101", "step-3.old-7.tmp-20240101"]  # no process can have that id
    others = ["backup.tmp-20240101", "data.tmp-20240101", "step-x.tmp-20240101"]
    for name in (*ours, *others):
        (tmp_path / name).mkdir()
    prune_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == others


@pytest.mark.parametrize("keep", [1, 0, -1, True, 2.0, None])
def test_pruning_below_two_is_refused(tmp_path: Path, keep: Any) -> None:
    run = save_run(tmp_path, 1, 2, 3)
    with pytest.raises(ValueError, match="keep must be a whole number of at least 2"):
        prune_checkpoints(run, keep=keep)
    assert len(list_checkpoints(run)) == 3


def test_a_copied_checkpoint_is_one(tmp_path: Path) -> None:
    folder = save_run(tmp_path, 1) / "step-1"
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert equals(load_checkpoint(tmp_path / "elsewhere").model, 1)


def test_read_checkpoint_describes_what_load_checkpoint_loads(tmp_path: Path) -> None:
    model = GPTModel(CONFIG)
    save_checkpoint(tmp_path / "a", model, provenance={"seed": 7})
    files, loaded = read_checkpoint(tmp_path / "a"), load_checkpoint(tmp_path / "a")
    assert (files.folder, files.config, files.provenance) == (tmp_path / "a", model.config, {"seed": 7})
    assert {name: getattr(loaded, name) for name in vars(files)} == vars(files)
    assert safetensors.torch.load_file(files.weights_file).keys() == model.state_dict().keys()
    files.weights_file.write_bytes(files.weights_file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        read_checkpoint(tmp_path / "a")
