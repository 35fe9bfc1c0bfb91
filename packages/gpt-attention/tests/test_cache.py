"""KVCache: what is appended comes back, in place, up to max_length."""

import pytest
import torch

from gpt_attention import KVCache


def test_appended_tokens_come_back_in_order_for_each_layer() -> None:
    cache, whole = KVCache(2), torch.randn(2, 3, 200, 4)
    for part in whole.split([1, 70, 129], dim=2):
        for layer in (0, 1):
            keys, values = cache.append(layer, part + layer, -part)
    assert cache.length == 200
    assert torch.equal(keys, whole + 1)
    assert torch.equal(values, -whole)
    assert torch.equal(cache.get_all()[0][0], whole)  # type: ignore[index]


def test_a_token_more_is_written_in_place() -> None:
    cache, token = KVCache(1), torch.randn(1, 1, 1, 2)
    first, _ = cache.append(0, token, token)
    second, _ = cache.append(0, token, token)
    assert first.data_ptr() == second.data_ptr()


def test_the_cap_is_kept() -> None:
    cache, tokens = KVCache(1, max_length=3), torch.zeros(1, 1, 3, 2)
    keys, _ = cache.append(0, tokens, tokens)
    assert keys.untyped_storage().nbytes() == 3 * 2 * 4
    with pytest.raises(ValueError, match="3 tokens and 1 more exceed its max_length of 3"):
        cache.append(0, tokens[:, :, :1], tokens[:, :, :1])


def test_the_books_interface() -> None:
    cache, pair = KVCache(2), (torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert cache.get(0) is None
    cache.update(0, pair)
    assert cache.get(0)[1].sum() == 4  # type: ignore[index]
    keys, _ = cache.append(0, pair[1], pair[1])
    assert keys[0, 0, :, 0].tolist() == [0, 0, 1, 1]
    cache.reset()
    assert cache.get_all() == [None, None]
    assert cache.length == 0


def test_truncating_forgets_the_last_tokens_of_each_layer_and_changes_nothing_handed_out() -> None:
    cache, tokens = KVCache(2, max_length=8), torch.randn(1, 2, 6, 3)
    whole, _ = cache.append(0, tokens, tokens)
    cache.append(1, tokens[:, :, :4], tokens[:, :, :4])
    cache.truncate(4)
    assert [cache.length_of(layer) for layer in (0, 1)] == [4, 4]
    keys, _ = cache.append(0, -tokens[:, :, :2], tokens[:, :, :2])
    assert torch.equal(keys, torch.cat([tokens[:, :, :4], -tokens[:, :, :2]], dim=2))
    assert torch.equal(whole, tokens)
    cache.truncate(0)
    assert cache.get_all() == [None, None]
    cache.append(0, tokens.new_zeros(5, 1, 1, 7), tokens.new_zeros(5, 1, 1, 7))  # nothing is held that it must fit
    with pytest.raises(ValueError, match="length must be at least 0, got -1"):
        cache.truncate(-1)


@pytest.mark.parametrize("shape", [(1, 3, 1, 4), (2, 1, 1, 4), (2, 3, 1, 1)], ids=["batch", "heads", "width"])
def test_another_batch_head_count_or_width_is_refused_and_nothing_added(shape: tuple[int, ...]) -> None:
    cache, tokens, others = KVCache(1), torch.ones(2, 3, 5, 4), torch.ones(shape)
    cache.append(0, tokens, tokens)
    for keys, values in ((others, tokens), (tokens, others)):
        with pytest.raises(ValueError, match=r"holds \(batch, heads, width\) \(2, 3, 4\), but got \(\d, "):
            cache.append(0, keys, values)
    assert cache.length == 5


def test_the_first_tokens_dtype_stays_when_the_buffers_grow() -> None:
    cache, tokens = KVCache(1), torch.zeros(1, 1, 100, 2)
    for _ in range(2):
        keys, _ = cache.append(0, tokens.double() if cache.length == 0 else tokens, tokens)
    assert keys.dtype == torch.float64


@pytest.mark.parametrize("arguments", [{"n_layers": 0}, {"n_layers": 1, "max_length": 0}])
def test_sizes_below_one_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        KVCache(**arguments)
