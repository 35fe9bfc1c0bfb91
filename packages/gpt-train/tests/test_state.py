import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gpt_core import GPTConfig, GPTModel, load_checkpoint, save_checkpoint
from gpt_train import DataError, ShardDataset, TrainConfig, TrainState, train, write_shards

V, T = 23, 8
CONFIG = TrainConfig(max_steps=8, lr=0.05, warmup_steps=2, accumulate=2, precision="float32", eval_every=2)


def fresh(config=CONFIG, seed=0, width=8):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Embedding(V, width), nn.Dropout(0.3), nn.LayerNorm(width), nn.Linear(width, V), nn.Dropout(0.1)
    )
    return model, TrainState(model, config)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    ids = torch.randint(0, V, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    write_shards(folder, [ids], n_vocab=V, tokenizer_sha256="0" * 64, shard_tokens=150)
    return ShardDataset(folder)


def steps(model, state, dataset, *, until=None):
    config = state.config
    start = state.step * config.accumulate
    batches = dataset.batches(batch_size=2, context_length=T, seed=4, start=start)
    val_batches = dataset.windows(batch_size=4, context_length=T)
    for report in train(model, batches, config=config, state=state, val_batches=val_batches):
        yield report
        if report.step == until:
            return


def contents(model, state):
    moments = {
        f"{name}/{moment}": value
        for name, parameter in model.named_parameters()
        for moment, value in state.optimizer.state[parameter].items()
    }
    return {**model.state_dict(), **moments, "rng": torch.get_rng_state()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("split", [1, 2, 5, 7, 8])
def test_resuming_at_any_step_equals_the_run_without_a_break(tmp_path, dataset, split, precision):
    """With dropout: weights, moments, random states, losses and counters, all bit for bit."""
    config = replace(CONFIG, precision=precision)
    model, state = fresh(config)
    whole = [replace(r, seconds=0) for r in steps(model, state, dataset)]
    expected = contents(model, state)

    model, state = fresh(config)
    before = [replace(r, seconds=0) for r in steps(model, state, dataset, until=split)]
    state.save(tmp_path)
    saved = copy.deepcopy(model.state_dict())
    model, state = fresh(config, seed=99)
    model.load_state_dict(saved)
    state.load(tmp_path)
    after = [replace(r, seconds=0) for r in steps(model, state, dataset)]

    assert before + after == whole
    found = contents(model, state)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_state_saved_before_the_first_step_can_be_resumed(tmp_path, dataset):
    model, state = fresh()
    state.save(tmp_path)
    expected = [r.loss for r in steps(model, state, dataset)]

    model, state = fresh()
    torch.manual_seed(50)
    state.load(tmp_path)
    assert [r.loss for r in steps(model, state, dataset)] == expected


def test_saving_the_same_state_twice_gives_the_same_bytes(tmp_path, dataset):
    model, state = fresh()
    list(steps(model, state, dataset, until=3))
    state.save(tmp_path / "a")
    state.save(tmp_path / "b")

    names = sorted(path.name for path in (tmp_path / "a" / "trainer").iterdir())
    assert names == ["state.json", "state.safetensors"]
    for name in names:
        a, b = (tmp_path / folder / "trainer" / name for folder in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_the_files_are_plain_safetensors_and_json_with_the_optimizers_own_moments(tmp_path, dataset):
    model, state = fresh()
    list(steps(model, state, dataset, until=3))
    state.save(tmp_path)

    tensors = load_file(tmp_path / "trainer" / "state.safetensors")
    for name, parameter in model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(tensors[f"{moment}/{name}"], state.optimizer.state[parameter][moment])
    record = json.loads((tmp_path / "trainer" / "state.json").read_text(encoding="utf-8"))
    assert (record["step"], record["tokens_seen"]) == (3, 3 * 2 * 2 * T)
    assert record["config"]["lr"] == 0.05


def test_a_frozen_parameter_has_no_moments_and_resumes(tmp_path, dataset):
    def frozen():
        model, _ = fresh()
        model[0].requires_grad_(False)
        return model, TrainState(model, CONFIG)

    model, state = frozen()
    list(steps(model, state, dataset, until=3))
    state.save(tmp_path)
    assert not any(key.endswith("0.weight") for key in load_file(tmp_path / "trainer" / "state.safetensors"))
    saved = copy.deepcopy(model.state_dict())
    expected = [r.loss for r in steps(model, state, dataset)]

    model, state = frozen()
    model.load_state_dict(saved)
    state.load(tmp_path)
    assert [r.loss for r in steps(model, state, dataset)] == expected


def saved_state(folder, dataset):
    model, state = fresh()
    list(steps(model, state, dataset, until=2))
    state.save(folder)
    return folder / "trainer"


def test_another_configuration_is_refused_with_what_differs(tmp_path, dataset):
    saved_state(tmp_path, dataset)
    _, state = fresh(replace(CONFIG, lr=0.01, max_steps=9))

    with pytest.raises(DataError, match=r"saved max_steps 8, lr 0.05; now max_steps 9, lr 0.01;") as caught:
        state.load(tmp_path)
    assert "beta" not in str(caught.value)
    assert state.step == 0
    assert not state.optimizer.state


def test_another_model_is_refused_with_what_differs(tmp_path, dataset):
    saved_state(tmp_path, dataset)
    _, state = fresh(width=16)

    with pytest.raises(DataError, match=r"another model: saved .*0.weight \[23, 8\].*; now .*\[23, 16\]"):
        state.load(tmp_path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda t: shutil.rmtree(t), "is missing"),
        (lambda t: (t / "state.json").unlink(), "is missing"),
        (lambda t: (t / "state.safetensors").unlink(), "is missing"),
        (lambda t: (t / "state.json").write_text("{", encoding="utf-8"), "is damaged"),
        (lambda t: (t / "state.json").write_text("[]", encoding="utf-8"), "format"),
        (lambda t: edit(t, format="gpt-train/2"), "format 'gpt-train/2'"),
        (lambda t: edit(t, step="three"), "damaged at 'step'"),
        (lambda t: edit(t, parameters=None), "damaged at 'parameters'"),
        (lambda t: (t / "state.safetensors").write_bytes(b"\0" * 40), "is damaged"),
        (lambda t: truncate(t / "state.safetensors"), "is damaged"),
        (lambda t: change_tensors(t, drop="rng/cpu"), "lacks rng/cpu"),
        (lambda t: change_tensors(t, drop="exp_avg/3.bias"), "lacks a moment of 3.bias"),
        (lambda t: change_tensors(t, add={"exp_avg/other": torch.zeros(1)}), "which no parameter"),
        (lambda t: change_tensors(t, add={"exp_avg/3.bias": torch.zeros(1)}), "with shape"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(tmp_path, dataset, fault, message):
    fault(saved_state(tmp_path, dataset))
    model, state = fresh()
    before = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    with pytest.raises(DataError, match=message):
        state.load(tmp_path)
    assert state.step == state.tokens_seen == 0
    assert not state.optimizer.state
    assert torch.equal(before[1], torch.get_rng_state())


def edit(trainer, **changes):
    record = json.loads((trainer / "state.json").read_text(encoding="utf-8"))
    (trainer / "state.json").write_text(json.dumps(record | changes), encoding="utf-8")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def change_tensors(trainer, *, drop=None, add=None):
    tensors = {k: v.clone() for k, v in load_file(trainer / "state.safetensors").items() if k != drop}
    save_file(tensors | (add or {}), trainer / "state.safetensors")


def test_resuming_under_other_circumstances_warns_and_goes_on(tmp_path, dataset):
    trainer = saved_state(tmp_path, dataset)
    edit(trainer, circumstances={"torch": "2.10.0", "device": "cpu", "threads": torch.get_num_threads()})
    _, state = fresh()

    with pytest.warns(UserWarning, match="torch 2.10.0 -> torch"):
        state.load(tmp_path)
    assert state.step == 2


def test_a_checkpoint_of_a_tied_gpt_resumes_bit_for_bit(tmp_path, dataset):
    """Through gpt-core's checkpoint directory, as a program would."""
    size = GPTConfig(
        vocab_size=V, context_length=T, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.1, tie_weights=True
    )
    torch.manual_seed(0)
    model = GPTModel(size)
    state = TrainState(model, CONFIG)
    for report in steps(model, state, dataset):
        if report.step == 3:
            save_checkpoint(tmp_path / "step-3", model, extra=state.save)
    expected = contents(model, state)

    torch.manual_seed(77)
    model = load_checkpoint(tmp_path / "step-3").model
    state = TrainState(model, CONFIG)
    state.load(tmp_path / "step-3")
    assert [report.step for report in steps(model, state, dataset)] == [4, 5, 6, 7, 8]
    for name, value in contents(model, state).items():
        assert torch.equal(expected[name], value), name
