"""Rotary positions against complex numbers: the paper's own way to write them."""

import cmath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_attention import rotary_angles, rotate


@pytest.mark.parametrize("base", [10000.0, 5e5])
def test_each_pair_is_a_complex_number_times_a_phase(base: float) -> None:
    positions = [0, 1, 2, 7, 1000]
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    turned = rotate(x, *rotary_angles(torch.tensor(positions), head_dim=8, base=base))
    assert turned.dtype == torch.float64
    for t, position in enumerate(positions):
        for i in range(4):
            phase = cmath.exp(1j * position / base ** (2 * i / 8))
            expected = torch.complex(x[:, :, t, i], x[:, :, t, i + 4]) * phase
            found = torch.complex(turned[:, :, t, i], turned[:, :, t, i + 4])
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)  # float32's angle at 1,000 is off by 6e-5


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_a_product_depends_on_the_distance_alone(first: int, second: int, shift: int) -> None:
    query, key = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(first), dtype=torch.float64)

    def product(first: int, second: int) -> torch.Tensor:
        turned = [
            rotate(x, *rotary_angles(torch.tensor([position]), head_dim=6))
            for x, position in ((query, first), (key, second))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(first + shift, second + shift), product(first, second), atol=2e-3, rtol=0)


def test_lengths_stay_and_position_0_changes_nothing() -> None:
    x = torch.randn(4, 9, 10)
    turned = rotate(x, *rotary_angles(torch.arange(9), head_dim=10))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0])
    assert not torch.allclose(turned[:, 1], x[:, 1])


def test_bfloat16_is_turned_in_float32_and_rounded_once() -> None:
    angles = rotary_angles(torch.arange(600, 620), head_dim=16)
    x = torch.randn(20, 16).bfloat16()
    assert torch.equal(rotate(x, *angles), rotate(x.float(), *angles).bfloat16())
    assert angles[0].dtype == torch.float32


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim must be even, got 7"):
        rotary_angles(torch.arange(3), head_dim=7)
