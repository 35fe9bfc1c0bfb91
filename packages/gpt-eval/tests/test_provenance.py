import hashlib
import json

import pytest

from gpt_eval.provenance import checkpoint_facts, checkpoint_sha256, installed_versions


def checkpoint(folder, **files):
    """Write a checkpoint directory as docs/checkpoint-format.md has it."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name.replace("_", ".")).write_bytes(data)
    entries = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
    }
    (folder / "manifest.json").write_text(
        json.dumps({"format": "manifest/1", "files": entries}, indent=2) + "\n", encoding="utf-8"
    )
    return folder


def test_the_hash_is_that_of_the_weights(tmp_path):
    folder = checkpoint(tmp_path / "step-3", config_json=b"{}", model_safetensors=b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()

    assert checkpoint_sha256(folder) == checkpoint_sha256(str(folder)) == expected
    assert checkpoint_facts(folder) == {
        "checkpoint": "step-3", "checkpoint_sha256": expected, "tokenizer_sha256": None
    }  # fmt: skip


def test_the_facts_name_the_tokenizer_too(tmp_path):
    folder = checkpoint(tmp_path / "c", model_safetensors=b"weights", tokenizer_json=b"{}")

    assert checkpoint_facts(folder)["tokenizer_sha256"] == hashlib.sha256(b"{}").hexdigest()


def test_no_checkpoint_is_told_and_of_a_run_a_step_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is no checkpoint: it holds no manifest\.json$"):
        checkpoint_sha256(tmp_path / "nowhere")
    checkpoint(tmp_path / "run" / "step-10", model_safetensors=b"w")
    with pytest.raises(ValueError, match="it is a run: give one of its folders, such as step-10"):
        checkpoint_sha256(tmp_path / "run")


def test_a_damaged_or_missing_file_is_named(tmp_path):
    folder = checkpoint(tmp_path / "c", model_safetensors=b"weights", tokenizer_json=b"{}")
    (folder / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its sha256 is"):
        checkpoint_sha256(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        checkpoint_sha256(folder)


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b'{"files": 3}', b'{"files": {"a": {"sha256": "x"}}}', b"\xff", b"[" * 99999]
)
def test_a_damaged_manifest_is_named(manifest, tmp_path):
    folder = checkpoint(tmp_path / "c", model_safetensors=b"weights")
    (folder / "manifest.json").write_bytes(manifest)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        checkpoint_sha256(folder)


def test_versions_are_those_installed():
    import numpy

    assert installed_versions("numpy", "no-such-distribution") == {"numpy": numpy.__version__}
