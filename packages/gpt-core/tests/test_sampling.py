"""Sampling: what it refuses, and that each filter keeps the tokens that its paper says."""

import math
import pickle
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.sampling import Sampling, check_n_top, next_token, token_logprobs

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


@pytest.mark.parametrize(
    ("bias", "what"),
    [
        *[({5: value}, "logit_bias of id 5 must be a number from -100 to 100, got ") for value in [*NO_NUMBERS, None]],
        ({5: 100.5}, "logit_bias of id 5 must be a number from -100 to 100, got 100.5"),
        ({0: 1, 5: -101}, "logit_bias of id 5 must be a number from -100 to 100, got -101"),
        ({-1: 1}, "logit_bias must map whole numbers of at least 0 .*, got the id -1"),
        ({True: 1}, "logit_bias must map whole numbers of at least 0 .*, got the id True"),
        ({1.0: 1}, "logit_bias must map whole numbers of at least 0 .*, got the id 1.0"),
        ({"50256": -100}, "logit_bias must map whole numbers of at least 0 .*, got the id '50256'"),
        *[(bias, r"logit_bias must map .*, got ") for bias in (None, True, 3, math.nan, "5", [5], ((1, 2, 3),))],
    ],
    ids=lambda given: str(given)[:30],
)
def test_a_bad_logit_bias_is_refused_with_the_id_or_the_value(bias: Any, what: str) -> None:
    with pytest.raises(ValueError, match=f"^{what}"):
        Sampling(logit_bias=bias)


def test_a_sampling_with_a_bias_is_a_value_that_nobody_changes_later() -> None:
    bias = {7: 1, 2: -100}
    sampling = Sampling(logit_bias=bias)
    bias[7] = 50
    assert dict(sampling.logit_bias) == {2: -100.0, 7: 1.0}
    assert sampling == Sampling(logit_bias={2: -100, 7: 1}) != Sampling(logit_bias={2: -100})
    assert len({sampling, Sampling(logit_bias={2: -100, 7: 1}), Sampling()}) == 2
    assert replace(sampling, seed=3).logit_bias == sampling.logit_bias
    assert pickle.loads(pickle.dumps(sampling)) == sampling


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


def test_logit_bias_is_added_before_everything_else() -> None:
    drawn = frequencies(torch.zeros(1, 4), Sampling(logit_bias={1: 1.5, 3: -0.5}, temperature=2.0))
    assert_shares(drawn, (torch.tensor([0.0, 1.5, 0.0, -0.5]) / 2).softmax(dim=-1))
    assert kept(FIVE, Sampling(logit_bias={0: 5}, top_k=2)) == {0, 1}
    # The penalty divides what the bias made positive: 2 / 2, and with e the others' share is 2 in e + 2.
    drawn = frequencies(torch.zeros(1, 3), Sampling(logit_bias={1: 2}, repetition_penalty=2.0), ids=[1])
    assert_shares(drawn, torch.tensor([0.0, 1.0, 0.0]).softmax(dim=-1))


@pytest.mark.parametrize("temperature", [0, 1, 1.7])
def test_a_bias_of_100_forces_a_token_and_one_of_minus_100_bans_it(temperature: float) -> None:
    logits = torch.randn(200, 9, generator=torch.Generator().manual_seed(3)) * 5
    forced = next_token(logits, sampling=Sampling(temperature=temperature, logit_bias={4: 100}))
    assert set(forced.tolist()) == {4}
    banned = next_token(logits, sampling=Sampling(temperature=temperature, logit_bias=dict.fromkeys(range(8), -100)))
    assert set(banned.tolist()) == {8}


def test_an_id_beyond_the_vocabulary_is_refused_with_id_and_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"^logit_bias holds the id 9, .* vocabulary has the ids 0 to 4$"):
        next_token(FIVE, sampling=Sampling(logit_bias={2: 1, 9: 1}))
    for bad in (5, -1, True):
        with pytest.raises(ValueError, match=rf"^forbidden holds the id {bad}, .* has the ids 0 to 4$"):
            next_token(FIVE, sampling=Sampling(), forbidden=[0, bad])


