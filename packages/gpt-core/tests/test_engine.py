"""The engine: every answer against a plain loop over the model's modules, whatever runs beside it."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gpt_core.config import GPTConfig
from gpt_core.engine import Engine
from gpt_core.generate import (
    generate,
    generate_batch,
    generate_text_simple,
    generate_text_simple_stream,
    generate_tokens,
)
from gpt_core.model import GPTModel, initialize_gpt2
from gpt_core.quantize import quantize
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
    key = engine.add([1, 2], max_new_tokens=6)
    other = engine.add([3], max_new_tokens=6)
    answer = [token.id for of, token in engine.step() if of == key]
    bias = model.get_parameter("trf_blocks.0.ff.layers.2.bias")
    healthy = float(bias.detach()[0])
    for _ in range(2):
        with torch.no_grad():
            bias[0] = math.nan
        with pytest.raises(ValueError, match=rf"not finite \(sequence {key}, {other}\): .* cancel the"):
            engine.step()
    with torch.no_grad():
        bias[0] = healthy
    while not engine.is_idle:
        answer += [token.id for of, token in engine.step() if of == key]
    assert answer == expected


class Spoiled(nn.Module):
    """Gives NaN after the id 7; without a config, so that nothing says how large its vocabulary is."""

    def forward(self, ids: Tensor) -> Tensor:
        logits = nn.functional.one_hot((ids + 1) % 10, 10).float()
        return logits.masked_fill((ids == 7)[..., None], math.nan)


def test_a_sequence_that_cannot_go_on_is_named_and_the_others_go_on_without_it() -> None:
    engine = Engine(Spoiled())
    first, bad = engine.add([1], max_new_tokens=3), engine.add([7], max_new_tokens=3)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"not finite \(sequence {bad}\):"):
            engine.step()
    engine.cancel(bad)
    assert [token.id for _ in range(3) for _, token in engine.step()] == [2, 3, 4]
    assert engine.is_idle
    assert first != bad


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_step_that_raises_half_way_has_moved_no_sequence_and_drawn_no_number(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    samplings = [Sampling(seed=seed, temperature=2.0) for seed in (1, 2, 3)]
    prompts = [[1, 2, 3], [4], [5, 6]]
    engine = Engine(MODEL, drafter=PromptLookup(ngram=2))
    keys = [engine.add(p, max_new_tokens=9, sampling=one) for p, one in zip(prompts, samplings, strict=True)]
    answers: dict[int, list[int]] = {key: [] for key in keys}
    chance, n_raised = random.Random(0), 0

    def interrupted(*args: Any, **kwargs: Any) -> Tensor:
        if chance.random() < 0.3:
            raise error
        return next_token(*args, **kwargs)

    monkeypatch.setattr("gpt_core.sequence.next_token", interrupted)
    while not engine.is_idle:
        try:
            step = engine.step()
        except error:
            n_raised += 1
            continue
        for key, token in step:
            answers[key].append(token.id)
    assert n_raised > 5
    assert list(answers.values()) == [
        plain_loop(MODEL, prompt, 9, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)
    ]


@pytest.mark.parametrize("use_cache", [True, False])
def test_replaced_and_converted_weights_are_looked_up_anew(use_cache: bool) -> None:
    model, other = make_model(), make_model(qkv_bias=False)
    initialize_gpt2(other, seed=9)
    engine = Engine(model, use_cache=use_cache)
    ids = [1, 2]
    engine.add(ids, max_new_tokens=6)
    ids += [token.id for _, token in engine.step()]
    model.load_state_dict({name: tensor.clone() for name, tensor in other.state_dict().items()}, assign=True)
    if not use_cache:
        for _ in range(2):
            ids += [token.id for _, token in engine.step()]
        assert ids[3:] == plain_loop(other, ids[:3], 2)
    model.double()  # the cache has the other dtype: it is read anew
    n_held = len(ids)
    while not engine.is_idle:
        ids += [token.id for _, token in engine.step()]
    assert ids[n_held:] == plain_loop(other.double(), ids[:n_held], 8 - n_held)


def test_a_model_that_is_no_longer_plain_needs_a_new_engine() -> None:
    model = make_model()
    engine = Engine(model)
    engine.add([1], max_new_tokens=3)
    model.trf_blocks[0].register_forward_hook(lambda *_: None)
    with torch.no_grad():
        model.get_parameter("final_norm.scale").mul_(2)
    with pytest.raises(ValueError, match="build a new engine"):
        engine.step()


def test_a_sequence_that_fills_every_pass_keeps_no_other_waiting() -> None:
    engine = Engine(MODEL, use_cache=False, max_batch=2)
    engine._piece = 6
    engine.add(list(range(10)), max_new_tokens=20)  # each token takes two passes of six
    short = engine.add([1, 2, 3], max_new_tokens=1)
    steps = [[key for key, _ in engine.step()] for _ in range(3)]
    assert any(short in step for step in steps)


def test_a_prompt_longer_than_a_piece_is_read_as_a_whole() -> None:
    model = make_model(context_length=1500)
    prompts = [(torch.arange(n) * 7 % V).tolist() for n in (1200, 3, 700)]
    for prompt, answer in zip(prompts, generate_batch(model, prompts, max_new_tokens=3), strict=True):
        ids = list(prompt)
        for token in answer:
            with torch.no_grad():
                logits = model(torch.tensor([ids]))[0, -1]
            assert token.logprob == pytest.approx(float(logits.log_softmax(dim=-1)[token.id]), abs=1e-4)
            assert token.id == int(logits.argmax())
            ids.append(token.id)


class Foolish:
    """A drafter that proposes ids which no model has."""

    def propose(self, key: int, ids: Sequence[int], /) -> Sequence[int]:
        return [*plain_loop(MODEL, list(ids), 1), 10**6, 3]

    def forget(self, key: int, /) -> None: ...


def test_drafts_that_the_model_does_not_know_are_cut_off() -> None:
    tokens = list(generate_tokens(MODEL, [1, 2], max_new_tokens=9, drafter=Foolish()))
    assert ids_of(tokens) == plain_loop(MODEL, [1, 2], 9)


def test_an_abandoned_stream_is_forgotten_by_its_drafter() -> None:
    lookup, draft_model = PromptLookup(), DraftModel(MODEL)
    for drafter in (lookup, draft_model):
        stream = generate_tokens(MODEL, [1, 2, 3], max_new_tokens=9, drafter=drafter)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert lookup._seen == {}
    assert draft_model._states == {}


def test_prompt_lookup_proposes_what_followed_the_same_words_and_saves_passes() -> None:
    text = [5, 6, 7, 8, 9, 5, 6]
    assert list(PromptLookup(n_draft=3).propose(0, text)) == [7, 8, 9]
    assert list(PromptLookup(n_draft=9, ngram=2).propose(0, text)) == [7, 8, 9, 5, 6]
    assert list(PromptLookup().propose(0, [1, 2, 3, 4])) == []
    lookup = PromptLookup(n_draft=2)
    assert list(lookup.propose(0, [1, 2, 3, 1])) == []
    assert list(lookup.propose(0, [1, 2, 3, 1, 2])) == [3, 1]  # the index goes on where it stopped

    class Periodic(nn.Module):
        """Says 0 to 9 over and over; its sequences may come in pieces."""

        new_cache = MODEL.new_cache

        def forward(self, ids: Tensor, **_: Any) -> Tensor:
            return nn.functional.one_hot((ids + 1) % 10, 10).float()

    engine = Engine(Periodic(), drafter=PromptLookup(n_draft=4))
    engine.add(list(range(10)) * 2, max_new_tokens=20)
    steps = []
    while not engine.is_idle:
        steps.append([token.id for _, token in engine.step()])
    assert [token for step in steps for token in step] == list(range(10)) * 2
    assert [len(step) for step in steps] == [5, 5, 5, 5]


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
    prompts, lengths = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10], [11], [12, 13, 14]], [3, 14, 9, 2, 12]
    keys = [engine.add(prompt, max_new_tokens=n) for prompt, n in zip(prompts, lengths, strict=True)]
    answers: dict[int, list[int]] = {key: [] for key in keys}
    while not engine.is_idle:
        for key, token in engine.step():
            answers[key].append(token.id)
    expected = [plain_loop(make_model(), prompt, n) for prompt, n in zip(prompts, lengths, strict=True)]
    assert list(answers.values()) == expected


def test_other_modules_are_in_eval_mode_while_they_compute_and_in_their_own_in_between() -> None:
    module = Wrapped(cached=True)
    module.model = make_model(drop_rate=0.5)
    module.new_cache = module.model.new_cache
    module.train()
    module.model.trf_blocks[0].eval()
    before = [one.training for one in module.modules()]
    tokens = generate_tokens(module, [1, 2], max_new_tokens=6)
    first = next(tokens)
    assert [one.training for one in module.modules()] == before
    assert [first.id, *(token.id for token in tokens)] == plain_loop(make_model(drop_rate=0.5), [1, 2], 6)
    assert [one.training for one in module.modules()] == before


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
        ({"top_logprobs": 21}, "top_logprobs must be a whole number from 0 to 20, got 21"),
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


@pytest.mark.parametrize(
    "wrap", [lambda model: model, torch.compile, lambda model: model.double()], ids=["plain", "compiled", "double"]
)
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize(
    "ask",
    [
        Engine,
        quantize,
        DraftModel,
        lambda model: generate_tokens(model, [1], max_new_tokens=1),
        lambda model: generate_batch(model, [[1], [2]], max_new_tokens=1),
        lambda model: generate(model, torch.tensor([[1]]), 1, CONTEXT),
        lambda model: generate_text_simple(model, torch.tensor([[1]]), 1),
        lambda model: next(generate_text_simple_stream(model, torch.tensor([[1]]), 1)),
    ],
)
def test_a_model_that_classifies_is_asked_for_no_next_token(
    ask: Callable[[nn.Module], object], explicit: bool, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    classifier = GPTModel({**GPT2, "n_classes": 2}, explicit=explicit)
    with pytest.raises(ValueError, match=r"classifies \(n_classes=2\) and has no next token to generate"):
        ask(wrap(classifier))


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", VARIANTS)
def test_on_a_gpu_the_answers_are_the_plain_loops_too(name: str) -> None:
    prompts = [[1, 2, 3], [4], list(range(CONTEXT + 2)), [5, 6]]
    model = make_model(**VARIANTS[name]).cuda()
    answers = generate_batch(model, prompts, max_new_tokens=9, max_batch=3, drafter=PromptLookup(ngram=2))
    assert [ids_of(answer) for answer in answers] == [plain_loop(MODELS[name], prompt, 9) for prompt in prompts]
    for dtype in ("float32", "bfloat16", "int8"):
        sampled = generate_batch(quantize(model, dtype), prompts, max_new_tokens=9, sampling=Sampling(seed=1))
        assert [len(answer) for answer in sampled] == [9, 9, 9, 9]
