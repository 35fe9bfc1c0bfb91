import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune.labelled import LabelledTexts, Template, Texts, read_labelled, read_texts, require_classes
from gpt_finetune.rows import LeftOut
from gpt_train import DataError

SPAM = Path(__file__).resolve().parents[4] / "shared" / "data" / "SMSSpamCollection.tsv"


@pytest.fixture
def write(tmp_path):
    def write(text, suffix=".csv"):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_every_row_of_the_spam_collection_is_read():
    """pandas' default quoting loses two rows of ham; 4,827 and 747 are the archive's own figures."""
    if not SPAM.exists():
        pytest.skip("the real SMSSpamCollection.tsv is not beside the repository")
    data = read_labelled(SPAM, columns=["label", "text"])
    lines = SPAM.read_text(encoding="utf-8").split("\n")[:-1]

    assert data.counts == {"ham": 4827, "spam": 747}
    assert data.n_rows == len(data) == len(lines) == 5574
    assert [f"{label}\t{text}" for label, text in zip(data.labels, data.texts, strict=True)] == lines
    assert data.lines == tuple(range(1, 5575))
    assert data.left_out == ()


def test_the_books_csv_with_columns_in_capitals_is_read(write):
    data = read_labelled(write('Label,Text\n0,"Hi, you"\n1,Buy\n'))
    assert (data.labels, data.texts, data.lines) == (("0", "1"), ("Hi, you", "Buy"), (2, 3))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_the_formats_give_the_same(write, suffix):
    rows = [("ham", "a"), ("spam", "b")]
    if suffix == ".jsonl":
        text = "\n".join(json.dumps({"label": label, "text": text}) for label, text in rows)
    else:
        text = "\n".join(("," if suffix == ".csv" else "\t").join(row) for row in [("label", "text"), *rows])
    data = read_labelled(write(text, suffix))
    assert list(zip(data.labels, data.texts, strict=True)) == rows


def test_a_template_makes_the_text_of_several_columns(write):
    path = write("subject,body,kind\nHi {body},you,ham\n")
    data = read_labelled(path, template="Subject: {subject}\n\n{body} {{}}", label="kind")
    assert data.texts == ("Subject: Hi {body}\n\nyou {}",)


@given(st.text(), st.text(), st.text())
def test_a_field_is_put_in_once_and_never_read_as_a_template(before, value, other):
    literal = before.replace("{", "{{").replace("}", "}}")
    template = Template(f"{literal}{{a}}|{{b}}{{a}}")
    assert template.fields == ("a", "b")
    assert template.render({"a": value, "b": other}) == f"{before}{value}|{other}{value}"


@pytest.mark.parametrize("text", [
    "{text.__class__}", "{text[0]}", "{text!r}", "{text:>10}", "{text:{width}}", "{}", "{ }", "{text", "text}",
    "no name", "", "{0.__init__.__globals__}",
])  # fmt: skip
def test_anything_but_plain_names_in_a_template_is_refused(text):
    with pytest.raises(ValueError, match="template"):
        Template(text)


def test_a_column_may_have_a_name_with_spaces():
    assert Template("{Review Text}").render({"Review Text": "x"}) == "x"


def test_a_template_that_shows_the_label_is_refused(write):
    with pytest.raises(ValueError, match="shows the label"):
        read_labelled(write("Label,text\nham,a\n"), template="{Label}: {text}")


@pytest.mark.parametrize(
    ("value", "label"),
    [('"spam"', "spam"), ("1", "1"), ("-3", "-3"), ("true", "true"), ("false", "false"), ('" ham "', "ham")],
)
def test_a_json_label_may_be_text_a_whole_number_or_a_truth(write, value, label):
    data = read_labelled(write(f'{{"label": {value}, "text": "a"}}', ".jsonl"))
    assert data.labels == (label,)


@pytest.mark.parametrize(("row", "words"), [
    ('{"label": "a", "text": 12}', "'text' must be text, found a int"),
    ('{"label": "a", "text": null}', "'text' must be text, found a NoneType"),
    ('{"label": "a", "text": ["x"]}', "'text' must be text, found a list"),
    ('{"label": "a", "text": "\\ud800"}', r"half a surrogate pair (\ud800)"),
    ('{"label": "a", "text": "x\\u0000"}', "a NUL"),
    ('{"label": 1.5, "text": "x"}', "found a float"),
    ('{"label": 1e400, "text": "x"}', "the number 1e400 is too large"),
    ('{"label": null, "text": "x"}', "found a NoneType"),
    ('{"label": "", "text": "x"}', "the label is empty"),
    ('{"label": " ", "text": "x"}', "the label is empty"),
    ('{"label": "a\\u001b", "text": "x"}', "cannot be printed"),
    ('{"label": "\\udc00", "text": "x"}', "cannot be printed"),
    ('{"text": "x"}', "no field 'label'"),
])  # fmt: skip
def test_a_bad_value_is_an_error_with_file_and_line_or_is_left_out(write, row, words):
    path = write('{"label": "a", "text": "b"}\n' + row + "\n", ".jsonl")
    with pytest.raises(DataError) as caught:
        read_labelled(path)
    assert caught.value.args[0].startswith(f"{path}:2: ")
    assert words in caught.value.args[0]

    data = read_labelled(path, max_bad=1)
    assert data.texts == ("b",)
    assert [fault.line for fault in data.left_out] == [2]
    assert words in data.left_out[0].reason


