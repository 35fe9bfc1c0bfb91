import dataclasses
import json

import numpy as np
import pytest

from gpt_eval import evaluate_classifier


def report(classes=("ham", "spam"), n=40, **more):
    random = np.random.default_rng(0)
    labels = [classes[k] for k in random.integers(len(classes), size=n)]
    return evaluate_classifier(
        labels, random.dirichlet(np.ones(len(classes)), n), classes=classes, n_resamples=100, **more
    )


def rows(markdown):
    tables = [part for part in markdown.split("\n\n") if part.startswith("|")]
    return [[line.strip("| ").split(" | ") for line in table.splitlines()] for table in tables]


def test_the_dict_is_what_json_gives_back_and_holds_every_field():
    ours = report()
    plain = ours.to_dict()

    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert set(plain) == {field.name for field in dataclasses.fields(ours)}
    assert plain["accuracy"]["value"] == ours.accuracy.value
    assert plain["per_class"][1]["recall"]["n"] == sum(plain["confusion"][1])


def test_the_report_cannot_be_changed_and_equals_another_of_the_same_examples():
    with pytest.raises(dataclasses.FrozenInstanceError):
        report().n = 3
    assert report() == report()
    assert report() != report(confidence=0.9)


def test_the_markdown_has_each_number_with_interval_and_count():
    ours = report(confidence=0.9)
    numbers, classes, confusion = rows(ours.to_markdown())

    assert numbers[0] == ["metric", "value", "90 % interval", "n"]
    accuracy = ours.accuracy
    line = [f"{accuracy.value:.4f}", f"{accuracy.low:.4f} to {accuracy.high:.4f}", "40"]
    assert numbers[2] == ["accuracy", *line]
    assert [row[0] for row in numbers[2:]] == [
        "accuracy", "balanced accuracy", "precision, of spam", "recall, of spam", "F1, of spam", "ROC AUC, of spam",
        "expected calibration error", "Brier score", "log loss (nats)",
    ]  # fmt: skip
    assert [row[0] for row in classes[2:]] == ["ham", "spam"]
    assert [[int(count) for count in row[1:]] for row in confusion[2:]] == [list(row) for row in ours.confusion]


def test_every_row_of_a_table_has_as_many_cells_as_its_head_whatever_the_names():
    for table in report(classes=("a|b", "two\nlines", "back\\slash")).to_markdown().split("\n\n")[:3]:
        lines = table.rstrip("\n").splitlines()
        assert len({line.replace("\\\\", "").replace("\\|", "").count("|") for line in lines}) == 1


def test_what_is_undefined_says_so_with_the_reason():
    ours = evaluate_classifier(["ham"] * 3, [[0.9, 0.1]] * 3, classes=["ham", "spam"], n_resamples=100)
    numbers, classes, _ = rows(ours.to_markdown())

    assert numbers[4] == ["precision, of spam", "undefined", "no example was called 'spam'", "0"]
    assert numbers[7] == ["ROC AUC, of spam", "undefined", "class 'spam' has no example", "3"]
    assert numbers[8][1:3] == ["0.1000", "no interval: every resample gave the same value"]
    assert classes[3] == [
        "spam", "0", "0", "undefined (no example was called 'spam')", "undefined (class 'spam' has no example)",
        "undefined (no example is 'spam' or was called it)",
    ]  # fmt: skip
    assert "nan" not in ours.to_markdown().lower()


def test_below_the_tables_stands_which_way_is_good_and_where_the_methods_are():
    explained = report().to_markdown().split("\n\n", 3)[3]

    for words in ("Expected calibration error:", "Brier score:", "Log loss:", "less\nis better", "`to_dict()`"):
        assert words in explained
    assert len(explained.splitlines()) <= 5


def test_markup_in_a_name_stays_out_of_every_table_and_reason():
    named = evaluate_classifier(["<b>"] * 3, [[0.9, 0.1]] * 3, classes=["<b>", "**x**"], n_resamples=100).to_markdown()

    assert "<" not in named
    assert "**" not in named
    assert r"no example was called '\*\*x\*\*'" in named
