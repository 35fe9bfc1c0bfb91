"""Room for more tokens: what the model says of the old ones hardly changes."""

import pytest
import torch

from gpt_core import GPTConfig, GPTModel, GPTModelFast
from gpt_finetune.classifier import with_class_head
from gpt_finetune.lora import LoRAConfig, add_lora
from gpt_finetune.trained_part import train_only_last_blocks
from gpt_finetune.vocabulary import with_vocabulary

CONFIG = {"vocab_size": 40, "context_length": 8, "emb_dim": 16, "n_heads": 2, "n_layers": 2}


def make(**changes):
    torch.manual_seed(3)
    return GPTModel(GPTConfig(**{**CONFIG, **changes})).eval()


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_old_ids_logits_stay_and_no_new_one_is_the_likeliest(is_tied):
    model = make(tie_weights=is_tied)
    wider = with_vocabulary(model, 43, seed=1)
    ids = torch.randint(0, 40, (4, 8), generator=torch.Generator().manual_seed(1))
    logits = wider(ids)

    torch.testing.assert_close(logits[..., :40], model(ids))
    assert logits.shape == (4, 8, 43)
    assert (logits[..., 40:].amax(dim=-1) < logits[..., :40].amax(dim=-1)).all()
    assert (wider.out_head.weight is wider.tok_emb.weight) is is_tied
    assert len({tuple(row.tolist()) for row in wider.tok_emb.weight[40:]}) == 3


def test_the_other_parameters_are_the_same_memory():
    model = make()

    assert with_vocabulary(model, 41, seed=1).trf_blocks[0].att.W_query.weight.data_ptr() == (
        model.trf_blocks[0].att.W_query.weight.data_ptr())


def test_what_is_frozen_stays_frozen():
    model = make()
    train_only_last_blocks(model)
    wider = with_vocabulary(model, 41, seed=1)

    assert {n for n, p in wider.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad}


def test_a_model_with_room_is_left_alone_and_the_seed_decides():
    model = make()

    assert with_vocabulary(model, 30, seed=1) is model
    first, again, other = (with_vocabulary(model, 41, seed=seed).tok_emb.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_cannot_be_widened_is_refused():
    with_adapters = make()
    add_lora(with_adapters, LoRAConfig())
    for model in (with_class_head(make(), 2, seed=1), GPTModelFast(CONFIG), with_adapters):
        with pytest.raises(ValueError, match=r"GPTModel|LoRA"):
            with_vocabulary(model, 41, seed=1)
