import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="perplexity needs the extra model")
gpt_core = pytest.importorskip("gpt_core", reason="perplexity needs the extra model")
token_scores = pytest.importorskip("gpt_eval.token_scores")
perplexity = pytest.importorskip("gpt_eval.text_perplexity").perplexity

CONFIG = gpt_core.GPTConfig(vocab_size=50, context_length=16, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.5)
IDS = np.random.default_rng(1).integers(50, size=400).tolist()


def model(config=CONFIG):
    torch.manual_seed(0)
    return gpt_core.GPTModel(config)


class Bigram(torch.nn.Module):
    """A table of logits: no config, no features."""

    def __init__(self, n=50):
        super().__init__()
        self.table = torch.nn.Embedding(n, n, dtype=torch.float64)

    def forward(self, ids):
        assert ids.shape[0] == 1
        return self.table(ids)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity():
    flat = Bigram()
    torch.nn.init.zeros_(flat.table.weight)
    report = perplexity(flat, IDS, context_length=8, n_bytes=399)

    assert report.perplexity.value == pytest.approx(50, rel=1e-12)
    assert report.bits_per_byte.value == pytest.approx(math.log2(50), rel=1e-12)
    assert report.perplexity.n == 399
    assert report.perplexity.method == "no interval: every resample gave the same value"


@pytest.mark.parametrize("bos_id", [None, 3])
@pytest.mark.parametrize(("context_length", "stride"), [(8, 8), (8, 3), (1, 1), (400, 1), (500, 500)])
def test_a_bigram_model_scores_the_same_under_every_window(context_length, stride, bos_id):
    torch.manual_seed(2)
    bigram = Bigram()
    ids = ([] if bos_id is None else [bos_id]) + IDS
    log_p = bigram.table.weight.log_softmax(-1).detach()
    expected = -log_p[ids[:-1], ids[1:]].mean().item()

    report = perplexity(bigram, IDS, context_length=context_length, stride=stride, bos_id=bos_id)
    assert report.loss.value == pytest.approx(expected, rel=1e-12)
    assert report.loss.n == len(ids) - 1


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_neither_batches_nor_chunks_nor_the_way_through_a_plain_module_change_a_score(batch_size, monkeypatch):
    ours = model().double()
    monkeypatch.setattr(token_scores, "_CHUNK_LOGITS", 50 * 7)
    found = perplexity(ours, IDS, stride=5, batch_size=batch_size)
    plain = torch.nn.Sequential(ours)  # no GPTModel: its logits are taken as they are

    assert perplexity(plain, IDS, context_length=16, stride=5).loss.value == pytest.approx(found.loss.value, rel=1e-12)
    assert found.block_length == 16


def test_a_quantized_model_can_be_judged():
    ours = model()
    found = perplexity(gpt_core.quantize(ours, "float32"), IDS)

    assert found.loss.value == pytest.approx(perplexity(ours, IDS).loss.value, rel=1e-5)


def test_dropout_is_off_meanwhile_and_the_mode_is_restored():
    ours = model().train()
    ours.trf_blocks[1].eval()
    first, second = perplexity(ours, IDS), perplexity(ours, IDS)

    assert first == second
    assert ours.training
    assert ours.trf_blocks[0].training
    assert not ours.trf_blocks[1].training


def test_the_interval_holds_the_value_and_shrinks_with_more_text():
    ours = model()
    random = np.random.default_rng(5)
    short, long = (perplexity(ours, random.integers(50, size=n).tolist(), seed=3) for n in (400, 6400))

    for report in (short, long):
        assert report.perplexity.low < report.perplexity.value < report.perplexity.high
        assert report.perplexity.low == pytest.approx(math.exp(report.loss.low))
    assert (short.n_blocks, long.n_blocks) == (25, 400)
    ratio = (short.loss.high - short.loss.low) / (long.loss.high - long.loss.low)
    assert 2.5 < ratio < 6.5  # four times, in the long run


