"""The book's functions for OpenAI's weights that need no tensorflow."""

import math
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

from gpt_core import GPTConfig, GPTModel, GPTModelFast, gpt2_config, parameter_shapes
from gpt_weights import WeightsError, assign, download_and_load_gpt2, download_file, load_weights_into_gpt
from gpt_weights.openai_files import NAMES, openai_files

V, C, E, H, L = 13, 7, 8, 2, 2
Model = GPTModel | GPTModelFast


def config(**changes: Any) -> GPTConfig:
    return GPTConfig(
        **{"vocab_size": V, "context_length": C, "emb_dim": E, "n_heads": H, "n_layers": L, "qkv_bias": True} | changes
    )


def make_params(n_blocks: int = L, seed: int = 0) -> dict[str, Any]:
    draws = np.random.default_rng(seed)

    def new(*shape: int) -> Any:
        return draws.standard_normal(shape).astype(np.float32)

    def block() -> dict[str, Any]:
        return {
            "attn": {"c_attn": {"w": new(E, 3 * E), "b": new(3 * E)}, "c_proj": {"w": new(E, E), "b": new(E)}},
            "mlp": {"c_fc": {"w": new(E, 4 * E), "b": new(4 * E)}, "c_proj": {"w": new(4 * E, E), "b": new(E)}},
            "ln_1": {"g": new(E), "b": new(E)},
            "ln_2": {"g": new(E), "b": new(E)},
        }

    return {"blocks": [block() for _ in range(n_blocks)], "wpe": new(C, E), "wte": new(V, E), "g": new(E), "b": new(E)}


def as_the_book_loads(model: GPTModel, params: dict[str, Any]) -> None:
    """Load as the book's chapter 5 describes it, tensor by tensor."""

    def fill(parameter: Any, array: Any) -> None:
        parameter.data = torch.from_numpy(array.copy())

    fill(model.tok_emb.weight, params["wte"])
    fill(model.pos_emb.weight, params["wpe"])
    fill(model.final_norm.scale, params["g"])
    fill(model.final_norm.shift, params["b"])
    fill(model.out_head.weight, params["wte"])
    for block, theirs in zip(model.trf_blocks, params["blocks"], strict=True):
        w = np.split(theirs["attn"]["c_attn"]["w"], 3, axis=-1)
        b = np.split(theirs["attn"]["c_attn"]["b"], 3, axis=-1)
        for i, name in enumerate(("W_query", "W_key", "W_value")):
            fill(getattr(block.att, name).weight, w[i].T)
            fill(getattr(block.att, name).bias, b[i])
        fill(block.att.out_proj.weight, theirs["attn"]["c_proj"]["w"].T)
        fill(block.att.out_proj.bias, theirs["attn"]["c_proj"]["b"])
        fill(block.ff.layers[0].weight, theirs["mlp"]["c_fc"]["w"].T)
        fill(block.ff.layers[0].bias, theirs["mlp"]["c_fc"]["b"])
        fill(block.ff.layers[2].weight, theirs["mlp"]["c_proj"]["w"].T)
        fill(block.ff.layers[2].bias, theirs["mlp"]["c_proj"]["b"])
        fill(block.norm1.scale, theirs["ln_1"]["g"])
        fill(block.norm1.shift, theirs["ln_1"]["b"])
        fill(block.norm2.scale, theirs["ln_2"]["g"])
        fill(block.norm2.shift, theirs["ln_2"]["b"])


@pytest.fixture
def expected() -> GPTModel:
    model = GPTModel(config())
    as_the_book_loads(model, make_params())
    return model.eval()


@pytest.mark.parametrize("tie_weights", [False, True])
def test_params_land_where_the_book_puts_them(expected: GPTModel, tie_weights: bool) -> None:
    model = GPTModel(config(tie_weights=tie_weights))
    assert load_weights_into_gpt(model, make_params()) is None
    state = model.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.state_dict().items())
    assert (model.out_head.weight is model.tok_emb.weight) is tie_weights


