"""A classifier that was exported gives the same answers in transformers, whose padding and pooling are its own."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2ForSequenceClassification
from transformers.utils import logging as transformers_logging

from gpt_core import GPTConfig, GPTModel
from gpt_finetune import (
    Classifier,
    ClassifierConfig,
    LabelledTexts,
    LoRAConfig,
    add_lora,
    load_classifier,
    lora_parameters,
    train_classifier,
    with_class_head,
)
from gpt_tokenizer import BPETokenizer, get_tokenizer
from gpt_weights import export_huggingface, open_weights

TEXT = "the cat sat on the mat, and the dog sat on the log; then they all sat still.\n" * 20
TOKENIZER = BPETokenizer.train([TEXT], vocab_size=280)
CONFIG = GPTConfig(vocab_size=280, context_length=64, emb_dim=64, n_heads=4, n_layers=3, qkv_bias=True)
LABELS = ["ham", "spam", "eggs"]
TEXTS = [
    "the", "the cat sat on the mat", "the dog sat " * 9, "then they all sat still.", "x", " ", "\n",
    "na\u00efve \u65e5\u672c\u8a9e", "sat on the log; " * 4, "THE CAT 123",
]


@pytest.fixture(autouse=True)
def _no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever transformers has to complain of is an error."""
    transformers_logging.disable_progress_bar()
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    logger.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.WARNING] == []


def made(*, lora: bool = False, **settings: Any) -> Classifier:
    """A classifier whose answers are clear: noise on every parameter, a large head with a bias."""
    torch.manual_seed(3)
    model = with_class_head(GPTModel(CONFIG), len(LABELS), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    if lora:
        add_lora(model, LoRAConfig(rank=4))
        with torch.no_grad():
            for parameter in lora_parameters(model):
                parameter.normal_(std=0.1)
    return Classifier(model, TOKENIZER, labels=LABELS, **settings)


def exported(classifier: Classifier, tmp_path: Path) -> tuple[Any, Any]:
    """Return transformers' model and tokenizer of a saved classifier."""
    folder = export_huggingface(open_weights(classifier.save(tmp_path / "ours")), tmp_path / "hf").path
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    assert isinstance(theirs, GPT2ForSequenceClassification)
    return theirs.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "LoRA, merged"])
@pytest.mark.parametrize("batch_size", [1, 3, len(TEXTS)])
def test_transformers_gives_our_logits_with_padding_on_the_right(batch_size: int, lora: bool, tmp_path: Path) -> None:
    classifier = made(lora=lora)
    theirs, tokenizer = exported(classifier, tmp_path)
    assert tokenizer.padding_side == "right"
    assert theirs.config.pad_token_id == tokenizer.pad_token_id == TOKENIZER.eot_token
    found = []
    for start in range(0, len(TEXTS), batch_size):
        batch = tokenizer(TEXTS[start : start + batch_size], padding="max_length", max_length=60, return_tensors="pt")
        with torch.no_grad():
            found.append(theirs(**batch).logits)
    expected = classifier.logits(TEXTS)

    torch.testing.assert_close(torch.cat(found), expected.clone(), atol=1e-4, rtol=0)
    assert [theirs.config.id2label[i] for i in torch.cat(found).argmax(-1).tolist()] == [
        prediction.label for prediction in classifier.classify(TEXTS)]


def test_transformers_knows_our_labels(tmp_path: Path) -> None:
    theirs, _ = exported(made(), tmp_path)
    assert theirs.config.id2label == {0: "ham", 1: "spam", 2: "eggs"}
    assert theirs.config.label2id == {"ham": 0, "spam": 1, "eggs": 2}


def test_transformers_cuts_a_longer_text_where_we_cut_it(tmp_path: Path) -> None:
    classifier = made(max_length=5)
    theirs, tokenizer = exported(classifier, tmp_path)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=5, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch).logits, classifier.logits(TEXTS).clone(), atol=1e-4, rtol=0)


def test_what_was_trained_and_loaded_again_answers_as_transformers_does(tmp_path: Path) -> None:
    texts = LabelledTexts(
        source="made", texts=tuple(f"the {'cat' if i % 2 else 'dog'} sat {'on ' * (i % 5)}" for i in range(20)),
        labels=tuple("spam" if i % 2 else "ham" for i in range(20)), lines=tuple(range(20)))
    classifier = made()
    for _ in train_classifier(classifier, texts, config=ClassifierConfig(epochs=2, lr=1e-3)):
        pass
    theirs, tokenizer = exported(classifier, tmp_path)
    again = load_classifier(tmp_path / "ours", read_tokenizer=get_tokenizer)
    batch = tokenizer(list(texts.texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch).logits, again.logits(texts.texts).clone(), atol=1e-4, rtol=0)


def test_the_scores_of_training_are_scikit_learns() -> None:
    classifier = made()
    labels = ("ham",) * 5 + ("spam",) * 3 + ("eggs",) * 2
    texts = LabelledTexts(source="made", texts=tuple(TEXTS), labels=labels, lines=tuple(range(len(TEXTS))))
    config = ClassifierConfig(epochs=1, lr=0.0, batch_size=len(TEXTS))
    scores = next(iter(train_classifier(classifier, texts, validation=texts, config=config))).validation
    predictions = classifier.classify(TEXTS)
    found = [prediction.label for prediction in predictions]
    shares = [[prediction.probabilities[label] for label in sorted(LABELS)] for prediction in predictions]

    assert scores is not None
    assert scores.accuracy == pytest.approx(accuracy_score(labels, found))
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, found))
    assert scores.loss == pytest.approx(log_loss(labels, shares, labels=sorted(LABELS)), abs=1e-5)
