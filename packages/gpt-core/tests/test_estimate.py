"""Memory and work told beforehand: against counted parameters, torch's own counter and a measured process."""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from gpt_core import GPTConfig, GPTModel, gpt2_config
from gpt_core.estimate import Estimate, estimate

SMALL: dict[str, Any] = {"vocab_size": 300, "context_length": 96, "emb_dim": 32, "n_heads": 4, "n_layers": 3}
MODES = ("load", "generate", "train")


@st.composite
def configs(draw: st.DrawFn) -> GPTConfig:
    n_heads = draw(st.sampled_from([1, 2, 4, 6]))
    return GPTConfig(
        vocab_size=draw(st.integers(1, 500)),
        context_length=draw(st.integers(1, 700)),
        emb_dim=n_heads * 2 * draw(st.integers(1, 8)),
        n_heads=n_heads,
        n_layers=draw(st.integers(1, 4)),
        drop_rate=draw(st.sampled_from([0.0, 0.1])),
        qkv_bias=draw(st.booleans()),
        tie_weights=draw(st.booleans()),
        n_kv_heads=draw(st.sampled_from([None, *(n for n in (1, 2, 3, 6) if n_heads % n == 0)])),
        sliding_window=draw(st.none() | st.integers(1, 800)),
        positions=draw(st.sampled_from(["learned", "rotary"])),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
    )


@given(configs(), st.sampled_from(MODES))
def test_parameters_are_those_of_the_model(config: GPTConfig, mode: Any) -> None:
    assert estimate(config, mode=mode).parameters == sum(p.numel() for p in GPTModel(config).parameters())


@given(configs(), st.integers(2, 30), st.sampled_from(["load", "train"]))
def test_parameters_of_a_classifier_are_those_of_the_model(config: GPTConfig, n_classes: int, mode: Any) -> None:
    config = dataclasses.replace(config, tie_weights=False, n_classes=n_classes)
    assert estimate(config, mode=mode).parameters == sum(p.numel() for p in GPTModel(config).parameters())


def test_a_classifier_takes_less_than_the_model_it_was_and_generates_nothing() -> None:
    classifier = GPTConfig(**SMALL, n_classes=2)
    for mode in ("load", "train"):
        assert estimate(classifier, mode=mode).peak_bytes < estimate(SMALL, mode=mode).peak_bytes
    assert estimate(classifier, mode="train").logits < estimate(SMALL, mode="train").logits
    with pytest.raises(ValueError, match=r"classifies \(n_classes=2\) and has no next token"):
        estimate(classifier, mode="generate")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_parameters_of_gpt2_are_those_of_its_published_weights(name: str, parameters: int) -> None:
    # Counted from openai-community/gpt2, -medium, -large and -xl on the Hugging Face hub.
    assert estimate(gpt2_config(name), mode="load").parameters == parameters


def _uncounted_pairs(config: GPTConfig, T: int) -> int:
    """(query, key) pairs that torch's counter sees in a full (T, T) square, and a causal window does not need."""
    window = config.sliding_window or T
    return T * T - sum(min(i + 1, window) for i in range(T))


@pytest.mark.parametrize(
    "changes", [{}, {"sliding_window": 10}, {"n_kv_heads": 2, "tie_weights": True}, {"n_classes": 5}]
)
def test_flops_of_training_are_what_torch_counts(changes: dict[str, Any]) -> None:
    config, B, T = GPTConfig(**{**SMALL, **changes}), 2, 40
    ids = torch.zeros(B, T, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(GPTModel(config, explicit=True)(ids).flatten(0, 1), ids.flatten()).backward()
    above = 3 * config.n_layers * 4 * config.emb_dim * B * _uncounted_pairs(config, T)
    assert estimate(config, batch=B, context=T, mode="train").flops == counter.get_total_flops() - above


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 10}, {"n_kv_heads": 2, "positions": "rotary"}])
def test_flops_of_a_prompt_and_of_one_more_token_are_what_torch_counts(changes: dict[str, Any]) -> None:
    config, B, T = GPTConfig(**{**SMALL, **changes}), 2, 40
    model = GPTModel(config, explicit=True).eval()
    ids = torch.zeros(B, T, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.out_head(model.features(ids)[:, -1])
    told = estimate(config, batch=B, context=T, mode="generate")
    above = config.n_layers * 4 * config.emb_dim * B * _uncounted_pairs(config, T)
    assert told.prompt_flops == counter.get_total_flops() - above

    cache = model.new_cache()
    with torch.no_grad():
        model.features(ids[:, :-1], cache=cache)
        with FlopCounterMode(display=False) as counter:
            model.out_head(model.features(ids[:, -1:], cache=cache)[:, -1])
    assert told.flops == counter.get_total_flops()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("context", "changes"),
    [
        (256, {}),
        (600, {}),
        (256, {"norm": "rmsnorm", "qkv_bias": False}),
        (600, {"positions": "rotary"}),
        (600, {"positions": "rotary", "n_kv_heads": 2, "sliding_window": 50}),
        (256, {"n_kv_heads": 2}),
        (600, {"n_kv_heads": 2}),
        (256, {"drop_rate": 0.1}),
        (256, {"drop_rate": 0.1, "n_kv_heads": 2}),
    ],
)
def test_activations_of_training_are_what_autograd_keeps(context: int, changes: dict[str, Any], dtype: str) -> None:
    sizes = {"vocab_size": 9_000, "context_length": context, "emb_dim": 128, "n_heads": 4, "n_layers": 3}
    config = GPTConfig(**{"qkv_bias": True, "tie_weights": True, **sizes, **changes})
    model = GPTModel(config)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.zeros(4, context, dtype=torch.int64)
    is_mixed = dtype == "bfloat16"
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed):
            features = model.features(ids)
        n_bytes = sum(storage.nbytes() for storage in kept.values()) + features.nbytes
    told = estimate(config, batch=4, context=context, dtype=dtype, mode="train")
    assert told.logits > 0  # so it is the loss that takes most, with everything kept
    assert told.activations == pytest.approx(n_bytes, rel=0.01)