def test_an_untied_head_gets_a_copy_that_can_be_trained_apart() -> None:
    model = GPTModel(config())
    load_weights_into_gpt(model, make_params())
    assert torch.equal(model.out_head.weight, model.tok_emb.weight)
    assert model.out_head.weight.data_ptr() != model.tok_emb.weight.data_ptr()


def test_the_fast_model_computes_the_same_with_the_same_params(expected: GPTModel) -> None:
    model = GPTModelFast(config()).eval()
    load_weights_into_gpt(model, make_params())
    ids = torch.randint(V, (3, C))
    torch.testing.assert_close(model(ids), expected(ids))


def test_a_classifiers_body_is_loaded_and_its_own_head_left(expected: GPTModel) -> None:
    model = GPTModel(config(n_classes=3))
    head = model.out_head.weight.detach().clone()
    load_weights_into_gpt(model, make_params())
    assert torch.equal(model.out_head.weight, head)
    assert torch.equal(model.trf_blocks[1].att.W_key.weight, expected.trf_blocks[1].att.W_key.weight)


def test_values_are_copied_into_the_models_own_parameters_in_their_type() -> None:
    model, params = GPTModel(config()).to(torch.bfloat16), make_params()
    optimizer_sees = model.tok_emb.weight
    load_weights_into_gpt(model, params)
    assert model.tok_emb.weight is optimizer_sees
    assert torch.equal(optimizer_sees, torch.from_numpy(params["wte"]).bfloat16())
    params["wte"][:] = 0
    assert optimizer_sees.any()


def test_params_may_be_read_only_of_other_order_half_or_tensors(expected: GPTModel) -> None:
    params = make_params()
    params["wpe"].setflags(write=False)
    params["wte"] = np.asfortranarray(params["wte"])
    params["g"] = torch.from_numpy(params["g"])
    params["b"] = params["b"].astype(np.float64)
    model = GPTModel(config())
    load_weights_into_gpt(model, params)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())


def without_blocks(params: dict[str, Any]) -> None:
    params["blocks"].pop()


def with_a_block_more(params: dict[str, Any]) -> None:
    params["blocks"].append(make_params()["blocks"][0])


def of_another_shape(params: dict[str, Any]) -> None:
    params["blocks"][1]["mlp"]["c_fc"]["w"] = params["blocks"][1]["mlp"]["c_fc"]["w"].T


def misnamed(params: dict[str, Any]) -> None:
    params["wtf"] = params.pop("wte")


def of_whole_numbers(params: dict[str, Any]) -> None:
    params["wte"] = params["wte"].astype(np.int64)


def without_blocks_at_all(params: dict[str, Any]) -> None:
    params["blocks"] = None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_blocks, r"12 of 28 expected arrays are missing \(h1/"),
        (with_a_block_more, r"12 arrays are not expected \(h2/"),
        (of_another_shape, r"h1/mlp/c_fc/w has shape \(32, 8\), expected \(8, 32\)"),
        (misnamed, "nearest to wtf is wte"),
        (of_whole_numbers, "wte is no array of floating-point numbers"),
        (without_blocks_at_all, r"24 of 28 expected arrays are missing .*1 arrays are not expected \(blocks"),
    ],
)
def test_params_of_another_model_are_refused_before_anything_is_copied(
    damage: Callable[[dict[str, Any]], None], said: str
) -> None:
    model, params = GPTModel(config()), make_params()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    damage(params)
    with pytest.raises(WeightsError, match=said):
        load_weights_into_gpt(model, params)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_without_qkv_bias_is_told_to_have_one() -> None:
    with pytest.raises(ValueError, match="qkv_bias=True"):
        load_weights_into_gpt(GPTModel(config(qkv_bias=False)), make_params())


