"""Hugging Face directories: what is read, what is refused; the values are compared with the files' own."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hand_made import huggingface_tensors, write_huggingface, write_shards
from torch import Tensor

from gpt_core import load_checkpoint
from gpt_weights import WeightsError, convert, open_weights


def assert_holds(found: dict[str, Tensor], theirs: dict[str, Tensor], *, prefix: str = "transformer.") -> None:
    """Compare a few tensors of every kind: plain, turned, cut in three."""
    assert torch.equal(found["tok_emb.weight"], theirs[f"{prefix}wte.weight"])
    assert torch.equal(found["final_norm.shift"], theirs[f"{prefix}ln_f.bias"])
    assert torch.equal(found["trf_blocks.1.ff.layers.2.weight"], theirs[f"{prefix}h.1.mlp.c_proj.weight"].t())
    for n, kind in enumerate(("query", "key", "value")):
        columns = slice(8 * n, 8 * (n + 1))
        joint, bias = theirs[f"{prefix}h.0.attn.c_attn.weight"], theirs[f"{prefix}h.0.attn.c_attn.bias"]
        assert torch.equal(found[f"trf_blocks.0.att.W_{kind}.weight"], joint[:, columns].t())
        assert torch.equal(found[f"trf_blocks.0.att.W_{kind}.bias"], bias[columns])


@pytest.mark.parametrize("in_shards", [False, True])
def test_every_tensor_comes_in_where_it_belongs(in_shards: bool, tmp_path: Path) -> None:
    theirs = write_huggingface(tmp_path / "hf")
    if in_shards:
        write_shards(tmp_path / "hf", theirs)
    loaded = load_checkpoint(convert(open_weights(tmp_path / "hf"), tmp_path / "ours"))
    assert_holds(loaded.model.state_dict(), theirs)
    assert torch.equal(loaded.model.out_head.weight.detach(), theirs["lm_head.weight"])
    assert loaded.config.to_dict() == {
        "vocab_size": 23, "context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0,
        "qkv_bias": True, "tie_weights": False,
    }
    assert loaded.tokenizer_file is not None
    assert json.loads(loaded.tokenizer_file.read_bytes())["model"]["merges"] == ["a b"]


def test_tied_weights_are_told_by_the_config_and_a_second_copy_must_agree(tmp_path: Path) -> None:
    theirs = write_huggingface(tmp_path, tie_word_embeddings=True)
    with pytest.raises(WeightsError, match=r"lm_head\.weight has other values; set it to false"):
        open_weights(tmp_path)
    theirs["lm_head.weight"] = theirs["transformer.wte.weight"].clone()
    safetensors.torch.save_file(theirs, tmp_path / "model.safetensors")
    assert open_weights(tmp_path).config.tie_weights
    del theirs["lm_head.weight"]
    safetensors.torch.save_file(theirs, tmp_path / "model.safetensors")
    assert open_weights(tmp_path).config.tie_weights
    write_huggingface(tmp_path, tie_word_embeddings=False)
    safetensors.torch.save_file(theirs, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 of .* are missing \(lm_head\.weight\)"):
        open_weights(tmp_path)


def test_a_file_without_a_config_is_read_by_its_shapes(tmp_path: Path) -> None:
    theirs = huggingface_tensors(prefix="")
    del theirs["lm_head.weight"]
    safetensors.torch.save_file(theirs, tmp_path / "gpt2.safetensors")
    weights = open_weights(tmp_path / "gpt2.safetensors", n_heads=2)
    assert (weights.config.tie_weights, weights.tokenizer) == (True, None)
    assert_holds(dict(weights.tensors()), theirs, prefix="")


def test_a_file_of_a_folder_is_read_with_what_the_folder_says(tmp_path: Path) -> None:
    write_huggingface(tmp_path / "hf", n_head=4)
    weights = open_weights(tmp_path / "hf" / "model.safetensors")
    assert (weights.config.n_heads, weights.config.tie_weights) == (4, False)
    convert(weights, tmp_path / "ours")
    assert open_weights(tmp_path / "ours" / "model.safetensors").config.n_heads == 4


def test_other_files_in_a_hugging_face_folder_do_not_make_it_ours(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    (tmp_path / "step-100").mkdir()
    assert open_weights(tmp_path).contents.layout.name == "huggingface"


def test_a_tokenizer_with_ids_beyond_the_model_is_not_converted(tmp_path: Path) -> None:
    write_huggingface(tmp_path / "hf")
    with pytest.raises(WeightsError, match="the model's vocabulary ends at 9"):
        convert(open_weights(tmp_path / "hf", vocab_size=10), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("value", [None, 0, "true"])
def test_tie_word_embeddings_is_true_or_false(value: object, tmp_path: Path) -> None:
    write_huggingface(tmp_path, tie_word_embeddings=value)
    with pytest.raises(WeightsError, match="tie_word_embeddings must be true or false"):
        open_weights(tmp_path)


def test_labels_of_a_language_model_are_not_taken(tmp_path: Path) -> None:
    write_huggingface(tmp_path, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert open_weights(tmp_path).labels is None


def test_a_converted_checkpoint_keeps_its_provenance(tmp_path: Path) -> None:
    write_huggingface(tmp_path / "hf")
    convert(open_weights(tmp_path / "hf"), tmp_path / "ours")
    convert(open_weights(tmp_path / "ours"), tmp_path / "again", dtype=torch.bfloat16)
    provenance = load_checkpoint(tmp_path / "again").provenance
    assert (provenance["source"], provenance["layout"]) == ("ours/model.safetensors", "gpt-core")


def test_a_converted_folder_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    write_huggingface(tmp_path / "hf")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        convert(open_weights(tmp_path / "hf"), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "years of work"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"n_embd": 16}, "the shapes say emb_dim=8, but it is said to be 16"),
        ({"n_layer": 3}, "the shapes say n_layers=2, but it is said to be 3"),
        ({"vocab_size": 50257}, "the shapes say vocab_size=23, but it is said to be 50257"),
        ({"n_head": 3}, "multiple of n_heads"),
        ({"n_head": "2"}, "n_heads must be a whole number"),
        ({"n_head": -1}, "n_heads must be a whole number"),
        ({"model_type": "llama"}, "model of type 'llama'; only 'gpt2' is read"),
        ({"model_type": None}, "model of type None"),
        ({"activation_function": "silu"}, "activation_function is 'silu'"),
    ],
)
def test_a_config_that_disagrees_is_refused_by_name(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    write_huggingface(tmp_path, **config)
    with pytest.raises(WeightsError, match=named):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "C:\\x.safetensors", "a/b.safetensors", ".a.safetensors", "", 7]
)
def test_an_index_cannot_lead_out_of_its_folder(name: object, tmp_path: Path) -> None:
    theirs = write_huggingface(tmp_path / "hf")
    write_shards(tmp_path / "hf", theirs)
    index = tmp_path / "hf" / "model.safetensors.index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    content["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"is not the name of a safetensors file|must hold a 'weight_map'"):
        open_weights(tmp_path / "hf")


def changed_header(path: Path, **changes: Any) -> None:
    """Write the safetensors file anew with another entry for lm_head.weight."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    header["lm_head.weight"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data_offsets": [0, 10**15]}, "cannot be read"),
        ({"shape": [2**62, 2**62]}, "cannot be read"),
        ({"dtype": "I32"}, "lm_head.weight holds I32, expected one of F64, F32, F16, BF16"),
        ({"shape": [8, 23]}, None),
    ],
)
def test_a_header_that_lies_is_refused(changes: dict[str, Any], named: str | None, tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    changed_header(tmp_path / "model.safetensors", **changes)
    with pytest.raises(WeightsError, match=named or "lm_head|n_classes"):
        open_weights(tmp_path)


def test_each_cut_of_the_header_is_refused(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    for length in range(0, end, 17):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError):
            open_weights(tmp_path)
    path.write_bytes(data[:-1])
    with pytest.raises(WeightsError, match="cannot be read"):
        open_weights(tmp_path)


def test_a_folder_that_holds_no_weights_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no weights: expected manifest\.json or step-N"):
        open_weights(tmp_path)
    with pytest.raises(WeightsError, match="there is no file or folder"):
        open_weights(tmp_path / "nothing")
