"""Sampling draws what transformers and OpenAI's formulas draw; thousands of random samplings are without a fault."""

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt_core import Sampling
from gpt_core.sampling import next_token

ROOT = Path(__file__).resolve().parents[1]
N_ROWS, N_VOCAB, N_TOKENS, N_PROMPT = 2_000, 150, 30, 12

FILTERS = [
    *[{"temperature": value} for value in (0.3, 1.0, 2.5)],
    *[{"top_k": value} for value in (1, 2, 40, N_VOCAB, 1_000)],
    *[{"top_p": value} for value in (0.01, 0.5, 0.9, 0.99)],
    *[{"min_p": value} for value in (0.001, 0.1, 1.0)],
    *[{"repetition_penalty": value} for value in (0.5, 1.3, 4.0)],
    {"logit_bias": {3: 4.0, 50: -100.0, 149: -1.5}},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 1.6, "top_k": 60, "top_p": 0.95, "repetition_penalty": 1.2, "logit_bias": {8: 5.0}},
]


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(N_ROWS, N_VOCAB, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(N_VOCAB, (N_ROWS, N_TOKENS), generator=torch.Generator().manual_seed(2))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def draws(scores: Tensor) -> Tensor:
    return torch.multinomial(scores.softmax(dim=-1), num_samples=1, generator=generator())[:, 0]


@pytest.mark.parametrize("setting", FILTERS, ids=str)
def test_draws_equal_those_of_transformers_processors_in_its_order(
    logits: Tensor, ids: Tensor, setting: dict[str, Any]
) -> None:
    processors = LogitsProcessorList()
    if "logit_bias" in setting:
        processors.append(SequenceBiasLogitsProcessor({(i,): value for i, value in setting["logit_bias"].items()}))
    makers = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor, "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper,
    }  # fmt: skip
    processors.extend(make(setting[name]) for name, make in makers.items() if name in setting)
    expected = draws(processors(ids, logits.clone()))
    drawn = next_token(logits, sampling=Sampling(**setting), ids=ids, n_prompt=N_PROMPT, generator=generator())
    assert torch.equal(drawn, expected)


def test_forbidden_ids_are_what_transformers_suppresses(logits: Tensor, ids: Tensor) -> None:
    forbidden = list(range(0, N_VOCAB, 2))
    expected = draws(SuppressTokensLogitsProcessor(forbidden)(ids, logits.clone()))
    drawn = next_token(logits, sampling=Sampling(), forbidden=forbidden, generator=generator())
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize(("presence", "frequency"), [(0.8, 0.0), (0.0, 0.6), (-1.1, 0.4), (2.0, -2.0)])
def test_draws_equal_those_of_openais_formula(
    logits: Tensor, ids: Tensor, presence: float, frequency: float
) -> None:
    """mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, as OpenAI's API reference has it."""
    ids = ids % 10  # so that most tokens occur several times
    changed = logits.clone()
    for row in range(N_ROWS):
        for j, c in Counter(ids[row, N_PROMPT:].tolist()).items():
            changed[row, j] += -c * frequency - float(c > 0) * presence
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    drawn = next_token(logits, sampling=sampling, ids=ids, n_prompt=N_PROMPT, generator=generator())
    assert torch.equal(drawn, draws(changed))


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_sampling", ROOT / "benchmarks" / "sampling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_2000_random_samplings_draw_only_what_float64_allows(benchmark: ModuleType) -> None:
    made = benchmark.check_configurations(2_000)
    assert made["draws"] > 4_000


def test_the_check_of_random_samplings_finds_a_forbidden_draw(benchmark: ModuleType) -> None:
    row = [0.0, 3.0, 1.0, -1.0]
    for sampling, token, what in [
        (Sampling(temperature=0), 2, "not the best"),
        (Sampling(top_k=2), 0, "2 are better"),
        (Sampling(top_p=0.8), 2, "top_p"),
        (Sampling(min_p=0.2), 2, "min_p"),
        (Sampling(logit_bias={1: -50}, min_p=0.5), 1, "min_p"),
    ]:
        assert what in benchmark.fault_of(token, row, sampling, None, 0, [])
        assert benchmark.fault_of(token, row, Sampling(), None, 0, []) is None
    assert "-inf" in benchmark.fault_of(1, row, Sampling(), None, 0, [1])