def test_loading_does_no_products() -> None:
    assert estimate(SMALL, mode="load").flops == estimate(SMALL, mode="load").prompt_flops == 0


@given(configs(), st.sampled_from(MODES), st.integers(1, 4), st.integers(1, 4))
def test_parts_add_up_and_none_is_negative(config: GPTConfig, mode: Any, batch: int, more: int) -> None:
    context = max(config.context_length // more, 1)
    told = estimate(config, batch=batch, context=context, mode=mode)
    sizes = {field.name: getattr(told, field.name) for field in dataclasses.fields(Estimate)}
    for name in ("mode", "parameters", "flops", "prompt_flops"):
        del sizes[name]
    assert told.parts == sizes
    assert told.peak_bytes == sum(sizes.values())
    assert min(sizes.values()) >= 0


@given(configs(), st.sampled_from([("generate", "float32"), ("generate", "bfloat16"), ("generate", "int8"),
                                   ("train", "float32"), ("train", "bfloat16")]), st.integers(1, 9), st.data())
def test_a_larger_batch_or_context_takes_no_less(
    config: GPTConfig, what: tuple[Any, str], batch: int, data: st.DataObject
) -> None:
    # Attention of up to 512 tokens keeps its probabilities in training, beyond that it does not: another algorithm.
    most = min(config.context_length, 512) if what[0] == "train" else config.context_length
    context = data.draw(st.integers(1, most))
    first, wider, longer = (
        estimate(config, batch=B, context=T, mode=what[0], dtype=what[1])
        for B, T in ((batch, context), (batch + 1, context), (batch, min(context + 1, most)))
    )
    for other in (wider, longer):
        assert other.peak_bytes >= first.peak_bytes
        assert other.flops >= first.flops
    assert wider.flops > first.flops


def test_the_cache_is_the_tensor_that_the_engine_allocates() -> None:
    from gpt_attention import SlotCache

    config = gpt2_config("124M")
    cache = SlotCache(
        n_layers=12, n_slots=2, capacity=100, n_heads=12, head_dim=64, dtype=torch.float32, device=torch.device("cpu"))
    assert estimate(config, batch=2, context=100, mode="generate").cache == cache.nbytes


def test_the_largest_gpt2_is_told_in_no_time_and_by_a_readable_sentence() -> None:
    text = str(estimate(gpt2_config("1558M"), batch=8, mode="train"))
    assert text.startswith("train: 1,557,611,200 parameters; ")
    assert "GiB at most (weights 5.80 GiB, " in text
    assert text.endswith("FLOP a step")


def test_the_books_dict_and_torchs_dtypes_are_understood() -> None:
    by_name = estimate(GPTConfig(**SMALL), dtype="bfloat16", mode="generate")
    assert estimate(SMALL, dtype=torch.bfloat16, mode="generate") == by_name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "serve"}, "mode must be one of load, generate, train, got 'serve'"),
        ({"mode": "train", "batch": 0}, "batch must be a whole number of at least 1, got 0"),
        ({"mode": "train", "batch": True}, "batch must be a whole number of at least 1, got True"),
        ({"mode": "load", "batch": 1.5}, "batch must be a whole number of at least 1, got 1.5"),
        ({"mode": "train", "context": -1}, "context must be a whole number of at least 1, got -1"),
        ({"mode": "generate", "context": 97}, "context must be at most the model's context length of 96, got 97"),
        ({"mode": "train", "dtype": "int8"}, "dtype must be one of float32, bfloat16 to train, got 'int8'"),
        ({"mode": "load", "dtype": torch.int8}, "to load, got torch.int8; quantize changes the model after"),
        ({"mode": "generate", "dtype": None}, "dtype must be one of float32, bfloat16, int8 to generate, got None"),
    ],
)
def test_a_bad_value_is_refused_with_the_rule(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(SMALL, **arguments)


def test_a_config_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown key 'n_layer'"):
        estimate({**SMALL, "n_layer": 3}, mode="load")


# Resident memory at its largest since the last reset, less that of before.
_MEASURE = """
import json, sys
from pathlib import Path
import torch
from gpt_core import GPTConfig, GPTModel, generate_batch, load_checkpoint, save_checkpoint

def kilobytes(name):
    return int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0])

def peak_of(work):
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    work()
    return 1024 * (kilobytes("VmHWM") - before)

config = GPTConfig(**json.loads(sys.argv[1]))
save_checkpoint("saved", GPTModel(config))
loaded = []
load = peak_of(lambda: loaded.append(load_checkpoint("saved").model))
prompts = [[1] * (config.context_length - 2)] * 4
generate = peak_of(lambda: generate_batch(loaded[0], prompts, max_new_tokens=2))
print(json.dumps([load, generate]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_process_that_loads_and_generates_takes_what_was_told(tmp_path: Any) -> None:
    config = {"vocab_size": 16_000, "context_length": 512, "emb_dim": 512, "n_heads": 8, "n_layers": 8}
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE, json.dumps(config)], cwd=tmp_path, capture_output=True, text=True,
        encoding="utf-8", check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    load, generate = json.loads(result.stdout)
    assert estimate(config, mode="load").peak_bytes == pytest.approx(load, rel=0.05)
    told = estimate(config, batch=4, mode="generate")
    in_memory = 4 * told.parameters  # the model that was loaded before
    assert told.peak_bytes - in_memory == pytest.approx(generate, rel=0.1)
