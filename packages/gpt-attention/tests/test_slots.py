"""SlotCache: what is written comes back, whatever lies in the other slots and behind it."""

import pytest
import torch

from gpt_attention import SlotCache

SIZES = {"n_layers": 2, "n_slots": 3, "capacity": 8, "n_heads": 2, "head_dim": 4}


def tokens(n: int) -> torch.Tensor:
    return torch.randn(n, 2, 2, 4)


def put(cache: SlotCache, layer: int, slot: int, start: int, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return cache.open(slot, start, len(new))[layer].write(new)


def test_the_pieces_of_a_sequence_come_back_in_order_and_in_place() -> None:
    cache, whole = SlotCache(**SIZES), tokens(7)
    first, _ = put(cache, 1, 2, 0, whole[:4])
    put(cache, 1, 1, 0, tokens(8))
    put(cache, 0, 2, 0, tokens(8))
    keys, values = put(cache, 1, 2, 4, whole[4:])
    assert keys.shape == values.shape == (1, 2, 7, 4)
    assert torch.equal(keys[0].transpose(0, 1), whole[:, 0])
    assert torch.equal(values[0].transpose(0, 1), whole[:, 1])
    assert first.data_ptr() == keys.data_ptr()


def test_one_token_each_goes_to_its_own_position() -> None:
    cache, lengths = SlotCache(**SIZES), [5, 0, 3]
    held = [tokens(n) for n in lengths]
    for slot, sequence in enumerate(held):
        put(cache, 0, slot, 0, sequence)
    new = tokens(3)
    keys, values = cache.open_each(torch.tensor(lengths), 6)[0].write(new)
    assert keys.shape == (3, 2, 6, 4)
    for slot, n in enumerate(lengths):
        expected = torch.cat([held[slot], new[slot : slot + 1]])
        assert torch.equal(keys[slot, :, : n + 1].transpose(0, 1), expected[:, 0])
        assert torch.equal(values[slot, :, : n + 1].transpose(0, 1), expected[:, 1])


def test_tokens_written_again_replace_those_that_no_longer_count() -> None:
    cache, first, second = SlotCache(**SIZES), tokens(5), tokens(2)
    put(cache, 0, 0, 0, first)
    keys, _ = put(cache, 0, 0, 2, second)
    assert torch.equal(keys[0].transpose(0, 1), torch.cat([first[:2], second])[:, 0])


def test_a_moved_sequence_is_the_same_in_its_new_slot() -> None:
    cache, sequence = SlotCache(**SIZES), tokens(4)
    for layer in (0, 1):
        put(cache, layer, 2, 0, sequence + layer)
    cache.move(2, 0, 4)
    for layer in (0, 1):
        keys, _ = put(cache, layer, 0, 4, tokens(1))
        assert torch.equal(keys[0, :, :4].transpose(0, 1), sequence[:, 0] + layer)


def test_nothing_that_is_not_finite_is_left_behind_by_clear() -> None:
    cache = SlotCache(**SIZES)
    put(cache, 1, 1, 0, tokens(8) * torch.nan)
    cache.clear(1)
    keys, values = put(cache, 1, 1, 7, tokens(1))
    assert torch.equal(keys[:, :, :7], torch.zeros(1, 2, 7, 4))
    assert bool(values.isfinite().all())


def test_the_memory_is_that_of_the_formula() -> None:
    assert SlotCache(**SIZES, dtype=torch.bfloat16).nbytes == 2 * 2 * 3 * 8 * 2 * 4 * 2


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SlotCache(**{**SIZES, name: 0})


def test_a_token_beyond_the_capacity_is_refused() -> None:
    cache = SlotCache(**SIZES)
    with pytest.raises(ValueError, match="9 tokens exceed the cache's capacity of 8"):
        put(cache, 0, 0, 8, tokens(1))
    with pytest.raises(ValueError, match="10 tokens exceed the cache's capacity of 8"):
        put(cache, 0, 0, 7, tokens(3))


def test_positions_that_nothing_was_written_to_are_zero_in_every_slot() -> None:
    cache = SlotCache(**{**SIZES, "capacity": 300})
    put(cache, 1, 2, 0, tokens(1))
    put(cache, 0, 0, 0, tokens(150))
    for layer in (0, 1):
        keys, values = put(cache, layer, 1, 199, tokens(1))
        assert torch.equal(keys[:, :, :199], torch.zeros(1, 2, 199, 4))
        assert torch.equal(values[:, :, :199], torch.zeros(1, 2, 199, 4))
