"""A model becomes a Hugging Face directory without a value changed, whole or not at all."""

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from made_models import CONFIG, byte_tokenizer, saved
from torch import Tensor, nn

from gpt_core import GPTModel, load_checkpoint, save_checkpoint
from gpt_weights import WeightsError, convert, export_huggingface, open_weights
from gpt_weights.export import publishing
from gpt_weights.weights import Weights

CLASSIFIER = dataclasses.replace(CONFIG, n_classes=3)
IDS = torch.arange(16)[None] * 7


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def logits(weights: Weights) -> Tensor:
    with torch.no_grad():
        return weights.model()(IDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_tensor_comes_back_as_it_was(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    source = saved(tmp_path, dataclasses.replace(CONFIG, tie_weights=tied), dtype)
    export = export_huggingface(source, tmp_path / "hf")
    assert export.largest_difference == 0
    back = load_checkpoint(convert(open_weights(export.path), tmp_path / "back")).model.state_dict()
    ours = load_checkpoint(source.path.parent).model.state_dict()
    assert back.keys() == ours.keys()
    assert all(back[name].dtype == dtype and torch.equal(back[name], ours[name]) for name in ours)


def test_the_weights_file_is_byte_for_byte_what_the_library_safetensors_writes(tmp_path: Path) -> None:
    export_huggingface(saved(tmp_path), tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    assert path.read_bytes() == safetensors.torch.save(tensors, metadata={"format": "pt"})


def test_matrices_are_turned_and_query_key_and_value_joined(tmp_path: Path) -> None:
    source = saved(tmp_path)
    export_huggingface(source, tmp_path / "hf")
    theirs = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    ours = source.model().state_dict()
    kinds = ("query", "key", "value")
    joined = torch.cat([ours[f"trf_blocks.1.att.W_{kind}.weight"].t() for kind in kinds], dim=1)
    assert torch.equal(theirs["transformer.h.1.attn.c_attn.weight"], joined)
    assert torch.equal(theirs["transformer.h.0.mlp.c_fc.weight"], ours["trf_blocks.0.ff.layers.0.weight"].t())
    assert torch.equal(theirs["lm_head.weight"], ours["out_head.weight"])


def test_a_model_without_biases_for_query_key_and_value_gets_zeros(tmp_path: Path) -> None:
    source = saved(tmp_path, dataclasses.replace(CONFIG, qkv_bias=False))
    export_huggingface(source, tmp_path / "hf")
    theirs = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    assert not theirs["transformer.h.0.attn.c_attn.bias"].any()
    torch.testing.assert_close(logits(open_weights(tmp_path / "hf")), logits(source), atol=1e-6, rtol=0)


def test_tensors_of_several_types_are_kept_each_in_its_own(tmp_path: Path) -> None:
    source = saved(tmp_path, dtype=torch.bfloat16)
    tensors = dict(source.tensors())
    tensors["trf_blocks.0.att.W_key.weight"] = torch.randn(32, 32)
    safetensors.torch.save_file(tensors, tmp_path / "mixed.safetensors")
    export = export_huggingface(open_weights(tmp_path / "mixed.safetensors", n_heads=4), tmp_path / "hf")
    assert export.largest_difference == 0
    theirs = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    assert {name for name, tensor in theirs.items() if tensor.dtype == torch.float32} == {
        "transformer.h.0.attn.c_attn.weight"
    }
    assert read_json(tmp_path / "hf" / "config.json")["dtype"] == "float32"


def test_another_type_is_told_by_the_largest_difference(tmp_path: Path) -> None:
    source = saved(tmp_path)
    export = export_huggingface(source, tmp_path / "hf", dtype=torch.float16)
    expected = max(float((t - t.half().float()).abs().max()) for t in source.model().state_dict().values())
    assert export.largest_difference == expected > 0
    assert read_json(tmp_path / "hf" / "config.json")["dtype"] == "float16"


def test_a_value_too_large_for_the_type_is_refused(tmp_path: Path) -> None:
    model = GPTModel(CONFIG)
    with torch.no_grad():
        model.final_norm.scale[3] = 1e5
    save_checkpoint(tmp_path / "model", model)
    with pytest.raises(WeightsError, match=r"ln_f.weight has values up to 1e\+05.*choose a wider type"):
        export_huggingface(open_weights(tmp_path / "model"), tmp_path / "hf", dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_classifiers_bias_moves_into_the_last_norm_without_changing_a_logit(tmp_path: Path) -> None:
    source = saved(tmp_path, CLASSIFIER)
    export = export_huggingface(source, tmp_path / "hf", labels=["ham", "spam", "eggs"])
    written = open_weights(export.path)
    assert not written.tensor("out_head.bias").any()
    torch.testing.assert_close(logits(written), logits(source), atol=1e-5, rtol=0)
    assert 0 < export.largest_difference < 1e-5
    assert any("norm's shift" in note for note in export.notes)
    assert written.labels == ["ham", "spam", "eggs"]
    with safetensors.safe_open(export.path / "model.safetensors", framework="pt") as file:
        assert {"score.weight"} == {name for name in file.keys() if not name.startswith("transformer.")}  # noqa: SIM118


def test_a_classifier_from_transformers_has_no_bias_and_changes_nothing(tmp_path: Path) -> None:
    export_huggingface(saved(tmp_path, CLASSIFIER), tmp_path / "first", labels=["a", "b", "c"])
    second = export_huggingface(open_weights(tmp_path / "first"), tmp_path / "second")
    assert second.largest_difference == 0
    first, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == again
    assert open_weights(tmp_path / "second").labels == ["a", "b", "c"]


def test_a_bias_that_no_shift_can_stand_for_is_refused(tmp_path: Path) -> None:
    model = GPTModel(CLASSIFIER)
    with torch.no_grad():
        model.out_head.weight[1] = 2 * model.out_head.weight[0]
        assert isinstance(model.out_head, nn.Linear)
        model.out_head.bias.copy_(torch.tensor([1.0, 1.0, 0.0]))
    save_checkpoint(tmp_path / "model", model)
    with pytest.raises(WeightsError, match="rows of its weight depend on one another"):
        export_huggingface(open_weights(tmp_path / "model"), tmp_path / "hf")


def classifier_with_rows_apart(folder: Path, distance: float, dtype: torch.dtype = torch.float32) -> Weights:
    torch.manual_seed(3)
    model = GPTModel(CLASSIFIER)
    with torch.no_grad():
        assert isinstance(model.out_head, nn.Linear)
        row = torch.randn(32)
        model.out_head.weight.copy_(row + distance * torch.randn(3, 32))
        model.out_head.bias.copy_(torch.tensor([0.5, -0.3, 0.1]))
    save_checkpoint(folder / "model", model.to(dtype))
    return open_weights(folder / "model")


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
def test_the_difference_told_of_a_classifier_is_that_of_its_real_logits(distance: float, tmp_path: Path) -> None:
    source = classifier_with_rows_apart(tmp_path, distance)
    try:
        export = export_huggingface(source, tmp_path / "hf")
    except WeightsError as error:
        assert "depend on one another" in str(error)  # noqa: PT017 - of small distances, either is right
        assert distance < 1e-4
        return
    ids = torch.randint(260, (8, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        real = float((source.model()(ids) - open_weights(export.path).model()(ids)).abs().max())
    assert distance > 1e-7
    assert real / 4 < export.largest_difference < 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_an_ordinary_classifier_of_any_type_is_exported(dtype: torch.dtype, tmp_path: Path) -> None:
    export_huggingface(classifier_with_rows_apart(tmp_path, 1.0, dtype), tmp_path / "hf")
    export_huggingface(saved(tmp_path, CLASSIFIER), tmp_path / "other", dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_type_that_weights_cannot_have_is_refused_by_name(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one of torch.float64, torch.float32, .*, got torch\.(int8|float8)"):
        export_huggingface(saved(tmp_path), tmp_path / "hf", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_current_folder_is_refused_and_dots_lead_where_they_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(WeightsError, match="empty is not replaced, because it is the current folder"):
        export_huggingface(source, ".")
    with pytest.raises(WeightsError, match="not replaced, because it is a folder with files in it"):
        export_huggingface(source, "..")
    assert not list((tmp_path / "empty").iterdir())
    export_huggingface(source, tmp_path / "new" / "inner" / "..")
    assert (tmp_path / "new" / "README.md").read_text(encoding="utf-8").count("# new") == 1


def test_labels_with_half_a_character_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"the label 'b\\ud800' is no text of whole characters"):
        export_huggingface(saved(tmp_path, CLASSIFIER), tmp_path / "hf", labels=["a", "b\ud800", "c"])


def test_folders_that_a_failed_export_made_are_removed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="any reason"),
        publishing(tmp_path / "there" / "a" / "b" / "hf", needed=1) as folder,
    ):
        folder.mkdir()
        (folder / "half").write_bytes(b"x")
        raise RuntimeError("any reason")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_leftover_that_cannot_be_removed_does_not_hide_the_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the reason"), publishing(tmp_path / "out" / "hf", needed=1):  # noqa: PT012
        (tmp_path / "out").rmdir()
        (tmp_path / "out").write_bytes(b"")  # now unlink() of what lies in it is an error: no folder
        raise RuntimeError("the reason")


def test_labels_are_the_given_ones_or_those_of_the_weights_or_numbered(tmp_path: Path) -> None:
    source = saved(tmp_path, CLASSIFIER, provenance={"labels": ["x", "y", "z"]})
    for labels, expected in [(["a", "b", "c"], ["a", "b", "c"]), (None, ["x", "y", "z"])]:
        folder = export_huggingface(source, tmp_path / expected[0], labels=labels).path
        config = read_json(folder / "config.json")
        assert list(config["id2label"].values()) == expected
        assert config["label2id"] == {name: i for i, name in enumerate(expected)}
    unnamed = export_huggingface(dataclasses.replace(source, labels=None), tmp_path / "unnamed").path
    assert read_json(unnamed / "config.json")["id2label"]["2"] == "LABEL_2"


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "a"]], ids=str)
def test_labels_must_be_as_many_and_different(labels: list[str], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="tells 3 classes apart"):
        export_huggingface(saved(tmp_path, CLASSIFIER), tmp_path / "hf", labels=labels)


def test_labels_for_a_language_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no classifier"):
        export_huggingface(saved(tmp_path), tmp_path / "hf", labels=["a", "b"])


def test_the_config_has_both_names_of_the_context_length_and_the_end_of_the_text(tmp_path: Path) -> None:
    source = saved(tmp_path, dataclasses.replace(CONFIG, drop_rate=0.1))
    folder = export_huggingface(source, tmp_path / "hf", tokenizer=byte_tokenizer()).path
    config = read_json(folder / "config.json")
    assert config["n_ctx"] == config["n_positions"] == 16
    assert config["eos_token_id"] == config["bos_token_id"] == 259
    assert (config["resid_pdrop"], config["dtype"], config["tie_word_embeddings"]) == (0.1, "float32", False)


def test_the_tokenizer_is_written_in_all_its_forms(tmp_path: Path) -> None:
    folder = export_huggingface(saved(tmp_path), tmp_path / "hf", tokenizer=byte_tokenizer()).path
    assert (folder / "merges.txt").read_text(encoding="utf-8").splitlines() == [
        "#version: 0.2", "t h", "th e", "\u0120 the"
    ]
    assert read_json(folder / "vocab.json") == byte_tokenizer().vocabulary
    assert (folder / "tokenizer.json").read_bytes() == byte_tokenizer().data
    assert read_json(folder / "tokenizer_config.json")["model_max_length"] == 16
    assert read_json(folder / "special_tokens_map.json")["eos_token"] == "<|endoftext|>"


def test_without_a_tokenizer_a_note_says_what_is_missing(tmp_path: Path) -> None:
    export = export_huggingface(saved(tmp_path), tmp_path / "hf")
    assert any("AutoTokenizer cannot open the folder" in note for note in export.notes)
    assert "AutoTokenizer cannot open" in (export.path / "README.md").read_text(encoding="utf-8")
    assert not (export.path / "tokenizer_config.json").exists()


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    small = saved(tmp_path, dataclasses.replace(CONFIG, vocab_size=259))
    with pytest.raises(WeightsError, match=r"'<\|endoftext\|>' has the id 259, but the model's vocabulary ends at 258"):
        export_huggingface(small, tmp_path / "hf", tokenizer=byte_tokenizer())


def test_a_model_that_is_no_gpt2_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, dataclasses.replace(CONFIG, positions="rotary"))
    with pytest.raises(WeightsError, match=r"positions='rotary': no GPT-2"):
        export_huggingface(source, tmp_path / "hf")


def test_what_is_there_already_is_never_replaced(tmp_path: Path) -> None:
    source = saved(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        with pytest.raises(WeightsError, match=f"{name} is not replaced"):
            export_huggingface(source, tmp_path / name)
    export_huggingface(source, tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full", "model"]


def test_a_disk_that_takes_only_so_much_is_told_and_left_as_it_was(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="the limit of a file's size is POSIX's")
    source = saved(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 100, 3_000, 60_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match=r"cannot write .*hf: ") as caught:
                export_huggingface(source, tmp_path / "hf", tokenizer=byte_tokenizer())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_export_left_is_removed_by_the_next_one_of_that_name(tmp_path: Path) -> None:
    weights = saved(tmp_path / "ours")
    (tmp_path / "out.tmp-20240101").mkdir()  # no process can have that id
    (tmp_path / "out.tmp-20240101" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "out.tmp-20240102").write_bytes(b"half")
    (tmp_path / "other.tmp-20240101").mkdir()
    export_huggingface(weights, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.tmp-20240101", "ours", "out"]


def test_a_name_that_marks_a_leftover_is_refused(tmp_path: Path) -> None:
    """Another export beside it would take such a folder for what a dead writer left, and remove it."""
    with pytest.raises(WeightsError, match=r"names like \*\.tmp-1 mark leftovers"):
        export_huggingface(saved(tmp_path), tmp_path / "hf.tmp-4194999")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
