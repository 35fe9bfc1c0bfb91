"""Generation: every function against a plain loop over the whole sequence, with and without a cache."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gpt_core.config import GPTConfig
from gpt_core.generate import (
    generate,
    generate_text_simple,
    generate_text_simple_stream,
    generate_tokens,
    trim_input_tensor,
)
from gpt_core.model import GPTModel, GPTModelFast
from gpt_core.sampling import Sampling
from gpt_core.sequence import GeneratedToken

V, CONTEXT = 40, 12
CONFIG = GPTConfig(vocab_size=V, context_length=CONTEXT, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.5)


def make_model(kind: Callable[..., GPTModel] = GPTModel, *, seed: int = 0) -> GPTModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(CONFIG).eval()


MODEL = make_model()


def plain_loop(
    model: nn.Module, idx: Tensor, n: int, window: int, choose: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The whole sequence through the model for each token: what every function here must agree with."""
    for _ in range(n):
        with torch.no_grad():
            logits = model(idx[:, -window:])[:, -1]
        chosen = logits.argmax(dim=-1, keepdim=True) if choose is None else choose(logits)
        idx = torch.cat([idx, chosen], dim=1)
    return idx


def choose_as_the_book(temperature: float, top_k: int | None) -> Callable[[Tensor], Tensor]:
    """Chapter 5's order for one row: top-k with ties, divide, softmax, multinomial (global generator)."""

    def choose(logits: Tensor) -> Tensor:
        if top_k is not None:
            kth = torch.sort(logits[0], descending=True).values[top_k - 1]
            logits = torch.where(logits < kth, torch.tensor(-math.inf), logits)
        return torch.multinomial(torch.softmax(logits / temperature, dim=-1), num_samples=1)

    return choose


def ids_of(tokens: list[GeneratedToken]) -> list[int]:
    return [token.id for token in tokens]


PROMPTS = st.lists(st.integers(0, V - 1), min_size=1, max_size=CONTEXT + 4)


@pytest.mark.parametrize("kind", [GPTModel, GPTModelFast])
@pytest.mark.parametrize("use_cache", [True, False])
@given(prompt=PROMPTS, n=st.integers(1, 2 * CONTEXT))
def test_greedy_tokens_equal_the_plain_loop_within_and_beyond_the_context(
    kind: Callable[..., GPTModel], use_cache: bool, prompt: list[int], n: int
) -> None:
    model = make_model(kind)
    tokens = list(generate_tokens(model, prompt, max_new_tokens=n, use_cache=use_cache))
    assert prompt + ids_of(tokens) == plain_loop(model, torch.tensor([prompt]), n, CONTEXT)[0].tolist()


@given(
    prompt=PROMPTS, seed=st.integers(0, 2**63 - 1), top_k=st.integers(1, 50), temperature=st.floats(0.3, 3)
)
def test_a_seed_gives_the_same_tokens_with_and_without_cache(
    prompt: list[int], seed: int, top_k: int, temperature: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=0.9, repetition_penalty=1.2, seed=seed)
    runs = [
        list(generate_tokens(MODEL, prompt, max_new_tokens=CONTEXT, sampling=sampling, use_cache=use_cache))
        for use_cache in (True, False)
    ]
    assert ids_of(runs[0]) == ids_of(runs[1])
    for cached, uncached in zip(*runs, strict=True):
        assert cached.logprob == pytest.approx(uncached.logprob, abs=1e-4)


def test_a_seed_leaves_the_global_generator_alone_and_no_seed_draws_from_it() -> None:
    state = torch.get_rng_state()
    list(generate_tokens(MODEL, [1], max_new_tokens=5, sampling=Sampling(seed=3)))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        first = list(generate_tokens(MODEL, [1], max_new_tokens=30, sampling=Sampling()))
        second = list(generate_tokens(MODEL, [1], max_new_tokens=30, sampling=Sampling()))
        torch.manual_seed(123)
        again = list(generate_tokens(MODEL, [1], max_new_tokens=30, sampling=Sampling()))
    assert first == again != second


def test_logprob_is_that_of_the_models_own_distribution() -> None:
    prompt = [3, 1, 4]
    sampling = Sampling(temperature=0.2, top_k=3, presence_penalty=1.0, seed=0)
    tokens = list(generate_tokens(MODEL, prompt, max_new_tokens=5, sampling=sampling))
    with torch.no_grad():
        logits = MODEL(torch.tensor([prompt + ids_of(tokens)]))[0]
    expected = torch.log_softmax(logits, dim=-1)
    for position, token in enumerate(tokens, start=len(prompt) - 1):
        assert token.logprob == pytest.approx(float(expected[position, token.id]), abs=1e-5)