@given(data=st.data(), logits=LOGITS)
@settings(deadline=None)
def test_greedy_takes_the_best_of_the_changed_logits_that_are_not_forbidden(
    data: st.DataObject, logits: torch.Tensor
) -> None:
    V = logits.shape[-1]
    ids = data.draw(st.lists(st.integers(0, V - 1), max_size=20))
    n_prompt = data.draw(st.integers(0, len(ids)))
    forbidden = data.draw(st.lists(st.integers(0, V - 1), max_size=V - 1))
    bias = data.draw(st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100)))
    repetition, presence, frequency = 1.3, 0.7, -0.4
    sampling = Sampling(
        temperature=0, logit_bias=bias, repetition_penalty=repetition, presence_penalty=presence,
        frequency_penalty=frequency,
    )
    expected, counts = {}, Counter(ids[n_prompt:])
    for i in set(range(V)) - set(forbidden):
        value = float(logits[0, i]) + bias.get(i, 0.0)
        if i in ids:
            value = value / repetition if value > 0 else value * repetition
        expected[i] = value - frequency * counts[i] - presence * (counts[i] > 0)
    history = torch.tensor([ids], dtype=torch.int64)
    chosen = int(next_token(logits, sampling=sampling, ids=history, n_prompt=n_prompt, forbidden=forbidden))
    assert expected[chosen] >= max(expected.values()) - 1e-4  # float32 holds 230 to 2e-5


def test_forbidden_tokens_are_never_drawn_and_the_others_keep_their_proportions() -> None:
    tokens = next_token(FIVE.expand(20_000, -1), sampling=Sampling(), forbidden=[1, 3, 3],
                        generator=torch.Generator().manual_seed(2))  # fmt: skip
    expected = torch.tensor([0.05, 0.0, 0.15, 0.0, 0.1]) / 0.3
    assert_shares(torch.bincount(tokens, minlength=5) / 20_000, expected)


@pytest.mark.parametrize("temperature", [0, 1])
def test_forbidding_all_that_could_be_chosen_is_an_error_that_says_so(temperature: float) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, -math.inf, 1.0]])
    with pytest.raises(ValueError, match=r"nothing is left to choose: the 2 forbidden ids are all .* vocabulary of 3"):
        next_token(logits, sampling=Sampling(temperature=temperature), forbidden=[0, 2])


def test_penalties_and_temperatures_at_their_limits_keep_huge_logits_apart() -> None:
    most = torch.finfo(torch.float32).max
    ids = torch.tensor([[0, 1]])
    for factor, logits in [(0.01, [most, 0.0, -most]), (100.0, [-most, -most, -math.inf])]:
        for temperature in (0, 1e-300, 1, 1e300):
            sampling = Sampling(temperature=temperature, repetition_penalty=factor, frequency_penalty=-2)
            token = int(next_token(torch.tensor([logits]), sampling=sampling, ids=ids))
            assert token in ((0, 1) if factor == 100 or temperature == 1e300 else (0,))
    for logits, best in [([2e9, 1e9], 0), ([-2e9, -1e9], 1), ([-most, most], 1), ([-math.inf, -most], 1)]:
        assert int(next_token(torch.tensor([logits]), sampling=Sampling(temperature=1e-30))) == best


def test_the_least_top_p_keeps_the_best_token() -> None:
    for top_p in (5e-324, 1e-46, 1e-38):
        assert kept(FIVE, Sampling(top_p=top_p)) == {1}


@pytest.mark.parametrize("n_vocab", [300, 5_000])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.995])
@pytest.mark.parametrize("scale", [0.0, 1.0, 6.0])  # all tokens equal, a broad nucleus, a narrow one
def test_top_p_keeps_what_a_full_stable_sort_keeps(n_vocab: int, top_p: float, scale: float) -> None:
    logits = (torch.randn(3, n_vocab, generator=torch.Generator().manual_seed(5)) * scale).round()  # with many ties
    ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    kept_by_rank = ordered.cumsum(dim=-1) - ordered < top_p
    mask = torch.zeros_like(kept_by_rank).scatter(1, order, kept_by_rank)
    expected = torch.multinomial(
        logits.masked_fill(~mask, -math.inf).softmax(dim=-1).repeat(200, 1), 1,
        generator=torch.Generator().manual_seed(6),
    )  # fmt: skip
    drawn = next_token(logits.repeat(200, 1), sampling=Sampling(top_p=top_p),
                       generator=torch.Generator().manual_seed(6))  # fmt: skip
    assert torch.equal(drawn, expected[:, 0])


