"""The engine: every answer against a plain loop over the model's modules, whatever runs beside it."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gpt_core.config import GPTConfig
from gpt_core.engine import Engine
from gpt_core.generate import generate_batch, generate_tokens
from gpt_core.model import GPTModel, initialize_gpt2
from gpt_core.sampling import Sampling, next_token
from gpt_core.sequence import GeneratedToken
from gpt_core.speculate import DraftModel, PromptLookup

V, CONTEXT = 40, 12
GPT2 = {"vocab_size": V, "context_length": CONTEXT, "emb_dim": 16, "n_heads": 4, "n_layers": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {"qkv_bias": True, "tie_weights": True},
    "grouped": {"n_kv_heads": 2},
    "window": {"sliding_window": 5},
    "rotary": {"positions": "rotary", "norm": "rmsnorm", "n_kv_heads": 1, "sliding_window": 7},
}


def make_model(**changes: Any) -> GPTModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPTModel(GPTConfig(**{**GPT2, **changes})).eval()


MODELS = {name: make_model(**changes) for name, changes in VARIANTS.items()}
MODEL = MODELS["gpt2"]


def plain_loop(
    model: nn.Module, prompt: list[int], n: int, sampling: Sampling = Sampling.greedy(), stop_ids: tuple[int, ...] = ()  # noqa: B008
) -> list[int]:
    """The whole window through the modules for each token: no cache, no batch, no engine."""
    ids = list(prompt)
    generator = None if sampling.seed is None else torch.Generator().manual_seed(sampling.seed)
    for _ in range(n):
        with torch.no_grad():
            logits = model(torch.tensor([ids[-CONTEXT:]]))[:, -1]
        chosen = next_token(
            logits, sampling=sampling, ids=torch.tensor([ids]), n_prompt=len(prompt), generator=generator
        )
        ids.append(int(chosen))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


def ids_of(tokens: list[GeneratedToken]) -> list[int]:
    return [token.id for token in tokens]


PROMPT = st.lists(st.integers(0, V - 1), min_size=1, max_size=CONTEXT + 4)
SAMPLING = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.sampled_from([None, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 2**63 - 1),
)


@pytest.mark.parametrize("name", VARIANTS)
@given(
    prompts=st.lists(PROMPT, min_size=1, max_size=6), data=st.data(), n=st.integers(1, 2 * CONTEXT),
    piece=st.integers(1, 8), max_batch=st.integers(1, 4), use_cache=st.booleans(), drafts=st.booleans(),
)
@settings(max_examples=20, deadline=None)  # benchmarks/invariance.py runs 10,000
def test_each_answer_is_the_plain_loops_whatever_the_neighbours_the_pieces_and_the_cache(
    name: str, prompts: list[list[int]], data: st.DataObject, n: int, piece: int, max_batch: int, use_cache: bool,
    drafts: bool,
) -> None:
    drafter = PromptLookup(n_draft=3, ngram=2) if drafts else None
    engine = Engine(MODELS[name], max_batch=max_batch, use_cache=use_cache, drafter=drafter)
    engine._piece = piece
    wanted, answers = {}, {}
    waiting = [(prompt, data.draw(SAMPLING), data.draw(st.integers(1, n))) for prompt in prompts]
    while waiting or not engine.is_idle:
        if waiting and (engine.is_idle or data.draw(st.booleans())):  # sequences join a running batch
            prompt, sampling, length = waiting.pop()
            key = engine.add(prompt, max_new_tokens=length, sampling=sampling)
            wanted[key], answers[key] = plain_loop(MODELS[name], prompt, length, sampling), []
        for key, token in engine.step():
            answers[key].append(token.id)
    assert answers == wanted


def test_a_cancelled_sequence_leaves_and_the_others_go_on() -> None:
    engine = Engine(MODEL, max_batch=3)
    prompts = [[1, 2, 3], [4], [5, 6], [7, 8, 9]]
    keys = [engine.add(prompt, max_new_tokens=8) for prompt in prompts]
    answers: dict[int, list[int]] = {key: [] for key in keys}
    for n in range(20):
        if n == 2:
            engine.cancel(keys[0])
        if n == 3:
            engine.cancel(keys[3])
            engine.cancel(999)
        for key, token in engine.step():
            answers[key].append(token.id)
    assert engine.is_idle
    expected = [plain_loop(MODEL, prompt, 8) for prompt in prompts]
    assert answers[keys[0]] == expected[0][:2]
    assert answers[keys[1]] == expected[1]
    assert answers[keys[2]] == expected[2]


def test_a_waiting_sequence_starts_when_another_ends() -> None:
    engine = Engine(MODEL, max_batch=1)
    first, second = (engine.add([i], max_new_tokens=2) for i in (1, 2))
    assert [[key for key, _ in engine.step()] for _ in range(4)] == [[first], [first], [second], [second]]
    assert engine.step() == []


@given(prompts=st.lists(PROMPT, max_size=5), seeds=st.lists(st.integers(0, 99), min_size=5, max_size=5))
@settings(max_examples=20, deadline=None)
def test_generate_batch_gives_each_prompt_its_own_answer(prompts: list[list[int]], seeds: list[int]) -> None:
    samplings = [Sampling(seed=seed) for seed in seeds[: len(prompts)]]
    answers = generate_batch(MODEL, prompts, max_new_tokens=5, sampling=samplings, max_batch=3)
    for prompt, sampling, answer in zip(prompts, samplings, answers, strict=True):
        alone = list(generate_tokens(MODEL, prompt, max_new_tokens=5, sampling=sampling))
        assert ids_of(answer) == ids_of(alone)
        assert [token.finish for token in answer] == [token.finish for token in alone]
        assert [t.logprob for t in answer] == pytest.approx([t.logprob for t in alone], abs=1e-5)


def test_only_the_wanted_logits_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    engine = Engine(model)
    rows: list[int] = []
    head = engine._backend._model._head  # type: ignore[union-attr]
    monkeypatch.setattr(engine._backend._model, "_head", lambda x: (rows.append(len(x)), head(x))[1])  # type: ignore[union-attr]
    engine._piece = 4
    for n in (3, 9, 2):
        engine.add(list(range(n)), max_new_tokens=2)
    while not engine.is_idle:
        engine.step()
    assert sum(rows) == 6  # two for each of three answers, none for the prompts' other tokens


@pytest.mark.parametrize("use_cache", [True, False])
def test_past_the_context_stop_ends_the_answer_where_it_is_full(use_cache: bool) -> None:
    tokens = list(generate_tokens(MODEL, [1, 2, 3], max_new_tokens=99, past_context="stop", use_cache=use_cache))
    assert ids_of(tokens) == plain_loop(MODEL, [1, 2, 3], CONTEXT - 3)
    assert [token.finish for token in tokens] == [None] * (CONTEXT - 4) + ["length"]
    with pytest.raises(ValueError, match=f"the prompt has {CONTEXT} tokens, but the context is {CONTEXT}"):
        generate_tokens(MODEL, [1] * CONTEXT, max_new_tokens=1, past_context="stop", use_cache=use_cache)


@pytest.mark.parametrize("use_cache", [True, False])
def test_past_the_context_error_refuses_what_does_not_fit(use_cache: bool) -> None:
    settings: dict[str, Any] = {"past_context": "error", "use_cache": use_cache}
    tokens = list(generate_tokens(MODEL, [1, 2], max_new_tokens=CONTEXT - 2, **settings))
    assert ids_of(tokens) == plain_loop(MODEL, [1, 2], CONTEXT - 2)
    with pytest.raises(ValueError, match=rf"2 tokens and max_new_tokens={CONTEXT - 1} exceed the context of {CONTEXT}"):
        generate_tokens(MODEL, [1, 2], max_new_tokens=CONTEXT - 1, **settings)


@pytest.mark.parametrize("n", range(7))
def test_stop_ids_cannot_be_chosen_before_the_least_length(n: int) -> None:
    stops = list(range(0, V, 2))
    ids = [1, 2]
    for step in range(6):
        with torch.no_grad():
            logits = MODEL(torch.tensor([ids]))[0, -1]
        if step < n:
            logits[stops] = -math.inf
        ids.append(int(logits.argmax()))
        if ids[-1] in stops:
            break
    tokens = list(generate_tokens(MODEL, [1, 2], max_new_tokens=6, min_new_tokens=n, stop_ids=stops))
    assert ids_of(tokens) == ids[2:]
    assert tokens[-1].finish == ("stop" if ids[-1] in stops else "length")


def test_top_logprobs_are_the_best_of_the_models_own_distribution() -> None:
    prompt, sampling = [3, 1, 4], Sampling(temperature=1.5, logit_bias={5: 50.0}, seed=1)
    tokens = list(generate_tokens(MODEL, prompt, max_new_tokens=4, sampling=sampling, top_logprobs=3))
    with torch.no_grad():
        logprobs = MODEL(torch.tensor([prompt + ids_of(tokens)]))[0].log_softmax(dim=-1)
    for place, token in enumerate(tokens, start=len(prompt) - 1):
        best = logprobs[place].topk(3)
        assert [i for i, _ in token.top_logprobs] == best.indices.tolist()
        assert [value for _, value in token.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert token.logprob == pytest.approx(float(logprobs[place, token.id]), abs=1e-4)


def test_weights_changed_between_two_tokens_are_used_for_the_next() -> None:
    model = make_model()
    tokens = generate_tokens(model, [1], max_new_tokens=3)
    next(tokens)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.out_head.weight[:, 0] = torch.arange(V)  # type: ignore[index]
        model.final_norm.shift[0] = 1.0  # type: ignore[index, operator]
    assert next(tokens).id == V - 1


def test_damaged_weights_are_an_error_and_the_sequence_goes_on_when_they_are_mended() -> None:
    model = make_model()
    expected = plain_loop(model, [1, 2], 6)
    engine = Engine(model)
    engine.add([1, 2], max_new_tokens=6)
    engine.add([3], max_new_tokens=6)
    answer = [token.id for key, token in engine.step() if key == 0]
    bias = model.trf_blocks[0].ff.layers[2].bias  # type: ignore[union-attr, index]
    with torch.no_grad():
        bias[0] = math.nan  # type: ignore[index]
    with pytest.raises(ValueError, match="logits are not finite"):
        engine.step()
    with torch.no_grad():
        bias[0] = make_model().trf_blocks[0].ff.layers[2].bias[0]  # type: ignore[union-attr, index, operator]
    while not engine.is_idle:
        answer += [token.id for key, token in engine.step() if key == 0]
    assert answer == expected


def test_a_draft_model_changes_no_answer() -> None:
    small = make_model(n_layers=1)
    for draft in (small, MODEL):
        drafter = DraftModel(draft, n_draft=3)
        for sampling in (Sampling.greedy(), Sampling(seed=4)):
            for prompt in ([1, 2, 3], [7] * 9):
                tokens = list(generate_tokens(MODEL, prompt, max_new_tokens=20, sampling=sampling, drafter=drafter))
                assert ids_of(tokens) == plain_loop(MODEL, prompt, 20, sampling)
        assert drafter._states == {}


def test_confirmed_drafts_save_passes() -> None:
    engine = Engine(MODEL, drafter=DraftModel(MODEL, n_draft=3))
    engine.add([1, 2], max_new_tokens=8)
    steps = [[token.id for _, token in engine.step()] for _ in range(2)]
    assert [len(step) for step in steps] == [4, 4]  # each pass confirms three drafts and adds a token
    assert engine.is_idle


def test_a_stop_token_within_confirmed_drafts_ends_the_answer_there() -> None:
    free = plain_loop(MODEL, [1, 2], 8)
    stop = free[2]
    first = free.index(stop)
    tokens = list(generate_tokens(MODEL, [1, 2], max_new_tokens=8, stop_ids=[stop], drafter=DraftModel(MODEL)))
    assert ids_of(tokens) == free[: first + 1]


class Wrapped(nn.Module):
    """Not a GPTModel, so that it is computed through its modules; with or without a cache."""

    def __init__(self, *, cached: bool) -> None:
        super().__init__()
        self.model = make_model()
        if cached:
            self.new_cache = self.model.new_cache

    def forward(self, ids: Tensor, **cache: Any) -> Tensor:
        return self.model(ids, **cache)


@pytest.mark.parametrize("cached", [True, False])
def test_another_module_gives_the_same_answers_through_the_same_engine(cached: bool) -> None:
    engine = Engine(Wrapped(cached=cached), max_batch=2, context_length=CONTEXT)
    engine._piece = 5 if cached else None
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10]]
    keys = [engine.add(prompt, max_new_tokens=9) for prompt in prompts]
    answers: dict[int, list[int]] = {key: [] for key in keys}
    while not engine.is_idle:
        for key, token in engine.step():
            answers[key].append(token.id)
    assert list(answers.values()) == [plain_loop(make_model(), prompt, 9) for prompt in prompts]


def test_a_hook_for_all_modules_is_obeyed() -> None:
    calls: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    try:
        list(generate_tokens(MODEL, [1], max_new_tokens=2))
    finally:
        handle.remove()
    assert "TransformerBlock" in calls


@pytest.mark.slow
def test_a_compiled_model_generates_from_the_weights_it_wraps() -> None:
    compiled = torch.compile(MODEL)  # nothing is compiled until it is called, which generation does not
    assert ids_of(list(generate_tokens(compiled, [1, 2], max_new_tokens=5))) == plain_loop(MODEL, [1, 2], 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_new_tokens": -1}, "min_new_tokens must be a whole number of at least 0, got -1"),
        ({"min_new_tokens": 4}, r"min_new_tokens must be at most max_new_tokens \(3\), got 4"),
        ({"top_logprobs": 21}, "got 21"),
        ({"top_logprobs": -1}, "got -1"),
        ({"sampling": Sampling(logit_bias={V: 1.0})}, f"logit_bias holds the id {V}"),
        ({"past_context": "crop"}, "past_context must be one of slide, stop, error, got 'crop'"),
        ({"stop_ids": range(V), "min_new_tokens": 1}, "every id of the vocabulary"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_tokens(MODEL, [1], **{"max_new_tokens": 3, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_batch": 0}, "max_batch must be a whole number of at least 1, got 0"),
        ({"context_length": 0}, "context_length must be a whole number of at least 1, got 0"),
        ({"capacity": 0}, "capacity must be a whole number of at least 1, got 0"),
    ],
)
def test_a_bad_engine_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(MODEL, **arguments)


def test_what_exceeds_the_engines_capacity_is_refused() -> None:
    engine = Engine(MODEL, capacity=6)
    engine.add([1, 2], max_new_tokens=4)
    with pytest.raises(ValueError, match="2 tokens and max_new_tokens=5 exceed the engine's capacity of 6"):
        engine.add([1, 2], max_new_tokens=5)


def test_as_many_samplings_as_prompts_are_asked_for() -> None:
    with pytest.raises(ValueError, match="one for each of 2 prompts, got 1"):
        generate_batch(MODEL, [[1], [2]], max_new_tokens=2, sampling=[Sampling(seed=1)])


def test_gpt2s_initialisation_with_its_repeated_answers_is_looked_up_too() -> None:
    model = make_model(tie_weights=True)
    initialize_gpt2(model, seed=3)
    drafter = PromptLookup(n_draft=5)
    assert ids_of(list(generate_tokens(model, [1, 2, 3], max_new_tokens=9, drafter=drafter))) == plain_loop(
        model, [1, 2, 3], 9
    )
    assert drafter._seen == {}
