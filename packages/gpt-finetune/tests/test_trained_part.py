"""A frozen trunk that is computed once gives what it gives computed anew, and is not touched by training."""

from dataclasses import replace

import pytest
import torch

from gpt_core import GPTConfig, GPTModel, GPTModelFast
from gpt_finetune.classifier import Classifier
from gpt_finetune.labelled import LabelledTexts
from gpt_finetune.lora import LoRAConfig, add_lora
from gpt_finetune.padding import padded
from gpt_finetune.trained_part import TrainedPart, n_frozen_blocks, train_only_last_blocks
from gpt_finetune.training import ClassifierConfig, train_classifier

CONFIG = GPTConfig(
    vocab_size=256, context_length=64, emb_dim=32, n_heads=4, n_layers=3, drop_rate=0.2, n_classes=2)
VARIANTS = {
    "GPT-2": CONFIG,
    "biases": replace(CONFIG, qkv_bias=True),
    "grouped heads": replace(CONFIG, n_kv_heads=2),
    "window": replace(CONFIG, sliding_window=5),
    "rotary": replace(CONFIG, positions="rotary", norm="rmsnorm"),
}


class Bytes:
    def encode(self, text):
        return list(text.encode())

    def save(self, path):
        path.write_text("{}", encoding="utf-8")


def made(config=CONFIG, dtype=torch.float32, cls=GPTModel):
    torch.manual_seed(3)
    return cls(config).to(dtype)