def test_a_model_whose_head_was_replaced_is_refused() -> None:
    model = GPTModel(config())
    model.out_head = torch.nn.Linear(E, 2)
    with pytest.raises(ValueError, match=r"out_head.weight has shape \(2, 8\), expected \(13, 8\); load the weights"):
        load_weights_into_gpt(model, make_params())


@pytest.mark.parametrize("changes", [{"positions": "rotary"}, {"norm": "rmsnorm"}])
def test_a_model_that_is_no_gpt2_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no GPT-2"):
        load_weights_into_gpt(GPTModel(config(**changes)), make_params())


def test_something_else_than_a_gpt_is_refused() -> None:
    with pytest.raises(ValueError, match="got a Linear"):
        load_weights_into_gpt(torch.nn.Linear(2, 2), make_params())  # type: ignore[arg-type]


def test_assign_returns_a_new_parameter_with_the_arrays_values_and_type() -> None:
    left, right = torch.nn.Parameter(torch.zeros(2, 3)), np.arange(6, dtype=np.float64).reshape(2, 3)
    assigned = assign(left, right)
    right[:] = -1
    assert isinstance(assigned, torch.nn.Parameter)
    assert assigned.dtype is torch.float64
    assert assigned.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not left.any()


@pytest.mark.parametrize("right", [np.zeros((3, 2)), np.zeros(6), torch.zeros(2, 3, 1)])
def test_assign_refuses_another_shape(right: Any) -> None:
    with pytest.raises(ValueError, match=r"Shape mismatch\. Left: \(2, 3\), Right: \("):
        assign(torch.zeros(2, 3), right)


@pytest.mark.parametrize("size", ["124M", "355M", "774M", "1558M"])
def test_openai_files_have_four_bytes_of_data_for_each_parameter(size: str) -> None:
    files = {file.name: file for file in openai_files(size)}
    assert tuple(files) == NAMES
    n_parameters = sum(math.prod(shape) for shape in parameter_shapes(gpt2_config(size)).values())
    assert files["model.ckpt.data-00000-of-00001"].size == 4 * n_parameters
    assert files["encoder.json"].urls == (
        f"https://openaipublic.blob.core.windows.net/gpt-2/models/{size}/encoder.json",
        f"https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2/{size}/encoder.json",
    )


@pytest.mark.parametrize(
    ("size", "nearest"), [("124m", "124M"), ("117M", "124M"), ("gpt2-xl", "1558M"), ("1558", "1558M"), ("335M", "355M")]
)
def test_another_size_is_refused_with_the_nearest(tmp_path: Path, size: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"124M, 355M, 774M, 1558M, got '{size}'; did you mean '{nearest}'"):
        download_and_load_gpt2(model_size=size, models_dir=tmp_path)


def test_without_tensorflow_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"install 'gpt-weights\[tensorflow\]'"):
        download_and_load_gpt2("124M", tmp_path)
    assert list(tmp_path.iterdir()) == []


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


def test_download_file_fetches_once_and_returns_none(
    tmp_path: Path, server: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = server
    (folder / "a.bin").write_bytes(b"weights" * 1000)
    target = tmp_path / "new" / "b.bin"
    assert download_file(f"{url}/a.bin", str(target)) is None
    assert target.read_bytes() == b"weights" * 1000
    assert "fetching b.bin" in capsys.readouterr().err
    (folder / "a.bin").unlink()
    download_file(f"{url}/a.bin", target)


def test_download_file_goes_to_the_backup_and_raises_if_that_fails_too(
    tmp_path: Path, server: tuple[str, Path]
) -> None:
    url, folder = server
    (folder / "a.bin").write_bytes(b"weights")
    download_file(f"{url}/none", tmp_path / "a.bin", backup_url=f"{url}/a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"weights"
    with pytest.raises(FileNotFoundError, match=r"c\.bin does not exist at its source"):
        download_file(f"{url}/none", tmp_path / "c.bin", f"{url}/nor-this")
    assert not (tmp_path / "c.bin").exists()
