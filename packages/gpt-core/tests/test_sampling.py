"""Sampling: what it refuses, and that each filter keeps the tokens that its paper says."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.sampling import Sampling, next_token

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=20).map(lambda row: torch.tensor([row]))

# Refused whatever the field: none of these is a finite number.
NO_NUMBERS = [math.nan, math.inf, -math.inf, True, "1", [], 1j]
BAD = {
    "temperature": [*NO_NUMBERS, None, -0.1, -1, 10**400],
    "top_k": [*NO_NUMBERS, 0, -1, 1.0, 2.5],
    "top_p": [*NO_NUMBERS, None, 0, 0.0, -0.1, 1.0001, 10**400],
    "min_p": [*NO_NUMBERS, None, -0.1, 1.0001, 10**400],
    "repetition_penalty": [*NO_NUMBERS, None, 0, -1, 1e-3, 10**400],
    "presence_penalty": [*NO_NUMBERS, None, -2.1, 2.1, 10**400],
    "frequency_penalty": [*NO_NUMBERS, None, -2.1, 2.1, 10**400],
    "seed": [*NO_NUMBERS, -1, 2**63, 1.0],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in BAD for value in BAD[name]],
    ids=lambda given: str(given)[:20],  # one has 401 digits
)
def test_a_bad_value_is_refused_with_field_value_and_rule(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*(number|None).*, got ") as caught:
        Sampling(**{name: value})
    assert str(caught.value).endswith(f"got {value!r}")


def test_the_limits_themselves_are_accepted() -> None:
    Sampling(temperature=0, top_k=1, top_p=1, min_p=0, repetition_penalty=0.01, presence_penalty=-2, seed=0)
    Sampling(temperature=1e308, top_k=10**18, top_p=1e-300, min_p=1, repetition_penalty=100, seed=2**63 - 1)


def frequencies(
    logits: torch.Tensor, sampling: Sampling, *, ids: list[int] | None = None, n_prompt: int = 0
) -> torch.Tensor:
    """Return how often each token is drawn (V,), as a share of 20,000 independent rows."""
    history = None if ids is None else torch.tensor([ids]).expand(20_000, -1)
    chosen = next_token(
        logits.expand(20_000, -1),
        sampling=sampling,
        ids=history,
        n_prompt=n_prompt,
        generator=torch.Generator().manual_seed(1),
    )
    return torch.bincount(chosen, minlength=logits.shape[-1]) / 20_000


def assert_shares(drawn: torch.Tensor, expected: torch.Tensor) -> None:
    # A share of 20,000 draws has a standard deviation of at most 0.0036; this is five of them.
    torch.testing.assert_close(drawn, expected, atol=0.018, rtol=0)


def kept(logits: torch.Tensor, sampling: Sampling) -> set[int]:
    """Return the tokens that some draw gives; the logits must leave each kept token a fair share."""
    return set(frequencies(logits, sampling).nonzero().flatten().tolist())


PROBABILITIES = torch.tensor([[0.05, 0.4, 0.15, 0.3, 0.1]])
FIVE = PROBABILITIES.log()


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [
        (Sampling(), {0, 1, 2, 3, 4}),
        (Sampling(top_k=2), {1, 3}),
        (Sampling(top_k=99), {0, 1, 2, 3, 4}),
        (Sampling(top_p=0.39), {1}),
        (Sampling(top_p=0.41), {1, 3}),
        (Sampling(top_p=0.75), {1, 3, 2}),
        (Sampling(min_p=0.37), {1, 3, 2}),
        (Sampling(min_p=1.0), {1}),
        (Sampling(top_k=3, top_p=0.5), {1, 3}),  # of 0.85 kept by top_k, 0.4 is 0.47: the second is needed
        (Sampling(top_k=3, min_p=0.5), {1, 3}),
        (Sampling(temperature=0), {1}),
        (Sampling.greedy(), {1}),
    ],
)
def test_filters_keep_exactly_these_of_five_tokens(sampling: Sampling, tokens: set[int]) -> None:
    assert kept(FIVE, sampling) == tokens


def test_ties_with_the_kth_survive_top_k() -> None:
    assert kept(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), Sampling(top_k=2)) == {0, 1, 2}


def test_top_k_has_its_own_limit_in_each_row() -> None:
    logits = torch.tensor([[9.0, 8.0, 0.0], [0.0, 1.0, 2.0]])
    for _ in range(50):
        first, second = next_token(logits, sampling=Sampling(top_k=2, temperature=5.0)).tolist()
        assert first in (0, 1)
        assert second in (1, 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_of_logits_over_temperature(temperature: float) -> None:
    expected = (FIVE / temperature).softmax(dim=-1)[0]
    assert_shares(frequencies(FIVE, Sampling(temperature=temperature)), expected)


@given(logits=LOGITS, temperature=st.sampled_from([1e-45, 1e-300, 5e-324, 1e-6]))
@settings(deadline=None)
def test_the_tiniest_temperatures_draw_a_most_probable_one(logits: torch.Tensor, temperature: float) -> None:
    token = int(next_token(logits, sampling=Sampling(temperature=temperature)))
    assert float(logits[0, token]) >= float(logits.max()) - 1e-4


@given(logits=LOGITS, top_k=st.integers(1, 30))
@settings(deadline=None)
def test_the_greatest_temperature_draws_a_kept_token_without_nan(logits: torch.Tensor, top_k: int) -> None:
    token = int(next_token(logits, sampling=Sampling(temperature=1e308, top_k=top_k)))
    assert int((logits[0] > logits[0, token]).sum()) < top_k


@given(
    logits=LOGITS, top_p=st.floats(0.01, 1), min_p=st.floats(0, 1), top_k=st.integers(1, 25),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_a_drawn_token_passes_every_filter(
    logits: torch.Tensor, top_p: float, min_p: float, top_k: int, seed: int
) -> None:
    sampling = Sampling(top_p=top_p, min_p=min_p, top_k=top_k)
    token = int(next_token(logits, sampling=sampling, generator=torch.Generator().manual_seed(seed)))
    row = logits[0].double()
    better = row > row[token]
    assert int(better.sum()) < top_k
    in_top_k = row >= row.sort(descending=True).values[min(top_k, len(row)) - 1]
    probabilities = row.masked_fill(~in_top_k, -math.inf).softmax(dim=-1)
    assert float(probabilities[better].sum()) < top_p + 1e-5  # float32 sums of 20 shares are good to 1e-6
    assert float(probabilities[token]) >= min_p * float(probabilities.max()) * (1 - 1e-5)


def test_top_k_of_1_and_a_tiny_top_p_are_greedy() -> None:
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(min_p=1.0)):
        assert torch.equal(next_token(logits, sampling=sampling), logits.argmax(dim=-1))


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_all_tokens_so_far() -> None:
    logits = torch.tensor([[2.0, 3.0, -1.0, -2.5]])
    penalised = torch.tensor([2.0, 3.0 / 1.6, -1.0, -2.5 * 1.6])  # CTRL, section 4.1: 1 and 3 were seen
    drawn = frequencies(logits, Sampling(repetition_penalty=1.6), ids=[1, 3, 3], n_prompt=2)
    assert_shares(drawn, penalised.softmax(dim=-1))


def test_presence_and_frequency_count_the_answer_only() -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.3)
    drawn = frequencies(torch.zeros(1, 4), sampling, ids=[0, 0, 1, 2, 2], n_prompt=2)  # the answer is 1 2 2
    assert_shares(drawn, torch.tensor([0.0, -0.5 - 0.3, -0.5 - 2 * 0.3, 0.0]).softmax(dim=-1))


def test_penalties_reach_the_greedy_choice() -> None:
    logits, ids = torch.tensor([[1.0, 1.1]]), torch.tensor([[0, 1]])
    sampling = Sampling(temperature=0, presence_penalty=1)
    assert next_token(logits, sampling=sampling, ids=ids, n_prompt=1).tolist() == [0]
    assert next_token(logits, sampling=sampling, ids=ids, n_prompt=2).tolist() == [1]


def test_a_generator_decides_the_draw_and_the_global_one_is_left_alone() -> None:
    state = torch.get_rng_state()
    draws = [
        next_token(FIVE.expand(30, -1), sampling=Sampling(), generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="logits are not finite"):
        next_token(torch.tensor([[0.0, 1.0], [bad, 1.0]]), sampling=Sampling.greedy())


def test_a_row_of_minus_infinity_is_refused_but_single_ones_are_legal() -> None:
    with pytest.raises(ValueError, match="logits are not finite"):
        next_token(torch.full((1, 3), -math.inf), sampling=Sampling())
    assert int(next_token(torch.tensor([[-math.inf, 0.0]]), sampling=Sampling(temperature=1e300))) == 1


def test_half_precision_logits_are_drawn_in_float32() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(4)).bfloat16()
    draws = [
        next_token(row, sampling=Sampling(), generator=torch.Generator().manual_seed(5)).item()
        for row in (logits, logits.float())
    ]
    assert draws[0] == draws[1]