def some_texts(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    words = ["the", "cat", "win", "cash", "now", "sat", "on", "a", "mat"]
    lengths = torch.randint(1, 9, (n,), generator=generator).tolist()
    texts = [" ".join(words[i] for i in torch.randint(9, (m,), generator=generator).tolist()) for m in lengths]
    labels = ["spam" if "cash" in text or "win" in text else "ham" for text in texts]
    return LabelledTexts(source="made", texts=tuple(texts), labels=tuple(labels), lines=tuple(range(1, n + 1)))


def trained(model, **changes):
    """Train for two epochs; return the reports."""
    settings = {"epochs": 2, "batch_size": 4, "lr": 1e-3, **changes}
    classifier = Classifier(model, Bytes(), labels=["ham", "spam"])
    texts, held_out = some_texts(), some_texts(9, seed=1)
    return list(train_classifier(classifier, texts, validation=held_out, config=ClassifierConfig(**settings)))


def lora_in_block(model, number):
    names = tuple(f"trf_blocks.{number}.{name}" for name in ("att.W_query", "att.W_value", "ff.layers.0"))
    torch.manual_seed(4)
    add_lora(model, LoRAConfig(rank=2, layers=names, dropout=0.1))
    model.out_head.requires_grad_(True)


PARTS = {
    "head": lambda model: train_only_last_blocks(model, 0),
    "last block": train_only_last_blocks,
    "last two": lambda model: train_only_last_blocks(model, 2),
    "LoRA in the last": lambda model: lora_in_block(model, 2),
    "LoRA in the second": lambda model: lora_in_block(model, 1),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=["float32", "float64"])
def test_reuse_changes_neither_the_final_weights_nor_the_losses(part, dtype, atol):
    with_reuse, without = made(dtype=dtype), made(dtype=dtype)
    PARTS[part](with_reuse)
    PARTS[part](without)
    reports = trained(with_reuse), trained(without, reuse_trunk=False)

    for ours, theirs in zip(with_reuse.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)
    for ours, theirs in zip(*reports, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
        if ours.validation:
            assert ours.validation.loss == pytest.approx(theirs.validation.loss, abs=1e-5)
            assert ours.training.loss == pytest.approx(theirs.training.loss, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_reuse_works_for_every_kind_of_model(variant):
    with_reuse, without = (made(VARIANTS[variant], torch.float64) for _ in range(2))
    for model, is_reused in ((with_reuse, True), (without, False)):
        train_only_last_blocks(model)
        trained(model, reuse_trunk=is_reused)
    for ours, theirs in zip(with_reuse.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("is_reused", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_training_leaves_the_trunk_bit_for_bit_and_in_eval_mode(part, is_reused):
    model = made()
    PARTS[part](model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    trunk = TrainedPart(model).train()
    n_frozen = trunk.n_frozen
    assert not any(module.training for block in model.trf_blocks[:n_frozen] for module in block.modules())
    assert not model.drop_emb.training
    assert all(block.training for block in model.trf_blocks[n_frozen:])
    trained(model, reuse_trunk=is_reused)
    requires = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}

    assert changed == requires
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("part", PARTS)
def test_the_vectors_behind_the_table_are_those_of_the_whole_model(part):
    model = made(dtype=torch.float64)
    PARTS[part](model)
    model.eval()
    sequences = [[1, 2, 3], [200], [7] * 40, [9, 8], [5] * 17]
    inputs, lengths = padded(sequences)
    trunk = TrainedPart(model).eval()
    computed = trunk(inputs, lengths - 1), trunk(inputs)
    rows = trunk.reuse(sequences)

    assert sorted(row for of_one in rows for row in of_one) == list(range(sum(map(len, sequences))))
    reused = trunk(padded(rows)[0], lengths - 1)
    torch.testing.assert_close(computed[0], model.features(inputs, rows=lengths - 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(computed[1], model.features(inputs), atol=1e-12, rtol=0)
    torch.testing.assert_close(reused, computed[0], atol=1e-12, rtol=0)


def test_the_part_holds_what_is_trained_and_no_gradient_goes_beyond_it():
    model = made()
    train_only_last_blocks(model, 2)
    part = TrainedPart(model)
    trained_ones = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}

    assert {id(parameter) for parameter in part.parameters()} == trained_ones
    part.eval()(torch.tensor([[1, 2]])).sum().backward()
    assert all((parameter.grad is None) != parameter.requires_grad for parameter in model.trf_blocks.parameters())


def test_without_a_trunk_the_whole_model_is_trained_and_there_is_nothing_to_reuse():
    model = made()
    part = TrainedPart(model).train()

    assert part.n_frozen == 0
    assert model.training
    assert {id(p) for p in part.parameters()} == {id(p) for p in model.parameters()}
    with pytest.raises(ValueError, match="nothing to reuse"):
        part.reuse([[1, 2]])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained(model)
    assert [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])] == []


@pytest.mark.parametrize(
    ("thawed", "expected"),
    [
        (["trf_blocks.0.att.W_query.weight"], 0),
        (["trf_blocks.1.norm1.scale"], 1),
        (["trf_blocks.2.ff.layers.2.bias"], 2),
        (["trf_blocks.2.att.W_key.weight", "trf_blocks.1.att.W_key.weight"], 1),
        (["final_norm.scale"], 3),
        (["out_head.bias"], 3),
        (["tok_emb.weight"], 0),
        (["pos_emb.weight"], 0),
        (["tok_emb.weight", "trf_blocks.2.norm1.scale"], 0),
        ([], 3),
    ],
)
def test_the_frozen_blocks_are_those_before_the_first_trained_parameter(thawed, expected):
    model = made().requires_grad_(False)
    for name in thawed:
        model.get_parameter(name).requires_grad_(True)
    assert n_frozen_blocks(model) == expected


def test_rotary_positions_have_no_embedding_that_could_be_trained():
    model = made(VARIANTS["rotary"])
    train_only_last_blocks(model)
    assert n_frozen_blocks(model) == 2


@pytest.mark.parametrize("n_blocks", [0, 1, 2, 3])
@pytest.mark.parametrize("cls", [GPTModel, GPTModelFast])
def test_train_only_last_blocks_thaws_head_final_norm_and_those_blocks(n_blocks, cls):
    model = made(cls=cls)
    model.tok_emb.requires_grad_(False)
    train_only_last_blocks(model, n_blocks)
    first = 3 - n_blocks
    wanted = {
        name for name, _ in model.named_parameters()
        if name.startswith(("final_norm.", "out_head.", *(f"trf_blocks.{number}." for number in range(first, 3))))
    }

    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == wanted
    assert n_frozen_blocks(model) == first


@pytest.mark.parametrize("n_blocks", [-1, 4])
def test_blocks_that_are_not_there_are_refused(n_blocks):
    with pytest.raises(ValueError, match=f"between 0 and the model's 3, got {n_blocks}"):
        train_only_last_blocks(made(), n_blocks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_table_bytes_are_what_the_table_takes(dtype):
    model = made(dtype=dtype)
    train_only_last_blocks(model)
    part = TrainedPart(model)
    part.reuse([[1, 2, 3], [4, 5]])
    assert part._table is not None
    assert part.table_bytes(5) == part._table.nbytes == 5 * 32 * dtype.itemsize


def test_a_table_that_is_too_large_is_not_made_and_a_warning_says_so(monkeypatch):
    computed = []
    monkeypatch.setattr(TrainedPart, "reuse", lambda part, sequences: computed.append(sequences))
    monkeypatch.setattr("gpt_finetune.training._REUSE_BYTES", 2**12)
    model = made()
    train_only_last_blocks(model)
    with pytest.warns(UserWarning, match=r"would take \d+\.\d GiB.* computed anew"):
        trained(model)
    assert computed == []


def test_a_next_token_loss_needs_no_table_and_warns_of_none(monkeypatch):
    monkeypatch.setattr("gpt_finetune.training._REUSE_BYTES", 2**12)
    model = made()
    train_only_last_blocks(model)
    assert len(trained(model, lm_weight=0.1)) == 12


def test_reuse_gives_the_same_weights_in_bfloat16_too():
    """The trunk is computed without autocast either way: in bfloat16 the two would differ by hundredths."""
    with_reuse, without = made(), made()
    for model, is_reused in ((with_reuse, True), (without, False)):
        train_only_last_blocks(model)
        trained(model, reuse_trunk=is_reused, precision="bfloat16")
    for ours, theirs in zip(with_reuse.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