def test_the_column_of_a_fault_stands_behind_its_line(write):
    with pytest.raises(DataError, match=r"file\.csv:3:8: byte 0xe9"):
        read_labelled(write(b"label,text\nham,a\nham,caf\xe9\n"))


def test_up_to_max_bad_rows_are_left_out_and_the_next_is_the_error(write):
    path = write("label,text\nham,a\nham\nspam,b\n,c\nham,d\n")
    data = read_labelled(path, max_bad=2)

    assert (data.texts, data.lines, data.n_rows) == (("a", "b", "d"), (2, 4, 6), 5)
    assert [(fault.line, fault.is_fault) for fault in data.left_out] == [(3, True), (5, True)]
    with pytest.raises(DataError, match=r":5: the label is empty \(it is one more than max_bad=1 allows\)"):
        read_labelled(path, max_bad=1)
    with pytest.raises(DataError, match=r":3: .*\(max_bad=1 would leave the row out\)"):
        read_labelled(path)


def test_rows_without_text_are_left_out_and_do_not_count_as_bad(write):
    data = read_labelled(write('label,text\nham,\nspam,"  \n "\n\nham,a\n'))
    assert data.texts == ("a",)
    assert data.left_out == (
        LeftOut(2, "the row has no text", is_fault=False), LeftOut(3, "the row has no text", is_fault=False),
        LeftOut(5, "the row is empty", is_fault=False))
    assert data.n_rows == 4


def test_a_row_whose_fields_are_all_empty_has_no_text_whatever_the_template_adds(write):
    data = read_labelled(write("a,b,label\n,,x\n,1,y\n"), template="A: {a} B: {b}")
    assert data.texts == ("A:  B: 1",)


@pytest.mark.parametrize("text", ["", "\ufeff", "\n\n", "label,text\n", "label,text\nham,\n"])
def test_a_file_without_a_text_is_an_error(write, text):
    with pytest.raises(DataError, match=r"file\.csv has "):
        read_labelled(write(text))


def test_a_row_of_names_is_no_text_where_columns_are_given(write):
    path = write("Label,Text\nham,a\n")
    with pytest.raises(DataError) as caught:
        read_labelled(path, columns=["label", "text"])
    assert caught.value.args[0] == f"{path}:1: the first row is the row of names; leave out columns"


def test_a_txt_has_no_labels(write):
    with pytest.raises(DataError, match="texts without labels"):
        read_labelled(write("a\n", ".txt"))


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_labelled(tmp_path / "none.csv")


def test_texts_are_read_without_their_labels(write):
    for path in (write("text\na\n\nb\n"), write("label,text\n,a\nspam,b\n", ".CSV"), write("a\n\nb\n", ".txt")):
        found = read_texts(path)
        assert type(found) is Texts
        assert found.texts == ("a", "b")


def test_a_txt_has_the_one_column_text(write):
    assert read_texts(write("a\n", ".txt"), template="<{text}>").texts == ("<a>",)
    with pytest.raises(DataError, match=r"no column 'body' \(it has 'text'\)"):
        read_texts(write("a\n", ".txt"), template="{body}")


@pytest.mark.parametrize("wrong", [{"max_bad": -1}, {"max_bad": True}, {"max_bad": 1.5}, {"columns": "label,text"}])
def test_a_bad_argument_is_refused(write, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        read_labelled(write("label,text\nham,a\n"), **wrong)


def test_a_selection_has_the_rows_asked_for_in_their_order(write):
    data = read_labelled(write("label,text\nham,a\nspam,b\nham,\nham,c\n")).select([2, 0])
    assert (data.texts, data.labels, data.lines) == (("c", "a"), ("ham", "ham"), (5, 2))
    assert data.left_out == ()


def test_texts_labels_and_lines_must_be_as_many():
    with pytest.raises(ValueError, match="each text needs a label"):
        LabelledTexts(source="s", texts=("a",), labels=(), lines=(1,))
    with pytest.raises(ValueError, match="each text needs a line"):
        Texts(source="s", texts=("a",), lines=())


def test_classes_are_the_sorted_labels():
    data = LabelledTexts(source="s.csv", texts=("a", "b", "c"), labels=("x", "a", "x"), lines=(1, 2, 3))
    assert data.classes() == ["a", "x"]
    assert data.counts == {"a": 1, "x": 2}
    assert require_classes(data) == ["a", "x"]
    with pytest.raises(DataError, match=r"s\.csv has 1 of the 2 labels that a classifier needs \('x'\)"):
        require_classes(data.select([0]))