def test_the_interval_covers_the_true_loss_about_as_often_as_it_says():
    torch.manual_seed(1)
    bigram = Bigram(5)
    p = bigram.table.weight.softmax(-1).detach().numpy()
    values, vectors = np.linalg.eig(p.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    truth = -(stationary[:, None] * p * np.log(p)).sum()
    random = np.random.default_rng(11)
    hits = 0
    for seed in range(100):
        ids = [0]
        for u in random.random(400):
            ids.append(min(4, int(np.searchsorted(p[ids[-1]].cumsum(), u))))
        loss = perplexity(bigram, ids, context_length=400, n_resamples=300, seed=seed, block_length=10).loss
        hits += loss.low <= truth <= loss.high
    assert hits >= 87  # 95 expected, 2.2 standard deviation


def test_few_blocks_give_no_interval_but_the_reason():
    report = perplexity(model(), IDS[:9])
    assert report.loss.low is None
    assert report.loss.method == "no interval: 10 blocks are needed, got 8"
    assert perplexity(model(), IDS, block_length=399).loss.method == "no interval: 10 blocks are needed, got 1"


def test_blocks_stay_within_a_text():
    report = perplexity(model(), [IDS[start : start + 10] for start in range(0, 400, 10)], block_length=16, bos_id=0)
    assert (report.n_blocks, report.loss.n) == (40, 400)


def test_the_convention_says_what_was_counted():
    assert perplexity(model(), IDS, bos_id=7).convention == (
        "every token scored once, the first one predicted from token 7, in windows of 16 tokens that do not overlap"
    )
    assert perplexity(model(), [IDS, IDS], stride=4).convention == (
        "every token scored once, the first one not counted, in windows of 16 tokens that move by 4, so that past the "
        "first window a token sees 13 or more; each of 2 texts on its own, weighted by its tokens"
    )


def test_the_report_names_the_figures_and_the_bootstraps_seed():
    report = perplexity(model(), IDS, seed=4).report({"checkpoint": "c"})

    assert [of.name for of in report.figures] == ["perplexity", "loss (nats per token)", "bits per byte"]
    assert report.facts == {"checkpoint": "c", "seed": 4, "n_resamples": 2000, "n_blocks": 25, "block_length": 16}
    assert report.figures[2].measured.method == "the number of bytes was not given"
    assert report.figures[0].convention in report.to_markdown()


def test_progress_ends_with_all_tokens():
    seen = []
    perplexity(model(), IDS, progress=lambda done, n: seen.append((done, n)))
    assert seen[-1] == (399, 399)
    assert seen == sorted(seen)


def test_ids_may_be_numpys_or_torchs():
    expected = perplexity(model(), IDS)
    assert perplexity(model(), np.array(IDS)) == perplexity(model(), torch.tensor(IDS)) == expected
    assert perplexity(model(), [np.array(IDS, dtype=np.uint16)]) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ids": [50, 1]}, r"ids must lie in 0\.\.49, got 1\.\.50; encode with the tokenizer"),
        ({"ids": [-1, 1]}, r"got -1\.\.1"),
        ({"bos_id": 50}, r"got 0\.\.50"),
        ({"ids": []}, "no token to score: a token needs one before it; give a longer text, or bos_id"),
        ({"ids": [3]}, "no token to score"),
        ({"ids": [[], []], "bos_id": 1}, "no token to score: a token needs one before it; give a longer text$"),
        ({"ids": [0.5, 1.5]}, "ids must be whole numbers"),
        ({"ids": torch.zeros(2, 3, dtype=torch.int64)}, r"one after the other, got torch.int64 of shape \(2, 3\)"),
        ({"stride": 0}, "stride must be a whole number from 1 to 16, got 0"),
        ({"stride": 17}, "stride must be a whole number from 1 to 16, got 17"),
        ({"stride": 5, "context_length": 4}, "stride must be a whole number from 1 to 4, got 5"),
        ({"context_length": 17}, "context_length must be a whole number from 1 to 16, got 17"),
        ({"context_length": True}, "context_length must be"),
        ({"n_bytes": 0}, "n_bytes must be a whole number of at least 1, got 0"),
        ({"block_length": 1.5}, "block_length must be"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_a_bad_argument_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        perplexity(model(), **{"ids": IDS, **given})


def test_a_model_without_a_context_or_without_a_next_token_is_refused():
    with pytest.raises(ValueError, match="a Bigram does not name its context; give context_length"):
        perplexity(Bigram(), IDS)
    classifier = gpt_core.GPTModel(
        gpt_core.GPTConfig(vocab_size=50, context_length=16, emb_dim=16, n_heads=2, n_layers=1, n_classes=2)
    )
    with pytest.raises(ValueError, match=r"the model classifies \(n_classes=2\)"):
        perplexity(classifier, IDS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_told(value):
    broken = model()
    with torch.no_grad():
        broken.final_norm.scale[0] = value
    with pytest.raises(ValueError, match="logits are not finite"):
        perplexity(broken, IDS)


def test_a_loss_too_large_for_an_exponential_leaves_the_loss():
    wrong = Bigram()
    with torch.no_grad():
        wrong.table.weight.zero_()
        wrong.table.weight[:, 0] = 800.0
    report = perplexity(wrong, [1] * 50, context_length=8)

    assert report.loss.value == pytest.approx(800)
    assert report.perplexity.value is None
    assert "too large" in report.perplexity.method


def test_windows_score_each_token_once_and_are_full_where_they_can_be():
    for length in range(2, 30):
        ids = torch.arange(length)
        for context_length in range(1, 12):
            for stride in range(1, context_length + 1):
                windows = list(
                    token_scores.sliding_windows(ids, context_length=context_length, stride=stride)
                )
                scored = torch.cat([window.ids[-window.n_scored :] for window in windows])
                assert scored.tolist() == ids[1:].tolist()
                assert all(len(window.ids) - 1 == min(context_length, length - 1) for window in windows)
                assert all(window.n_scored <= stride for window in windows[1:])