def test_a_row_is_drawn_as_if_its_neighbours_were_not_there() -> None:
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(3, 4_000, generator=generator) * torch.tensor([[0.1], [3.0], [1e12]])
    sampling = Sampling(top_p=0.7, temperature=1e-28)
    alone = next_token(logits[:1], sampling=sampling, generator=torch.Generator().manual_seed(9))
    together = next_token(logits, sampling=sampling, generator=torch.Generator().manual_seed(9))
    assert alone[0] == together[0]


@given(logits=LOGITS, n_top=st.integers(0, 20), temperature=st.sampled_from([0.0, 1.0]))
@settings(deadline=None)
def test_logprobs_are_those_of_a_float64_softmax_with_the_best_first(
    logits: torch.Tensor, n_top: int, temperature: float
) -> None:
    row = logits[0]
    expected = row.double().log_softmax(dim=-1).tolist()
    token = len(row) - 1
    logprob, top = token_logprobs(row, token, n_top)
    assert logprob == pytest.approx(expected[token], abs=1e-5)
    ranked = sorted(range(len(row)), key=lambda i: (-float(row[i]), i))
    assert [i for i, _ in top] == ranked[:n_top]
    assert [value for _, value in top] == pytest.approx([expected[i] for i in ranked[:n_top]], abs=1e-5)
    assert all(math.isfinite(value) for _, value in top)


def test_of_equal_logits_the_smaller_ids_are_the_alternatives_and_the_first_is_the_greedy_one() -> None:
    row = torch.zeros(5_000).index_fill(0, torch.tensor([4_000, 17, 900]), 2.0)
    _, top = token_logprobs(row, 0, 6)
    assert [i for i, _ in top] == [17, 900, 4_000, 0, 1, 2]
    assert int(next_token(row[None], sampling=Sampling.greedy())) == 17


def test_a_token_that_cannot_be_chosen_is_no_alternative() -> None:
    logprob, top = token_logprobs(torch.tensor([0.0, -math.inf, 0.0]), 1, 3)
    assert logprob == -math.inf
    assert top == ((0, pytest.approx(-math.log(2))), (2, pytest.approx(-math.log(2))))
    assert token_logprobs(torch.tensor([-3e38, 3e38]), 0, 2) == (-math.inf, ((1, 0.0),))


def test_logprobs_of_half_precision_logits_are_computed_in_float32() -> None:
    row = torch.randn(50, generator=torch.Generator().manual_seed(4)).bfloat16()
    assert token_logprobs(row, 3, 5) == token_logprobs(row.float(), 3, 5)


@pytest.mark.parametrize("n_top", [-1, 21, True, 1.0, None, "5", math.nan])
def test_a_bad_number_of_alternatives_is_refused_with_its_value(n_top: Any) -> None:
    with pytest.raises(ValueError, match=r"^top_logprobs must be a whole number from 0 to 20, got ") as caught:
        check_n_top(n_top)
    assert str(caught.value).endswith(f"got {n_top!r}")
    with pytest.raises(ValueError, match=r"^top_logprobs must be"):
        token_logprobs(FIVE[0], 0, n_top)


@pytest.mark.parametrize("token", [-1, 5, True, 1.0])
def test_logprobs_of_an_id_beyond_the_vocabulary_are_refused(token: Any) -> None:
    with pytest.raises(ValueError, match=f"^token must be an id of the vocabulary, 0 to 4, got {token}$"):
        token_logprobs(FIVE[0], token, 0)


@pytest.mark.parametrize("bad", [[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logprobs_of_logits_that_are_not_finite_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="logits are not finite"):
        token_logprobs(torch.tensor(bad), 0, 1)


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
