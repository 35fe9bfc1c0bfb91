"""AdamW with weight decay on the matrices only (Loshchilov and Hutter 2019; GPT-3, appendix B)."""

from torch import nn
from torch.optim import AdamW

from gpt_train.config import TrainConfig

# Devices with a fused AdamW kernel: one pass over memory instead of about ten.
_FUSED = {"cpu", "cuda", "mps", "xpu"}


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """Return AdamW over the model's trainable parameters, in two groups.

    Tensors with two or more axes decay: the weights of linear layers and, as in nanoGPT, the embeddings.
    Biases and the scales and shifts of norms do not: decay would pull them from values that have nothing to
    do with size. A head tied to the embedding is one tensor and appears once.

    Raises ValueError if nothing is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameter; set requires_grad on what is to be trained")
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in _FUSED and p.is_floating_point() for p in trainable)
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=fused or None,
    )
