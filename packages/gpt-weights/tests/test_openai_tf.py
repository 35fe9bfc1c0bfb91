"""OpenAI's TensorFlow checkpoints: what tensorflow wrote is what comes in, and what is damaged is called so."""

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt_core import GPTModel, GPTModelFast, load_checkpoint
from gpt_weights import (
    WeightsError,
    convert,
    download_and_load_gpt2,
    load_gpt2_params_from_tf_ckpt,
    load_weights_into_gpt,
    open_weights,
)
from gpt_weights.openai_files import NAMES
from gpt_weights.openai_tf import import_tensorflow

V, C, E, H, L = 13, 7, 8, 2, 3
HPARAMS = {"n_vocab": V, "n_ctx": C, "n_embd": E, "n_head": H, "n_layer": L}
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
Arrays = dict[str, Any]

needs_tensorflow = pytest.mark.tensorflow


@pytest.fixture(scope="session")
def tf() -> Any:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("the extra tensorflow is not installed")
    return import_tensorflow()


def make_arrays(dtype: str = "float32", seed: int = 0) -> Arrays:
    """Return random tensors under OpenAI's names, in OpenAI's shapes."""
    shapes: dict[str, tuple[int, ...]] = {
        "wte": (V, E), "wpe": (C, E), "ln_f/g": (E,), "ln_f/b": (E,),
        **{
            f"h{n}/{name}": shape
            for n in range(L)
            for name, shape in {
                "ln_1/g": (E,), "ln_1/b": (E,), "ln_2/g": (E,), "ln_2/b": (E,),
                "attn/c_attn/w": (1, E, 3 * E), "attn/c_attn/b": (3 * E,),
                "attn/c_proj/w": (1, E, E), "attn/c_proj/b": (E,),
                "mlp/c_fc/w": (1, E, 4 * E), "mlp/c_fc/b": (4 * E,),
                "mlp/c_proj/w": (1, 4 * E, E), "mlp/c_proj/b": (E,),
            }.items()
        },
    }
    draws = np.random.default_rng(seed)
    return {f"model/{name}": draws.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def save(tf: Any, folder: Path, arrays: Arrays, name: str = "model.ckpt") -> Path:
    """Write a checkpoint as OpenAI's was: variables of a session, saved by tensorflow 1's Saver."""
    folder.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [tf.compat.v1.Variable(array, name=name) for name, array in arrays.items()]
        session.run(tf.compat.v1.variables_initializer(variables))
        saver = tf.compat.v1.train.Saver(variables, save_relative_paths=True)
        saver.save(session, str(folder / name))
    (folder / "hparams.json").write_text(json.dumps(HPARAMS), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def saved(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tf, tmp_path_factory.mktemp("saved") / "tiny", make_arrays())


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def ours(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Return what the arrays are under our names, spelled out."""
    found = {
        "tok_emb.weight": arrays["model/wte"], "pos_emb.weight": arrays["model/wpe"],
        "final_norm.scale": arrays["model/ln_f/g"], "final_norm.shift": arrays["model/ln_f/b"],
    }
    for n in range(L):
        theirs = {name.removeprefix(f"model/h{n}/"): array for name, array in arrays.items()}
        for i, part in enumerate(("query", "key", "value")):
            found[f"trf_blocks.{n}.att.W_{part}.weight"] = theirs["attn/c_attn/w"][0, :, i * E : (i + 1) * E].T
            found[f"trf_blocks.{n}.att.W_{part}.bias"] = theirs["attn/c_attn/b"][i * E : (i + 1) * E]
        found |= {
            f"trf_blocks.{n}.att.out_proj.weight": theirs["attn/c_proj/w"][0].T,
            f"trf_blocks.{n}.att.out_proj.bias": theirs["attn/c_proj/b"],
            f"trf_blocks.{n}.ff.layers.0.weight": theirs["mlp/c_fc/w"][0].T,
            f"trf_blocks.{n}.ff.layers.0.bias": theirs["mlp/c_fc/b"],
            f"trf_blocks.{n}.ff.layers.2.weight": theirs["mlp/c_proj/w"][0].T,
            f"trf_blocks.{n}.ff.layers.2.bias": theirs["mlp/c_proj/b"],
            f"trf_blocks.{n}.norm1.scale": theirs["ln_1/g"], f"trf_blocks.{n}.norm1.shift": theirs["ln_1/b"],
            f"trf_blocks.{n}.norm2.scale": theirs["ln_2/g"], f"trf_blocks.{n}.norm2.shift": theirs["ln_2/b"],
        }
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}


def are_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    same_names = found.keys() == expected.keys()
    return same_names and all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@needs_tensorflow
def test_every_value_is_the_one_that_tensorflow_wrote(saved: Path) -> None:
    weights = open_weights(saved)
    assert weights.config.to_dict() == {
        "vocab_size": V, "context_length": C, "emb_dim": E, "n_heads": H, "n_layers": L, "drop_rate": 0.0,
        "qkv_bias": True, "tie_weights": True,
    }
    assert are_equal(dict(weights.tensors()), ours(make_arrays()))


@needs_tensorflow
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floating_point_types_are_read_as_they_are(tf: Any, tmp_path: Path, dtype: str) -> None:
    weights = open_weights(save(tf, tmp_path, make_arrays(dtype)))
    assert str(weights.dtype) == f"torch.{dtype}"
    assert are_equal(dict(weights.tensors()), ours(make_arrays(dtype)))


@needs_tensorflow
def test_bfloat16_is_read_too(tf: Any, tmp_path: Path) -> None:
    arrays = {name: array.astype(tf.bfloat16.as_numpy_dtype) for name, array in make_arrays().items()}
    found = dict(open_weights(save(tf, tmp_path, arrays)).tensors())
    expected = ours({name: array.astype("float32") for name, array in arrays.items()})
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert are_equal({name: tensor.float() for name, tensor in found.items()}, expected)


@needs_tensorflow
def test_the_converted_checkpoint_holds_them_all(saved: Path, tmp_path: Path) -> None:
    model = load_checkpoint(convert(open_weights(saved), tmp_path / "out")).model
    expected = ours(make_arrays())
    assert are_equal(dict(model.state_dict()), {**expected, "out_head.weight": expected["tok_emb.weight"]})


@needs_tensorflow
def test_the_books_functions_give_the_same_model(saved: Path) -> None:
    params = load_gpt2_params_from_tf_ckpt(str(saved / "model.ckpt"), HPARAMS)
    arrays = make_arrays()
    assert params.keys() == {"blocks", "wte", "wpe", "g", "b"}
    assert len(params["blocks"]) == L
    assert params["blocks"][1].keys() == {"attn", "mlp", "ln_1", "ln_2"}
    assert np.array_equal(params["g"], arrays["model/ln_f/g"])
    assert np.array_equal(params["blocks"][2]["attn"]["c_attn"]["w"], arrays["model/h2/attn/c_attn/w"][0])
    assert np.array_equal(params["blocks"][0]["mlp"]["c_proj"]["b"], arrays["model/h0/mlp/c_proj/b"])
    weights, ids = open_weights(saved), torch.randint(V, (2, C))
    expected = weights.model()(ids)
    for make in (GPTModel, GPTModelFast):
        model = make({**weights.config.to_dict(), "tie_weights": False}).eval()
        load_weights_into_gpt(model, params)
        torch.testing.assert_close(model(ids), expected)


@needs_tensorflow
def test_logits_are_those_of_transformers_gpt2(tf: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = transformers.GPT2Config(vocab_size=V, n_positions=C, n_embd=E, n_head=H, n_layer=L)
    model = transformers.GPT2LMHeadModel(settings).eval()
    arrays = {}
    for name, tensor in model.transformer.state_dict().items():
        parts = name.replace("h.", "h", 1).replace("ln_f", "ln_f/").split(".") if name[:2] == "h." else name.split(".")
        is_norm, is_embedding = "ln_" in name, name in ("wte.weight", "wpe.weight")
        last = [] if is_embedding else [{"weight": "g" if is_norm else "w", "bias": "b"}[parts[-1]]]
        is_matrix = tensor.ndim == 2 and not is_embedding
        arrays["/".join(["model", *parts[:-1], *last])] = tensor[None].numpy() if is_matrix else tensor.numpy()
    ids = torch.randint(V, (2, C))
    found = open_weights(save(tf, tmp_path, arrays)).model()(ids)
    torch.testing.assert_close(found, model(ids).logits)


@needs_tensorflow
def test_two_data_files_and_another_name_are_read(tf: Any, tmp_path: Path) -> None:
    names, arrays = list(make_arrays()), list(make_arrays().values())
    for part, chosen in (("a", slice(0, 5)), ("b", slice(5, None))):
        tf.raw_ops.SaveV2(
            prefix=str(tmp_path / part), tensor_names=names[chosen], shape_and_slices=[""] * len(names[chosen]),
            tensors=arrays[chosen],
        )
    merged = tmp_path / "run" / "model-500"
    prefixes = [str(tmp_path / "a"), str(tmp_path / "b")]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=str(merged))
    tf.compat.v1.train.update_checkpoint_state(str(merged.parent), str(merged))  # with the path as it is: absolute
    (merged.parent / "hparams.json").write_text(json.dumps(HPARAMS), encoding="utf-8")
    assert len(list(merged.parent.glob("model-500.data-*-of-00002"))) == 2
    assert are_equal(dict(open_weights(merged.parent).tensors()), ours(make_arrays()))


@needs_tensorflow
def test_a_training_run_with_its_optimizer_is_refused_by_name(tf: Any, tmp_path: Path) -> None:
    arrays = make_arrays() | {"model/wte/Adam": np.zeros((V, E), "float32"), "global_step": np.int64(3)}
    with pytest.raises(WeightsError, match="2 tensors are not expected"):
        open_weights(save(tf, tmp_path, arrays))


@needs_tensorflow
def test_a_checkpoint_of_tensorflow_2_is_refused_by_name(tf: Any, tmp_path: Path) -> None:
    variables = tf.train.Checkpoint(wte=tf.Variable(np.zeros((V, E), "float32")))
    tf.train.CheckpointManager(variables, str(tmp_path), max_to_keep=1).save()
    with pytest.raises(WeightsError, match=r"holds no GPT-2.*VARIABLE_VALUE"):
        open_weights(tmp_path)


@needs_tensorflow
def test_a_flipped_bit_in_any_tensor_is_found_by_its_checksum(saved: Path, folder: Path) -> None:
    whole = (saved / DATA).read_bytes()
    for tensor in open_weights(folder).files._bundled.values():  # type: ignore[attr-defined]
        data = bytearray(whole)
        data[tensor.offset + tensor.size // 2] ^= 4  # of a mantissa's lower byte
        (folder / DATA).write_bytes(data)
        with pytest.raises(WeightsError, match=f"{DATA} is damaged: model/.*download it again"):
            dict(open_weights(folder).tensors())


@needs_tensorflow
def test_values_of_another_checkpoint_of_the_same_shapes_are_refused(tf: Any, folder: Path, tmp_path: Path) -> None:
    other = save(tf, tmp_path / "other", make_arrays(seed=1))
    shutil.copy(other / DATA, folder / DATA)
    with pytest.raises(WeightsError, match="is damaged: model/"):
        dict(open_weights(folder).tensors())


def swap(folder: Path) -> None:
    index = (folder / INDEX).read_bytes()
    (folder / INDEX).write_bytes((folder / DATA).read_bytes())
    (folder / DATA).write_bytes(index)


def say(folder: Path, **changes: Any) -> None:
    (folder / "hparams.json").write_text(json.dumps(HPARAMS | changes), encoding="utf-8")


PAGE = b"<!DOCTYPE html>\n<html><title>Log in to the network</title></html>\n"


@needs_tensorflow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (swap, r"model\.ckpt\.index is damaged or not the index of a TensorFlow checkpoint"),
        (lambda folder: (folder / DATA).unlink(), "data-00000-of-00001 is missing"),
        (lambda folder: (folder / INDEX).unlink(), r"model\.ckpt\.index cannot be read: No such file"),
        (lambda folder: (folder / DATA).write_bytes((folder / DATA).read_bytes()[:-4]), "but model.ckpt.index lists"),
        (lambda folder: (folder / DATA).write_bytes(PAGE), "00001 is an HTML page"),
        (lambda folder: (folder / INDEX).write_bytes(PAGE), r"model\.ckpt\.index is an HTML page"),
        (lambda folder: (folder / INDEX).write_bytes(gzip.compress(PAGE)), r"\.index is compressed by gzip"),
        (lambda folder: (folder / "checkpoint").write_bytes(PAGE), "checkpoint is an HTML page"),
        (lambda folder: (folder / "hparams.json").write_bytes(PAGE), r"hparams\.json is an HTML page"),
        (partial(say, n_embd=1e999), "n_embd must be a whole number from 1 to 2147483647, got inf"),
        (partial(say, n_embd=True), "n_embd must be"),
        (partial(say, n_head=0), "n_head must be"),
        (partial(say, n_head=3), "multiple of n_heads"),
        (partial(say, n_layer=4), "say n_layers=3"),
        (lambda folder: (folder / "hparams.json").write_bytes(b'{"n_ctx": 7}'), r"n_vocab, .* is missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_files_name(
    folder: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(folder)
    with pytest.raises(WeightsError, match=said):
        open_weights(folder)


@needs_tensorflow
def test_settings_of_another_model_are_refused_before_a_value_is_read(saved: Path) -> None:
    with pytest.raises(WeightsError, match="the shapes say n_layers=3, but it is said to be 12"):
        load_gpt2_params_from_tf_ckpt(saved / "model.ckpt", {**HPARAMS, "n_layer": 12})
    with pytest.raises(WeightsError, match="settings: n_ctx must be a whole number"):
        load_gpt2_params_from_tf_ckpt(saved / "model.ckpt", {**HPARAMS, "n_ctx": "1024"})


@pytest.mark.parametrize(
    "name", ["../model.ckpt", "sub/model.ckpt", "/etc/model.ckpt", "..", "a\\b", "C:model.ckpt", "gs://bucket/model.ckpt"]
)
def test_a_checkpoint_file_that_points_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n', encoding="utf-8")
    with pytest.raises(WeightsError, match="does not lie in its folder"):
        open_weights(tmp_path)


@pytest.mark.parametrize("text", ["model_checkpoint_path: 3\n", "", 'model_checkpoint_path: "a\0b"', "x" * 2**21])
def test_a_checkpoint_file_that_names_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoint").write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=r"checkpoint (names no checkpoint|is empty)"):
        open_weights(tmp_path)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder.parent)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@needs_tensorflow
def test_download_and_load_fetches_the_seven_files_and_returns_settings_and_params(
    folder: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).write_bytes(b"{}\n")
    sizes = {name: (folder / name).stat().st_size for name in (INDEX, DATA)}
    monkeypatch.setattr("gpt_weights.openai_files._SIZES", {folder.name: sizes})
    monkeypatch.setattr("gpt_weights.openai_files._TOKENIZER", {})
    monkeypatch.setattr("gpt_weights.openai_files.OPENAI_URL", f"{server}/not-there")
    monkeypatch.setattr("gpt_weights.openai_files.MIRROR_URL", server)
    settings, params = download_and_load_gpt2(model_size=folder.name, models_dir=str(tmp_path / "models"))
    assert sorted(path.name for path in (tmp_path / "models" / folder.name).iterdir()) == sorted(NAMES)
    assert settings == HPARAMS
    assert np.array_equal(params["wte"], make_arrays()["model/wte"])


@needs_tensorflow
@pytest.mark.slow
def test_reading_prints_nothing_and_leaves_torchs_optimizers_usable(saved: Path) -> None:
    code = """
import sys, torch
from gpt_weights import open_weights

model = open_weights(sys.argv[1]).model()
optimizer = torch.optim.AdamW(model.parameters())  # imports triton, which fails if tensorflow was first
model(torch.zeros(1, 3, dtype=torch.int64)).sum().backward()
optimizer.step()
"""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-c", code, str(saved)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
