"""SlotCache: what is written comes back, whatever lies in the other slots and behind it."""

import pytest
import torch

from gpt_attention import SlotCache

SIZES = {"n_layers": 2, "n_slots": 3, "capacity": 8, "n_heads": 2, "head_dim": 4}


def tokens(n: int) -> torch.Tensor:
    return torch.randn(n, 2, 2, 4)


def test_the_pieces_of_a_sequence_come_back_in_order_and_in_place() -> None:
    cache, whole = SlotCache(**SIZES), tokens(7)
    first, _ = cache.write(1, 2, 0, whole[:4])
    cache.write(1, 1, 0, tokens(8))
    cache.write(0, 2, 0, tokens(8))
    keys, values = cache.write(1, 2, 4, whole[4:])
    assert keys.shape == values.shape == (1, 2, 7, 4)
    assert torch.equal(keys[0].transpose(0, 1), whole[:, 0])
    assert torch.equal(values[0].transpose(0, 1), whole[:, 1])
    assert first.data_ptr() == keys.data_ptr()


def test_one_token_each_goes_to_its_own_position() -> None:
    cache, lengths = SlotCache(**SIZES), [5, 0, 3]
    held = [tokens(n) for n in lengths]
    for slot, sequence in enumerate(held):
        cache.write(0, slot, 0, sequence)
    new = tokens(3)
    keys, values = cache.write_each(0, torch.tensor(lengths), 6, new)
    assert keys.shape == (3, 2, 6, 4)
    for slot, n in enumerate(lengths):
        expected = torch.cat([held[slot], new[slot : slot + 1]])
        assert torch.equal(keys[slot, :, : n + 1].transpose(0, 1), expected[:, 0])
        assert torch.equal(values[slot, :, : n + 1].transpose(0, 1), expected[:, 1])


def test_tokens_written_again_replace_those_that_no_longer_count() -> None:
    cache, first, second = SlotCache(**SIZES), tokens(5), tokens(2)
    cache.write(0, 0, 0, first)
    keys, _ = cache.write(0, 0, 2, second)
    assert torch.equal(keys[0].transpose(0, 1), torch.cat([first[:2], second])[:, 0])


def test_a_moved_sequence_is_the_same_in_its_new_slot() -> None:
    cache, sequence = SlotCache(**SIZES), tokens(4)
    for layer in (0, 1):
        cache.write(layer, 2, 0, sequence + layer)
    cache.move(2, 0, 4)
    for layer in (0, 1):
        keys, _ = cache.write(layer, 0, 4, tokens(1))
        assert torch.equal(keys[0, :, :4].transpose(0, 1), sequence[:, 0] + layer)


def test_nothing_that_is_not_finite_is_left_behind_by_clear() -> None:
    cache = SlotCache(**SIZES)
    cache.write(1, 1, 0, tokens(8) * torch.nan)
    cache.clear(1)
    keys, values = cache.write(1, 1, 7, tokens(1))
    assert torch.equal(keys[:, :, :7], torch.zeros(1, 2, 7, 4))
    assert bool(values.isfinite().all())


def test_the_memory_is_that_of_the_formula() -> None:
    assert SlotCache(**SIZES, dtype=torch.bfloat16).nbytes == 2 * 2 * 3 * 8 * 2 * 4 * 2


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SlotCache(**{**SIZES, name: 0})
