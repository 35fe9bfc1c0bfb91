"""Perplexity equals a plain float64 calculation with transformers on the exported model and a real text."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from gpt_core import GPTConfig, GPTModel, save_checkpoint
from gpt_eval.text_perplexity import perplexity
from gpt_tokenizer import BPETokenizer
from gpt_weights import export_huggingface, open_weights

TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "the-verdict.txt"
pytestmark = pytest.mark.skipif(not TEXT.is_file(), reason="needs ../shared/data/the-verdict.txt beside the checkout")
CONTEXT = 48


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPTModel, Any, list[int], int]:
    """Our float32 model, transformers' in float64, the text's ids and the end of text's id."""
    folder = tmp_path_factory.mktemp("models")
    text = TEXT.read_text(encoding="utf-8")[:6_000]
    tokenizer = BPETokenizer.train([text], vocab_size=400)
    torch.manual_seed(3)
    model = GPTModel(GPTConfig(vocab_size=400, context_length=CONTEXT, emb_dim=32, n_heads=4, n_layers=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    save_checkpoint(folder / "ours", model, tokenizer=tokenizer)
    exported = export_huggingface(open_weights(folder / "ours"), folder / "theirs").path
    theirs = GPT2LMHeadModel.from_pretrained(exported).double().eval()
    return model, theirs, tokenizer.encode(text), tokenizer.eot_token


def plain_losses(theirs: Any, ids: list[int], *, context_length: int, stride: int) -> list[float]:
    """Return -log p of ids[1:], each from a pass of its own over exactly the tokens it may see."""
    losses = []
    for target in range(1, len(ids)):
        if target <= context_length:
            end = min(context_length, len(ids) - 1)
        else:
            end = min(len(ids) - 1, context_length + math.ceil((target - context_length) / stride) * stride)
        seen = ids[max(0, end - context_length) : target]
        with torch.no_grad():
            logits = theirs(torch.tensor([seen])).logits[0, -1]
        losses.append(float(torch.logsumexp(logits, -1) - logits[ids[target]]))
    return losses


@pytest.mark.parametrize("with_first", [True, False], ids=["first counted", "first not counted"])
@pytest.mark.parametrize(("context_length", "stride"), [(None, None), (None, 1), (None, 20), (16, 7), (16, 16), (1, 1)])
def test_it_is_the_plain_calculation_of_transformers_in_float64(
    context_length: int | None, stride: int | None, with_first: bool, case: tuple[GPTModel, Any, list[int], int]
) -> None:
    model, theirs, ids, eot = case
    ids = ids[:217]
    bos = eot if with_first else None
    report = perplexity(model, ids, context_length=context_length, stride=stride, bos_id=bos, n_bytes=500, batch_size=3)

    width = context_length or CONTEXT
    losses = plain_losses(theirs, [eot, *ids] if with_first else ids, context_length=width, stride=stride or width)
    mean = math.fsum(losses) / len(losses)
    assert report.perplexity.n == len(losses) == len(ids) - (not with_first)
    for found, expected in [
        (report.loss.value, mean),
        (report.perplexity.value, math.exp(mean)),
        (report.bits_per_byte.value, math.fsum(losses) / math.log(2) / 500),
    ]:
        assert found == pytest.approx(expected, rel=1e-4, abs=0)
    assert report.loss.value == pytest.approx(mean, abs=1e-4, rel=0)


def test_on_the_whole_text_it_is_transformers_own_loss_of_windows_that_do_not_overlap(
    case: tuple[GPTModel, Any, list[int], int]
) -> None:
    model, theirs, ids, _ = case
    ids = ids[: len(ids) // CONTEXT * CONTEXT + 1]  # the last window is whole: then it is transformers' convention too
    total = 0.0
    for start in range(0, len(ids) - 1, CONTEXT):
        window = torch.tensor([ids[start : start + CONTEXT + 1]])
        with torch.no_grad():
            logits = theirs(window[:, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))

    report = perplexity(model, torch.tensor(ids))
    assert report.loss.value == pytest.approx(total / (len(ids) - 1), abs=1e-4, rel=1e-4)


def test_texts_are_scored_apart_and_weighted_by_their_tokens(case: tuple[GPTModel, Any, list[int], int]) -> None:
    model, theirs, ids, eot = case
    texts = [ids[:5], ids[5:120], [], ids[120:121]]
    losses = [
        loss for text in texts if text
        for loss in plain_losses(theirs, [eot, *text], context_length=CONTEXT, stride=CONTEXT)
    ]  # fmt: skip

    report = perplexity(model, texts, bos_id=eot)
    assert report.perplexity.n == 121
    assert report.perplexity.value == pytest.approx(math.exp(math.fsum(losses) / 121), rel=1e-4)


def test_the_command_prints_and_saves_the_same_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: tuple[GPTModel, Any, list[int], int]
) -> None:
    from gpt_eval.cli import main

    model, _, _, _ = case
    texts = [TEXT.read_bytes()[:2_000].decode("utf-8", errors="ignore"), "caf\u00e9\r\n"]
    tokenizer = BPETokenizer.train([texts[0]], vocab_size=400)
    save_checkpoint(tmp_path / "step-2", model, tokenizer=tokenizer)
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, text in zip(files, texts, strict=True):
        path.write_bytes(text.encode("utf-8"))
    run = ["perplexity", str(tmp_path), *map(str, files), "--stride", "20"]

    assert main([*run, "--json", "--out", str(tmp_path / "out.json"), "--seed", "5"]) == 0
    printed = capsys.readouterr().out
    expected = perplexity(
        model, [tokenizer.encode(text) for text in texts], stride=20, bos_id=tokenizer.eot_token, seed=5,
        n_bytes=sum(len(text.encode("utf-8")) for text in texts),
    )  # fmt: skip
    report = json.loads(printed)
    assert report == json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    found = {figure["name"]: figure["measured"]["value"] for figure in report["figures"]}
    assert found["perplexity"] == pytest.approx(expected.perplexity.value)
    assert found["bits per byte"] == pytest.approx(expected.bits_per_byte.value)
    assert report["facts"]["texts"] == ["a.txt", "b.txt"]
    assert report["facts"]["checkpoint"] == "step-2"
    weights = (tmp_path / "step-2" / "model.safetensors").read_bytes()
    assert report["facts"]["checkpoint_sha256"] == hashlib.sha256(weights).hexdigest()

    assert main(run) == 0
    assert "| perplexity |" in capsys.readouterr().out
    files[0].write_bytes(b"\xff")
    assert main(run) == 3
    assert "a.txt is no UTF-8 at byte 0" in capsys.readouterr().err
    files[0].write_bytes(b"")
    assert main(run) == 3
    files[0].unlink()
    assert main(run) == 3
    save_checkpoint(tmp_path / "bare" / "step-1", model)
    files[0].write_bytes(b"the")
    assert main(["perplexity", str(tmp_path / "bare"), str(files[0])]) == 3
    assert "holds no tokenizer.json" in capsys.readouterr().err