def test_the_last_token_of_a_full_answer_says_length_and_no_other_says_anything() -> None:
    tokens = list(generate_tokens(MODEL, [1, 2], max_new_tokens=6))
    assert [token.finish for token in tokens] == [None] * 5 + ["length"]


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_stop_token_is_yielded_with_stop_and_ends_the_answer(at: int) -> None:
    sampling = Sampling(seed=2)
    free = ids_of(list(generate_tokens(MODEL, [1, 2], max_new_tokens=6, sampling=sampling)))
    stop = free[at]
    first = free.index(stop)
    tokens = list(generate_tokens(MODEL, [1, 2], max_new_tokens=6, sampling=sampling, stop_ids=[stop, V - 1]))
    assert ids_of(tokens) == free[: first + 1]
    assert [token.finish for token in tokens] == [None] * first + ["stop"]


class Counting(GPTModel):
    """A model that counts the tokens it reads; with its own ``forward``, so generation must go through it."""

    n_read = 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.n_read += args[0].numel()
        return super().forward(*args, **kwargs)


def test_the_cache_reads_each_token_once_and_nothing_ahead_of_demand() -> None:
    model = make_model(Counting)
    assert isinstance(model, Counting)
    tokens = generate_tokens(model, [1, 2, 3], max_new_tokens=8)
    assert model.n_read == 0
    for n in range(8):
        next(tokens)
        assert model.n_read == 3 + n
    with pytest.raises(StopIteration):
        next(tokens)
    assert model.n_read == 3 + 7


def test_a_hook_on_the_model_sees_every_step() -> None:
    model, calls = make_model(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    list(generate_tokens(model, [1], max_new_tokens=4))
    assert len(calls) == 4


def test_interleaved_generations_do_not_disturb_each_other() -> None:
    model = make_model()
    first, second = (generate_tokens(model, [i], max_new_tokens=9) for i in (1, 2))
    mixed = list(zip(first, second, strict=True))
    for i, column in zip((1, 2), zip(*mixed, strict=True), strict=True):
        assert list(column) == list(generate_tokens(model, [i], max_new_tokens=9))


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_dropout_is_off_while_generating_and_each_modules_mode_is_kept() -> None:
    model = make_model().train()
    model.trf_blocks[0].eval()
    before = modes(model)
    assert True in before
    assert False in before
    tokens = generate_tokens(model, [1, 2], max_new_tokens=8)
    next(tokens)
    assert modes(model) == before  # in between, too: a suspended generation does not disturb training
    tokens.close()  # type: ignore[attr-defined]
    assert modes(model) == before
    after = list(generate_tokens(model, [1, 2], max_new_tokens=8))
    assert modes(model) == before
    assert after == list(generate_tokens(model.eval(), [1, 2], max_new_tokens=8))


def test_modes_are_kept_when_the_model_raises() -> None:
    model = make_model().train()
    with torch.no_grad():
        model.out_head.weight.fill_(math.nan)  # type: ignore[operator]
    with pytest.raises(ValueError, match="logits are not finite"):
        list(generate_tokens(model, [1], max_new_tokens=2))
    assert all(modes(model))


def test_generated_ids_can_take_part_in_training() -> None:
    model = make_model()
    ids = generate(model, torch.tensor([[1, 2]]), 4, CONTEXT)
    model(ids).sum().backward()
    assert model.tok_emb.weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_ids": []}, "prompt_ids is empty"),
        ({"prompt_ids": [V]}, rf"prompt_ids holds the id {V}, but the model's ids run from 0 to {V - 1}"),
        ({"prompt_ids": [-1]}, "prompt_ids holds the id -1"),
        ({"prompt_ids": [1.0]}, "prompt_ids must hold whole numbers, got 1.0"),
        ({"prompt_ids": [True]}, "prompt_ids must hold whole numbers, got True"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": -1}, "max_new_tokens must be"),
        ({"max_new_tokens": 2.0}, "max_new_tokens must be"),
        ({"max_new_tokens": True}, "max_new_tokens must be"),
        ({"stop_ids": [V]}, f"stop_ids holds the id {V}"),
        ({"stop_ids": ["x"]}, "stop_ids must hold whole numbers, got 'x'"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_tokens(MODEL, **{"prompt_ids": [1], "max_new_tokens": 3, **arguments})


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("top_k", [None, 1, 5, V])
def test_generate_equals_the_books_order_of_draws_under_a_global_seed(
    temperature: float, top_k: int | None
) -> None:
    prompt = torch.tensor([[5, 6, 7]])
    for seed in range(5):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = plain_loop(MODEL, prompt, 15, CONTEXT, choose_as_the_book(temperature, top_k))
            torch.manual_seed(seed)
            ids = generate(MODEL, prompt, 15, CONTEXT, temperature=temperature, top_k=top_k)
        assert torch.equal(ids, expected)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_generate_is_greedy_at_temperature_0_and_below(temperature: float) -> None:
    prompt = torch.tensor([[5, 6], [7, 8]])
    ids = generate(MODEL, prompt, 20, 6, temperature=temperature, top_k=3)
    assert torch.equal(ids, plain_loop(MODEL, prompt, 20, 6))
    assert ids.dtype == torch.int64


def test_generate_stops_before_the_end_token() -> None:
    prompt = torch.tensor([[5, 6]])
    free = generate(MODEL, prompt, 10, CONTEXT)[0].tolist()
    for n in range(2, 12):
        first = free.index(free[n], 2)
        assert generate(MODEL, prompt, 10, CONTEXT, eos_id=free[n])[0].tolist() == free[:first]


@given(eos=st.integers(0, V - 1), n=st.integers(0, 15))
def test_generate_of_a_batch_is_each_row_alone_filled_up_with_the_end_token(eos: int, n: int) -> None:
    prompts = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    ids = generate(MODEL, prompts, n, CONTEXT, eos_id=eos)
    rows = [generate(MODEL, prompts[i : i + 1], n, CONTEXT, eos_id=eos)[0].tolist() for i in range(4)]
    longest = max(map(len, rows))
    assert ids.tolist() == [row + [eos] * (longest - len(row)) for row in rows]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"idx": torch.zeros(1, 0, dtype=torch.int64)}, r"at least one token, got \(1, 0\)"),
        ({"idx": torch.tensor([1, 2])}, r"must have shape \(batch, tokens\)"),
        ({"idx": torch.tensor([[1.0]])}, r"whole numbers, got a tensor of torch\.float32"),
        ({"idx": torch.tensor([[True]])}, r"whole numbers, got a tensor of torch\.bool"),
        ({"idx": torch.tensor([[V]])}, f"holds the id {V}"),
        ({"idx": torch.tensor([[-1]])}, "holds the id -1"),
        ({"max_new_tokens": -1}, "max_new_tokens must be a whole number of at least 0"),
        ({"context_size": 0}, "context_size must be a whole number of at least 1, got 0"),
        ({"top_k": 0}, "top_k must be"),
        ({"temperature": math.nan}, "temperature must be"),
    ],
)
def test_generate_refuses_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    call = {"idx": torch.tensor([[1]]), "max_new_tokens": 3, "context_size": CONTEXT, **arguments}
    with pytest.raises(ValueError, match=message):
        generate(MODEL, **call)


