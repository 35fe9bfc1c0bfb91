"""Room for more tokens in a model: control tokens that it was not pretrained with."""

import dataclasses

import torch
from torch import Tensor

from gpt_core import GPTModel, GPTModelFast, model_from_tensors
from gpt_finetune.lora import refuse_lora

_NOISE = 0.1  # of the old rows' standard deviation: new tokens start near the mean, yet not all alike


def with_vocabulary(model: GPTModel, vocab_size: int, *, seed: int) -> GPTModel:
    """Return a model with rows for ``vocab_size`` ids; the model itself if it has as many.

    Its other parameters are those of ``model`` (the same memory, not copies), frozen where they are; what it says of
    the old ids changes little: a new row is the mean of the old ones, so no new token is likelier than an average one
    (Hewitt 2021), with a little noise drawn from ``seed`` alone. Raises ValueError for a classifier, a
    ``GPTModelFast``, or a model with LoRA in it.
    """
    if isinstance(model, GPTModelFast) or model.config.n_classes is not None:
        raise ValueError("only a GPTModel that predicts tokens can be given more of them; load the weights into one")
    refuse_lora(model)
    n_new = vocab_size - model.config.vocab_size
    if n_new <= 0:
        return model
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(model.state_dict())
    tensors["tok_emb.weight"] = _extended(tensors["tok_emb.weight"], n_new, generator)
    if model.config.tie_weights:
        del tensors["out_head.weight"]
    else:
        tensors["out_head.weight"] = _extended(tensors["out_head.weight"], n_new, generator)
    wider = model_from_tensors(dataclasses.replace(model.config, vocab_size=vocab_size), tensors)
    is_trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in wider.named_parameters():
        parameter.requires_grad_(is_trained[name])
    return wider.train(model.training)


@torch.no_grad()
def _extended(rows: Tensor, n_new: int, generator: torch.Generator) -> Tensor:
    """Return the rows (V, D) with ``n_new`` more."""
    known = rows.float()
    noise = torch.randn(n_new, rows.shape[1], generator=generator).to(rows.device)
    new = known.mean(dim=0) + _NOISE * known.std(dim=0) * noise
    return torch.cat([rows, new.to(rows.dtype)])
