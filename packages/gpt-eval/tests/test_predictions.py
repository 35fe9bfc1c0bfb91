import math
import re

import numpy as np
import pytest

from gpt_eval import evaluate_classifier, plot_calibration, plot_roc
from gpt_eval.predictions import check_positive, check_predictions

GOOD = [[0.9, 0.1], [0.2, 0.8]]


def refused(match, labels=("ham", "spam"), probabilities=GOOD, classes=("ham", "spam")):
    """Each function that takes predictions refuses them, in the same words."""
    for function in (evaluate_classifier, plot_roc, plot_calibration):
        with pytest.raises(ValueError, match=match):
            function(labels, probabilities, classes=classes)


def test_predictions_hold_places_of_classes_and_the_first_of_equals_is_predicted():
    probabilities = np.array([[0.5, 0.5], [0, 1], [1, 0]], np.float32)
    seen = check_predictions(np.array(["b", "a", "b"]), probabilities, classes=["a", "b"])

    assert seen.truth.tolist() == [1, 0, 1]
    assert seen.predicted.tolist() == [0, 1, 0]
    assert seen.confidence.tolist() == [0.5, 1, 1]
    assert seen.is_right.tolist() == [False, False, False]


def test_labels_that_are_no_class_are_told_with_count_and_first_place():
    labels = ["ham", "spma", "spam", "Ham", "spma"]
    refused(r"'spma' 2 times, first at 1; 'Ham' 1 times, first at 3; correct them", labels, [[0.5, 0.5]] * 5)
    refused(r"first at 4 and 2 more;", [f"x{k}" for k in range(7)], [[0.5, 0.5]] * 7)


@pytest.mark.parametrize("label", [1, ["b"], None, math.nan, b"ham"])
def test_a_label_that_is_no_text_is_named_with_its_place(label):
    shown = re.escape(repr(label))
    refused(rf"labels\[1\] is {shown}, but labels must be texts; pass the classes' names, .* 'ham'", ["ham", label])


def test_no_number_among_the_probabilities_is_not_taken_for_logits():
    refused(r"probabilities\[0, 0\] is nan, .*; look in the classifier", probabilities=[[math.nan, 1], [0.2, 0.8]])
    refused(r"probabilities\[0, 0\] is -3.0, .*; logits need a softmax", probabilities=[[-3, 4], [0.2, 0.8]])


def test_labels_that_are_one_text_are_refused():
    refused("labels is the text 'hs', but", "hs", classes=("h", "s"))


def test_another_number_of_labels_than_rows_is_refused():
    refused("3 labels and 2 rows", ["ham", "spam", "ham"])


@pytest.mark.parametrize("probabilities", [[0.1, 0.9], [[0.5]] * 2, [[0.2, 0.3, 0.5]] * 2, np.zeros((2, 2, 2)), 1.0])
def test_another_shape_is_refused_and_the_shape_that_is_needed_named(probabilities):
    refused(r"has the shape .*, but 2 classes need \(N, 2\)", probabilities=probabilities)


@pytest.mark.parametrize("probabilities", [[["a", "b"]] * 2, [[0.5, 0.5], [1.0]], [[None, {}]] * 2])
def test_what_is_no_table_of_numbers_is_refused(probabilities):
    refused("probabilities must be rows of 2 numbers each", probabilities=probabilities)


def test_no_example_is_refused():
    refused("no row", [], np.zeros((0, 2)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.2, 1.2])
def test_a_value_that_is_no_probability_is_named_with_its_place(value):
    refused(rf"probabilities\[1, 1\] is {value}", probabilities=[[0.9, 0.1], [0.3, value]])


def test_rows_that_do_not_sum_to_1_are_told_and_a_float32_softmax_passes():
    refused("row 1 of probabilities sums to 0.9, .*; 1 of 2 rows", probabilities=[[0.9, 0.1], [0.3, 0.6]])

    logits = np.random.default_rng(0).normal(0, 9, (500, 50)).astype(np.float32)
    p = np.exp(logits - logits.max(1, keepdims=True))
    check_predictions(["c0"] * 500, p / p.sum(1, keepdims=True), classes=[f"c{k}" for k in range(50)])


@pytest.mark.parametrize("classes", [(), ("a",), ("a", "a"), ("a", ""), ("a", 1), "ab"])
def test_classes_that_are_not_two_different_names_are_refused(classes):
    refused("classes must be two or more different names", classes=classes)


def test_the_positive_class_is_by_default_the_last_of_two():
    assert check_positive(None, ("ham", "spam")) == "spam"
    assert check_positive("ham", ("ham", "spam")) == "ham"
    assert check_positive(None, ("a", "b", "c")) is None


def test_a_positive_class_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="positive is 'eggs', but the classes are"):
        check_positive("eggs", ("ham", "spam"))
    with pytest.raises(ValueError, match=r"of 3 classes none is the positive one; .* per_class"):
        check_positive("a", ("a", "b", "c"))