def test_generate_survives_the_tiniest_temperature_and_a_context_size_above_the_models() -> None:
    prompt = torch.tensor([[1, 2]], dtype=torch.int32)
    ids = generate(MODEL, prompt, 2 * CONTEXT, 10 * CONTEXT, temperature=1e-45, top_k=10 * V)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, plain_loop(MODEL, prompt.long(), 2 * CONTEXT, CONTEXT))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("context_size", [None, 1, 5, CONTEXT])
def test_generate_text_simple_equals_the_plain_loop(use_cache: bool, context_size: int | None) -> None:
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    ids = generate_text_simple(MODEL, prompts, 2 * CONTEXT, context_size, use_cache)
    assert torch.equal(ids, plain_loop(MODEL, prompts, 2 * CONTEXT, context_size or CONTEXT))


def test_generate_text_simple_of_no_new_tokens_is_the_prompt() -> None:
    prompt = torch.tensor([[1, 2]])
    assert torch.equal(generate_text_simple(MODEL, prompt, 0), prompt)


def test_generate_text_simple_works_for_any_module_that_maps_ids_to_logits() -> None:
    class Successor(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.one_hot((ids + 1) % 10, 10).float()

    ids = generate_text_simple(Successor(), torch.tensor([[7], [2]]), 4, 3)
    assert ids.tolist() == [[7, 8, 9, 0, 1], [2, 3, 4, 5, 6]]


def test_the_stream_yields_the_columns_of_generate_text_simple_up_to_the_end_token() -> None:
    prompts = torch.tensor([[1, 2], [1, 2]])
    columns = list(generate_text_simple_stream(MODEL, prompts, 8))
    assert torch.equal(torch.cat([prompts, *columns], dim=1), generate_text_simple(MODEL, prompts, 8))
    end = int(columns[4][0])
    first = [int(column[0]) for column in columns].index(end)
    assert len(list(generate_text_simple_stream(MODEL, prompts, 8, eos_token_id=end))) == first


@pytest.mark.parametrize(("context", "new", "kept"), [(10, 4, 6), (10, 9, 1), (100, 1, 8)])
def test_trim_input_tensor_keeps_the_last_tokens(context: int, new: int, kept: int) -> None:
    ids = torch.arange(16).view(2, 8)
    assert torch.equal(trim_input_tensor(ids, context, new), ids[:, 8 - kept :])


def test_trim_input_tensor_refuses_to_leave_no_room_for_the_prompt() -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be below the context length of 8, got 8"):
        trim_input_tensor(torch.zeros(1, 3, dtype=torch.int64), 8, 8)
