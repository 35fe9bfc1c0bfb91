import sys

import pytest
import torch
from torch import nn

from gpt_train import TrainConfig, train
from gpt_train.step import arithmetic

V = 23


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(V, 16), nn.LayerNorm(16), nn.Linear(16, V))


def batches(n):
    ids = torch.randint(0, V, (n, 4, 7), generator=torch.Generator().manual_seed(1))
    return [(rows[:, :-1], rows[:, 1:]) for rows in ids]


def losses(**kwargs):
    config = TrainConfig(max_steps=20, lr=0.02, **kwargs)
    return [report.loss for report in train(model(), batches(20), config=config)]


def test_bfloat16_follows_float32_closely_and_keeps_the_weights_in_float32():
    exact, rough = losses(precision="float32"), losses(precision="bfloat16")

    assert exact != rough
    assert rough == pytest.approx(exact, abs=0.02)
    trained = model()
    for _ in train(trained, batches(2), config=TrainConfig(max_steps=2, precision="bfloat16")):
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in trained.parameters())


@pytest.mark.parametrize("has_it", [True, False])
def test_auto_takes_bfloat16_exactly_where_the_processor_has_it(monkeypatch, has_it):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": has_it}, raising=False
    )
    product = nn.Linear(2, 2)
    with arithmetic("auto", torch.device("cpu")):
        dtype = product(torch.zeros(1, 2)).dtype

    assert dtype == (torch.bfloat16 if has_it else torch.float32)


def test_auto_stays_in_float32_where_nothing_is_known_of_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64"}, raising=False)

    assert not torch.is_autocast_enabled("cpu")
    with arithmetic("auto", torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


def test_where_compiling_fails_one_warning_says_so_and_training_goes_on(monkeypatch):
    def no_compiler(function):
        def fail(*args, **kwargs):
            raise RuntimeError("no C++ compiler found\nlong story")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.warns(UserWarning, match="torch.compile failed.*no C\\+\\+ compiler found$") as caught:
        compiled = losses(compile=True)

    assert len(caught) == 1
    assert compiled == losses()


def test_an_error_of_the_model_is_not_taken_for_one_of_the_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda *args, **kwargs: function(*args, **kwargs))
    data = [(torch.full((1, 3), V), torch.zeros(1, 3, dtype=torch.int64))]

    with pytest.warns(UserWarning, match="torch.compile failed"), pytest.raises(IndexError):
        list(train(model(), data, config=TrainConfig(max_steps=1, compile=True)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own remarks on the machine
def test_compiled_training_equals_plain_training():
    assert losses(compile=True, precision="float32") == pytest.approx(losses(precision="float32"), abs=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_follows_the_cpu():
    config = TrainConfig(max_steps=20, lr=0.02, precision="float32")
    cuda = [r.loss for r in train(model().to("cuda"), batches(20), config=config, val_batches=batches(2))]

    assert cuda == pytest.approx(losses(precision="float32"), abs=1e-3)
