"""A classifier's head without its bias: transformers' has none, so ours is moved into the norm before it.

The head computes W (n + s) + b for a normalised vector n and the norm's shift s: W (n + s + v) with W v = b. Of all
such v the shortest is taken, pinv(W) b; there is one whenever the rows of W are independent.

Shapes: C classes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def shift_with_bias(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the shift (D,) with which a head of ``weight`` (C, D) needs no ``bias`` (C,); ``scale`` is the norm's.

    Raises ValueError if the rows of ``weight`` depend on one another, or so nearly that the logits would change by more
    than 1e-4 of the largest (in 16 bits: 8 steps of the type).
    """
    W, b = weight.cpu().double(), bias.cpu().double()
    if not b.any():
        return shift.detach().clone()
    v = torch.linalg.pinv(W) @ b                                                # (D,)
    moved = (shift.cpu().double() + v).to(device=shift.device, dtype=shift.dtype)
    noise = torch.randn(64, len(shift), generator=torch.Generator().manual_seed(0))
    n = F.layer_norm(noise, noise.shape[1:]).to(device=shift.device, dtype=shift.dtype)
    before = F.linear(n * scale + shift, weight, bias).double()                 # (64, C)
    after = F.linear(n * scale + moved, weight).double()
    difference = float((before - after).abs().max())
    allowed = max(1e-4, 8 * torch.finfo(shift.dtype).eps) * max(1.0, float(before.abs().max()))
    is_exact = float((W @ v - b).abs().max()) <= 1e-9 * float(b.abs().max())
    if not is_exact or not difference <= allowed:  # a NaN is not, either
        raise ValueError(
            "the head's bias cannot be moved into final_norm, as PEFT's layout needs, because the rows of its weight "
            f"depend on one another, wholly or nearly (logits would change by {difference:.3g}, allowed is "
            f"{allowed:.3g}); set the bias to zero or train on"
        )
    return moved
