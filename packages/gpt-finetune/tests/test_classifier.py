"""A classifier's answer depends on its text alone: not on padding, batch neighbours or their order; and it is kept."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gpt_core import CheckpointError, GPTConfig, GPTModel, GPTModelFast, load_checkpoint, save_checkpoint
from gpt_finetune.classifier import Classifier, class_logits, load_classifier, with_class_head
from gpt_finetune.lora import LoRAConfig, add_lora, lora_parameters
from gpt_finetune.padding import padded
from gpt_train import DataError

VOCABULARY, CONTEXT = 300, 1100
LABELS = ("ham", "spam", "eggs")
CONFIG = GPTConfig(
    vocab_size=VOCABULARY, context_length=CONTEXT, emb_dim=16, n_heads=4, n_layers=2, qkv_bias=True, n_classes=3,
    drop_rate=0.2,
)


class Bytes:
    """A byte is an id; the file holds one number, what is added to each."""

    def __init__(self, shift=0):
        self.shift = shift

    def encode(self, text):
        return [byte + self.shift for byte in text.encode()]

    def save(self, path):
        path.write_text(json.dumps(self.shift), encoding="utf-8")

    @classmethod
    def read(cls, path):
        return cls(json.loads(Path(path).read_text(encoding="utf-8")))


def made(kind="GPT-2", config=CONFIG):
    """A model whose logits are far from zero and from each other."""
    torch.manual_seed(0)
    model = {
        "GPT-2": lambda: GPTModel(config),
        "explicit": lambda: GPTModel(config, explicit=True),
        "fast": lambda: GPTModelFast(config),
        "grouped heads": lambda: GPTModel(replace(config, n_kv_heads=2)),
        "window": lambda: GPTModel(replace(config, sliding_window=7)),
        "rotary": lambda: GPTModel(replace(config, positions="rotary", norm="rmsnorm", n_kv_heads=1)),
        "one block": lambda: GPTModel(replace(config, n_layers=1)),
        "LoRA": lambda: with_lora(GPTModel(config)),
    }[kind]()
    with torch.no_grad():
        model.out_head.weight.normal_()
    return model.eval()


def with_lora(model):
    add_lora(model, LoRAConfig(rank=2, layers=("W_query", "W_value", "ff.layers.0", "out_head")))
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.normal_(std=0.3)
    model.out_head.weight = model.out_head.linear.weight  # where made() looks for it
    return model


KINDS = ("GPT-2", "explicit", "fast", "grouped heads", "window", "rotary", "one block", "LoRA")
MODELS = {kind: made(kind) for kind in KINDS}


@torch.no_grad()
def alone(model, ids):
    """The oracle: the whole forward pass over this text only, read at its end."""
    return model(torch.tensor([ids]))[0, -1]


ids_of_a_text = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(ids=ids_of_a_text, n_padding=st.integers(0, 1000), seed=st.integers(0, 2**32))
def test_padding_of_any_id_and_length_changes_nothing(kind, ids, n_padding, seed):
    padding = torch.randint(VOCABULARY, (n_padding,), generator=torch.Generator().manual_seed(seed))
    inputs = torch.cat([torch.tensor(ids), padding])[None]
    with torch.no_grad():
        found = class_logits(MODELS[kind], inputs, torch.tensor([len(ids)]))[0]
        # The same with the padding computed, as beside a longer text.
        longer = torch.randint(VOCABULARY, (1, inputs.shape[1]), generator=torch.Generator().manual_seed(seed))
        both = class_logits(MODELS[kind], torch.cat([inputs, longer]), torch.tensor([len(ids), inputs.shape[1]]))
    expected = alone(MODELS[kind], ids)

    for logits in (found, both[0]):
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        assert logits.argmax() == expected.argmax()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(texts=st.lists(ids_of_a_text, min_size=1, max_size=8), data=st.data())
def test_neighbours_in_the_batch_and_their_order_change_nothing(kind, texts, data):
    order = data.draw(st.permutations(range(len(texts))))
    inputs, lengths = padded([texts[number] for number in order])
    with torch.no_grad():
        found = class_logits(MODELS[kind], inputs, lengths)
    expected = torch.stack([alone(MODELS[kind], texts[number]) for number in order])

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.argmax(-1).tolist() == expected.argmax(-1).tolist()


@settings(max_examples=10)
@given(texts=st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=70))
def test_many_texts_get_the_answers_that_each_gets_alone_and_in_their_order(texts):
    classifier = Classifier(MODELS["GPT-2"], Bytes(), labels=LABELS)
    found = classifier.classify(texts)
    for text, prediction in zip(texts, found, strict=True):
        logits = alone(classifier.model, Bytes().encode(text))
        assert prediction.label == LABELS[int(logits.argmax())]
        shares = [math.exp(value) for value in logits.double().log_softmax(-1).tolist()]
        assert list(prediction.probabilities) == list(LABELS)
        assert list(prediction.probabilities.values()) == pytest.approx(shares, abs=1e-5)
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert (prediction.n_tokens, prediction.is_truncated) == (len(text.encode()), False)


@pytest.mark.parametrize("lengths", [[0], [3, 0], [6], [5, 6], [-1]])
def test_a_length_that_is_not_there_is_refused(lengths):
    with pytest.raises(ValueError, match="lengths must lie between 1 and 5"):
        class_logits(MODELS["GPT-2"], torch.zeros(len(lengths), 5, dtype=torch.int64), torch.tensor(lengths))


def test_classifying_nothing_gives_nothing():
    classifier = Classifier(MODELS["GPT-2"], Bytes(), labels=LABELS)
    assert classifier.classify([]) == []
    assert classifier.logits([]).shape == (0, 3)


def test_an_empty_text_is_refused_by_its_number():
    classifier = Classifier(MODELS["GPT-2"], Bytes(), labels=LABELS)
    with pytest.raises(ValueError, match="text 1 is empty"):
        classifier.classify(["a", "", ""])
    with pytest.raises(ValueError, match="empty"):
        classifier.encode("")


def test_of_a_longer_text_the_beginning_is_read_and_that_is_told():
    classifier = Classifier(MODELS["GPT-2"], Bytes(), labels=LABELS, max_length=4)
    longer, whole = classifier.classify(["wxyz and more", "wxyz"])

    assert (longer.n_tokens, longer.is_truncated) == (4, True)
    assert (whole.n_tokens, whole.is_truncated) == (4, False)
    assert longer.probabilities == pytest.approx(whole.probabilities, abs=1e-6)
    assert Classifier(MODELS["GPT-2"], Bytes(), labels=LABELS).max_length == CONTEXT


def test_dropout_is_off_while_classifying():
    model = made().train()
    classifier = Classifier(model, Bytes(), labels=LABELS)
    first = classifier.logits(["spam and eggs"])

    assert not model.training
    assert torch.equal(model.train() and classifier.logits(["spam and eggs"]), first)


def test_a_model_with_damaged_weights_gives_no_answer():
    model = made()
    with torch.no_grad():
        model.final_norm.scale[0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        Classifier(model, Bytes(), labels=LABELS).classify(["spam"])


@pytest.mark.parametrize("kind", ["GPT-2", "rotary"])
def test_a_classifier_reads_bfloat16_weights_and_answers_in_float32(kind):
    model = made(kind).bfloat16()
    found = Classifier(model, Bytes(), labels=LABELS).logits(["spam", "spam and eggs"])

    assert found.dtype == torch.float32
    expected = torch.stack([alone(model, Bytes().encode(text)) for text in ("spam", "spam and eggs")])
    torch.testing.assert_close(found, expected.float(), atol=0.15, rtol=0.02)


def test_a_folded_classifier_reads_no_case_and_no_digits_and_stays_so_when_it_is_saved(tmp_path):
    plain = Classifier(MODELS["GPT-2"], Bytes(), labels=LABELS)
    folded = Classifier(MODELS["GPT-2"], Bytes(), labels=LABELS, folded=True)
    again = load_classifier(folded.save(tmp_path / "spam"), read_tokenizer=Bytes.read)

    assert folded.logits(["WIN 90 now"]).equal(plain.logits(["win 00 now"]))
    assert not folded.logits(["WIN 90 now"]).equal(plain.logits(["WIN 90 now"]))
    assert again.folded
    assert again.classify(["WIN 90 now"]) == folded.classify(["win 17 NOW"])
    with pytest.raises(ValueError, match="folded must be True or False"):
        Classifier(MODELS["GPT-2"], Bytes(), labels=LABELS, folded=1)


def test_encode_all_takes_another_tokenizer_for_once():
    classifier = Classifier(MODELS["GPT-2"], Bytes(), labels=LABELS, max_length=3)

    assert classifier.encode_all(["abcd", "z"]) == [[97, 98, 99], [122]]
    assert classifier.encode_all(["abcd", "z"], Bytes(shift=1)) == [[98, 99, 100], [123]]
    with pytest.raises(ValueError, match="empty"):
        classifier.encode_all(["a", ""])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["ham", "spam"], "tells 3 classes apart, got 2 labels .ham, spam."),
        (["ham", "spam", "ham"], "give a different one for each class"),
        ([], "got 0 labels"),
        ("abc", "must be a list of printable names"),
        ({"a", "b", "c"}, "must be a list of printable names"),
        (["a", "b", "c\x1b[31m"], "must be a list of printable names"),
        ([0, 1, 2], "must be a list of printable names"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        Classifier(MODELS["GPT-2"], Bytes(), labels=labels)


def test_a_model_without_a_class_head_is_refused_with_the_way_out():
    model = GPTModel(replace(CONFIG, n_classes=None))
    with pytest.raises(ValueError, match=r"predicts tokens.*with_class_head\(model, n_classes=2\)"):
        Classifier(model, Bytes(), labels=["ham", "spam"])


@pytest.mark.parametrize("max_length", [0, -3, CONTEXT + 1, True, 2.0, "8"])
def test_a_max_length_that_the_model_cannot_read_is_refused(max_length):
    with pytest.raises(ValueError, match=f"max_length must be a whole number from 1 to {CONTEXT}"):
        Classifier(MODELS["GPT-2"], Bytes(), labels=LABELS, max_length=max_length)


# --- a checkpoint that knows its labels


def test_saving_and_loading_keeps_the_answers_bit_for_bit_and_all_that_makes_them(tmp_path):
    classifier = Classifier(
        made("rotary"), Bytes(shift=3), labels=LABELS, template="{subject}\n{body}", max_length=9)
    classifier.save(tmp_path / "spam", provenance={"data": "texts.csv"})
    again = load_classifier(tmp_path / "spam", read_tokenizer=Bytes.read)
    texts = ["a", "spam and eggs", "\u00e4" * 30]

    assert torch.equal(again.logits(texts), classifier.logits(texts))
    assert again.classify(texts) == classifier.classify(texts)
    assert (again.labels, again.max_length, again.template.text) == (LABELS, 9, "{subject}\n{body}")
    assert again.template.render({"subject": "s", "body": "{b}"}) == "s\n{b}"
    assert again.tokenizer.shift == 3
    provenance = load_checkpoint(tmp_path / "spam").provenance
    assert provenance["data"] == "texts.csv"
    assert {"python", "torch", "gpt-core", "gpt-finetune"} <= provenance["versions"].keys()


def test_what_extra_writes_is_part_of_the_checkpoint(tmp_path):
    classifier = Classifier(made(), Bytes(), labels=LABELS)
    classifier.save(tmp_path / "spam", extra=lambda folder: (folder / "notes.txt").write_text("hi", encoding="utf-8"))
    (tmp_path / "spam" / "notes.txt").write_text("ho", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        load_classifier(tmp_path / "spam", read_tokenizer=Bytes.read)


def test_a_checkpoint_that_names_max_length_and_template_nowhere_gets_the_defaults(tmp_path):
    save_checkpoint(tmp_path / "spam", made(), tokenizer=Bytes(), provenance={"labels": list(LABELS)})
    found = load_classifier(tmp_path / "spam", read_tokenizer=Bytes.read)

    assert (found.max_length, found.template.text) == (CONTEXT, "{text}")


@pytest.mark.parametrize(
    ("config", "tokenizer", "provenance", "message"),
    [
        (replace(CONFIG, n_classes=None), Bytes(), {"labels": ["a", "b"]}, "predicts tokens, no classifier"),
        (CONFIG, None, {"labels": list(LABELS)}, r"holds no tokenizer\.json"),
        (CONFIG, Bytes(), {}, "names no labels for its 3 classes"),
        (CONFIG, Bytes(), {"labels": "abc"}, "names no labels"),
        (CONFIG, Bytes(), {"labels": [0, 1, 2]}, "names no labels"),
        (CONFIG, Bytes(), {"labels": ["a", "b"]}, "cannot be used as a classifier: .* got 2 labels"),
        (CONFIG, Bytes(), {"labels": ["a", "b", "b"]}, "a different one for each class"),
        (CONFIG, Bytes(), {"labels": list(LABELS), "max_length": CONTEXT + 1}, "max_length must be"),
        (CONFIG, Bytes(), {"labels": list(LABELS), "max_length": "8"}, "max_length must be"),
        (CONFIG, Bytes(), {"labels": list(LABELS), "template": "{"}, "template"),
        (CONFIG, Bytes(), {"labels": list(LABELS), "template": 5}, "cannot be used as a classifier"),
    ],
)
def test_what_is_no_checkpoint_of_a_classifier_is_refused(tmp_path, config, tokenizer, provenance, message):
    save_checkpoint(tmp_path / "spam", GPTModel(config), tokenizer=tokenizer, provenance=provenance)
    with pytest.raises(DataError, match=message):
        load_classifier(tmp_path / "spam", read_tokenizer=Bytes.read)


def test_a_tokenizer_that_its_reader_refuses_is_told_with_the_folder(tmp_path):
    Classifier(made(), Bytes("no number"), labels=LABELS).save(tmp_path / "spam")
    with pytest.raises(DataError, match="spam cannot be used as a classifier: invalid literal"):
        load_classifier(tmp_path / "spam", read_tokenizer=lambda path: int(Path(path).read_text(encoding="utf-8")))


def test_damaged_weights_are_refused(tmp_path):
    Classifier(made(), Bytes(), labels=LABELS).save(tmp_path / "spam")
    path = tmp_path / "spam" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_classifier(tmp_path / "spam", read_tokenizer=Bytes.read)


def test_lora_is_saved_merged_and_goes_on_unmerged(tmp_path):
    classifier = Classifier(made("LoRA"), Bytes(), labels=LABELS)
    texts = ["spam", "spam and eggs"]
    before, parameters = classifier.logits(texts), lora_parameters(classifier.model)
    again = load_classifier(classifier.save(tmp_path / "spam"), read_tokenizer=Bytes.read)

    assert lora_parameters(again.model) == []
    torch.testing.assert_close(again.logits(texts), before, atol=1e-4, rtol=0)
    assert torch.equal(classifier.logits(texts), before)
    assert all(a is b for a, b in zip(lora_parameters(classifier.model), parameters, strict=True))


# --- a class head on a language model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_class_head_is_drawn_from_its_seed_alone_and_changes_nothing_else(tied):
    torch.manual_seed(1)
    model = GPTModel(replace(CONFIG, n_classes=None, tie_weights=tied))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(2)
    state = torch.get_rng_state()
    first = with_class_head(model, 3, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    second, other = with_class_head(model, 3, seed=7), with_class_head(model, 3, seed=8)

    assert torch.equal(first.out_head.weight, second.out_head.weight)
    assert torch.equal(first.out_head.bias, second.out_head.bias)
    assert not torch.equal(first.out_head.weight, other.out_head.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.n_classes is None
    for name, tensor in first.state_dict().items():
        if not name.startswith("out_head."):
            assert tensor.data_ptr() == model.state_dict()[name].data_ptr(), name
    assert first.config == replace(model.config, n_classes=3, tie_weights=False)
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_a_class_head_is_spread_as_torchs_linear_is():
    model = GPTModel(replace(CONFIG, n_classes=None, n_layers=1))
    ours = with_class_head(model, 2000, seed=0).out_head
    theirs = nn.Linear(CONFIG.emb_dim, 2000)
    for mine, torchs in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        assert float(mine.detach().std()) == pytest.approx(float(torchs.detach().std()), rel=0.05)
        assert float(mine.detach().abs().max()) == pytest.approx(CONFIG.emb_dim**-0.5, rel=0.01)
        assert float(mine.detach().abs().max()) <= CONFIG.emb_dim**-0.5


def test_a_class_head_has_the_models_dtype_and_the_dropout_that_is_asked_for():
    model = GPTModel(replace(CONFIG, n_classes=None)).bfloat16()
    found = with_class_head(model, 2, seed=0, drop_rate=0.0)

    assert {parameter.dtype for parameter in found.parameters()} == {torch.bfloat16}
    assert found.drop_emb.p == 0.0
    assert with_class_head(model, 2, seed=0).drop_emb.p == 0.2


def test_another_class_head_takes_the_place_of_one():
    assert with_class_head(made(), 5, seed=0).config.n_classes == 5


@pytest.mark.parametrize("n_classes", [1, 0, True, 2.0])
def test_a_class_head_needs_two_classes(n_classes):
    with pytest.raises(ValueError, match="n_classes must be None or a whole number of at least 2"):
        with_class_head(made(), n_classes, seed=0)
