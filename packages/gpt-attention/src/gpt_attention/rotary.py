"""Rotary positions (Su et al. 2021, section 3.2): queries and keys turned by angles that grow with their position.

    angle(p, i) = p * base^(-2 i / K)
    rotate(x)_i         = x_i cos - x_(i + K/2) sin
    rotate(x)_(i + K/2) = x_(i + K/2) cos + x_i sin                 for i < K / 2, with the angle of x's position and i

The product of a turned query and a turned key depends on the distance of their positions only. Pairs are (i, i + K/2),
as Llama's weights in Hugging Face's form have them; the paper pairs neighbours (2 i, 2 i + 1).

Shapes: T positions, K head width; ``...`` any leading axes, such as batch and heads.
"""

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, *, head_dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, each (T, K / 2) float32, of the angles at ``positions`` (T,) int64.

    ``base`` is the paper's; the larger it is, the slower the slow pairs turn. Raises ValueError if ``head_dim`` (K) is
    odd.
    """
    if head_dim % 2 != 0:
        raise ValueError(f"rotary positions turn pairs of values, so head_dim must be even, got {head_dim}")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    # In float32 whatever the model's dtype: bfloat16 cannot tell position 256 from 257.
    angles = positions.unsqueeze(-1).float() * base**-exponents             # (T, K / 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return ``x`` (..., T, K) turned by the angles of its positions, computed in float32 at least, in x's dtype."""
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)      # each (..., T, K / 2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
