"""The reader of rows: what each format accepts, and where a fault is said to be."""

import csv
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune.lines import LONGEST
from gpt_finetune.rows import LeftOut, Row
from gpt_finetune.tables import read_rows
from gpt_train import DataError


@pytest.fixture
def rows(tmp_path):
    def read(data, suffix=".csv", wanted=("text",), columns=None):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return list(read_rows(path, wanted, columns=columns))

    return read


def places(found):
    return [(row.line, row.fields["text"]) if isinstance(row, Row) else (row.line, row.column) for row in found]


def test_a_csv_field_in_quotes_holds_commas_quotes_and_line_ends(rows):
    found = rows('label,text\r\nham,"a, ""b""\r\nc"\r\nspam,d"e\r\n')
    assert found == [Row(2, {"text": 'a, "b"\r\nc'}), Row(4, {"text": 'd"e'})]


def test_in_a_tsv_a_quote_is_an_ordinary_character(rows):
    found = rows('ham\t"a\nspam\tb"\nham\tc,d\n', ".tsv", columns=["label", "text"])
    assert found == [Row(1, {"text": '"a'}), Row(2, {"text": 'b"'}), Row(3, {"text": "c,d"})]


def test_each_line_of_a_txt_is_a_text(rows):
    assert places(rows('a\t"b\n\nc, d', ".txt")) == [(1, 'a\t"b'), (2, None), (3, "c, d")]


def test_each_line_of_a_jsonl_is_an_object(rows):
    found = rows('{"text": "a\\nb", "x": [1]}\n\n{"TEXT": "\\ud83d\\ude00"}', ".jsonl")
    assert [row.fields["text"] for row in found if isinstance(row, Row)] == ["a\nb", "\U0001f600"]
    assert found[1] == LeftOut(2, "the row is empty", is_fault=False)


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2)))
def test_what_pythons_csv_module_writes_is_read_back(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("csv") / "file.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *table])
    found = list(read_rows(path, ["a", "b"]))

    assert [list(row.fields.values()) for row in found if isinstance(row, Row)] == [row for row in table if any(row)]
    assert len(found) == len(table)


@given(st.text(st.sampled_from('a,"\n\r')), st.sampled_from([".csv", ".tsv", ".txt", ".jsonl"]))
def test_every_line_ends_in_one_row_or_in_one_fault(tmp_path_factory, text, suffix):
    """A row that is kept begins where the one before it ended, so no line is passed over, none is read twice."""
    path = tmp_path_factory.mktemp("rows") / f"file{suffix}"
    path.write_bytes(text.encode())
    found = list(read_rows(path, ["text"], columns=["text"] if suffix in (".csv", ".tsv") else None))
    n_lines = text.count("\n") + (not text.endswith("\n") and text != "")
    next_line = 1
    for row in found:
        assert row.line == next_line
        next_line += 1 + (row.fields["text"].count("\n") if isinstance(row, Row) else 0)

    assert next_line == n_lines + 1


def test_one_stray_quote_costs_one_row_and_not_the_rest_of_the_file(rows):
    found = rows('label,text\nham,"oh\n' + "ham,fine\n" * 1000)
    assert found[0] == LeftOut(2, "a quote is opened and not closed; close it, or double it (seen on line 1002)")
    assert found[1:] == [Row(line, {"text": "fine"}) for line in range(3, 1003)]


def test_a_stray_quote_that_another_one_seems_to_close_costs_one_row(rows):
    found = rows('label,text\nham,"oh\nspam,b\nham,"c, d"\nspam,e\n')
    assert places(found) == [(2, None), (3, "b"), (4, "c, d"), (5, "e")]
    assert "not doubled" in found[0].reason
    assert "(seen on line 4)" in found[0].reason


def test_a_bad_byte_within_a_row_of_several_lines_costs_that_row_only(rows):
    found = rows(b'text\n"a\nb\xe9\nc"\nd\n')
    assert places(found) == [(2, None), (5, "d")]
    assert found[0].reason.endswith("(line 3, column 2)")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".jsonl"])
@pytest.mark.parametrize(("bad", "column", "words"), [
    (b"caf\xe9 x", 4, "byte 0xe9 is not UTF-8; if the file is latin-1, convert it: iconv -f latin1 -t UTF-8"),
    ("\u00fc\u20ac".encode() + b"\xff", 3, "byte 0xff"),
    (b"a\0b", 2, "a NUL stands in the text"),
    (b"a\rb", 2, "carriage return"),
])  # fmt: skip
def test_bad_bytes_are_named_with_line_and_column(rows, suffix, bad, column, words):
    good = b'{"text": "a"}' if suffix == ".jsonl" else b"a"
    head = b"text\n" if suffix in (".csv", ".tsv") else b""
    found = rows(head + good + b"\n" + bad + b"\n" + good + b"\n", suffix)
    line = 3 if head else 2

    assert [row.line for row in found] == [line - 1, line, line + 1]
    fault = found[1]
    if suffix == ".jsonl" and b"\r" in bad:
        words, column = "no JSON", 1
    assert words in fault.reason
    assert fault.column == (None if suffix == ".csv" and b"\r" in bad else column)


@pytest.mark.parametrize(("line", "words"), [
    ("{", "no JSON"),
    ("[1]", "must be a JSON object, found a list"),
    ("12", "must be a JSON object, found a int"),
    ('{"text": NaN}', "NaN is no JSON"),
    ('{"text": -Infinity}', "-Infinity is no JSON"),
    ('{"text": "a", "text": "b"}', "the name 'text' stands twice"),
    ('{"text": "a", "x": {"y": 1, "y": 2}}', "the name 'y' stands twice"),
    ('{"Text": "a", "TEXT": "b"}', "more than one field 'text'"),
    ('{"body": "a"}', "no field 'text' (it has 'body')"),
    ("{}", "no field 'text' (it has none)"),
    ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ('{"text": "a", "n": ' + "9" * 5000 + "}", "refused"),
    ('{"text": "a"} {"text": "b"}', "no JSON: Extra data"),
    ("{'text': 'a'}", "no JSON"),
])  # fmt: skip
def test_a_bad_json_line_is_a_fault_and_the_next_is_read(rows, line, words):
    found = rows(f'{line}\n{{"text": "b"}}\n', ".jsonl")
    assert found[0].is_fault
    assert words in found[0].reason
    assert found[1] == Row(2, {"text": "b"})


def test_many_names_in_an_object_are_compared_in_linear_time(rows):
    names = ", ".join(f'"{i}": 0' for i in range(200_000))
    assert "'7' stands twice" in rows(f'{{{names}, "7": 1}}', ".jsonl")[0].reason


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_row_with_other_than_the_named_number_of_fields_is_a_fault(rows, suffix):
    tab = "," if suffix == ".csv" else "\t"
    found = rows("label,text\nham,a,b\nham\nham,c\n".replace(",", tab), suffix)
    assert [row.reason.split(";")[0] for row in found[:2]] == [
        "the row has 3 fields instead of 2", "the row has 1 fields instead of 2"]
    assert found[2:] == [Row(4, {"text": "c"})]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_byte_order_mark_and_a_missing_last_line_end_change_nothing(rows, suffix, end, mark, last):
    lines = ['{"text": "a"}', '{"text": "b"}'] if suffix == ".jsonl" else ["a", "b"]
    lines = (["text"] if suffix in (".csv", ".tsv") else []) + lines
    found = rows(mark + end.join(lines) + end * last, suffix)
    assert [row.fields["text"] for row in found] == ["a", "b"]


def test_empty_rows_are_left_out_without_fault(rows):
    found = rows('label,text\n\nham,a\n  \n,\n"",""\nham,b\n\n')
    assert [(row.line, isinstance(row, Row) or row.is_fault) for row in found] == [
        (2, False), (3, True), (4, False), (5, False), (6, False), (7, True), (8, False)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".jsonl"])
def test_a_line_that_is_too_long_is_a_fault_that_takes_little_memory(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    good = b'{"text": "a"}\n' if suffix == ".jsonl" else b"a\n"
    with path.open("wb") as file:
        file.write(b"text\n" if suffix in (".csv", ".tsv") else b"")
        file.write(good)
        for _ in range(40):
            file.write(b"x" * 2**20)
        file.write(b"\n" + good)
    tracemalloc.start()
    found = list(read_rows(path, ["text"]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert [isinstance(row, Row) for row in found] == [True, False, True]
    assert found[1].reason.startswith("the line has more than 16,777,216 bytes")
    assert peak < 2.2 * LONGEST


def test_a_quote_that_is_not_closed_within_a_megabyte_is_given_up(rows):
    """Each line opens a quote that each next one closes and opens anew: without the limit, a whole file each time."""
    line = "x" * 9_000 + '","' + "y" * 9_000 + "\n"
    n_lines = 3 * 2**20 // len(line)
    found = rows("text\n" + line * n_lines)
    last = 3 + 2**20 // len(line)  # the row of names, the row's first line, those there is room for, and one more

    assert found[0] == LeftOut(2, f"a quote is opened and not closed; close it, or double it (seen on line {last})")
    assert [row.line for row in found] == list(range(2, n_lines + 2))


def test_a_long_field_names_pythons_limit_and_the_way_out(rows):
    limit = csv.field_size_limit()
    found = rows("text\n" + "a" * (limit + 1) + "\nb\n")
    assert "field_size_limit" in found[0].reason
    assert found[1] == Row(3, {"text": "b"})
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_a_utf16_file_is_called_one(rows, encoding):
    data = "label,text\nham,a\n"
    encoded = b"\xfe\xff" + data.encode(encoding) if encoding == "utf-16-be" else data.encode(encoding)
    with pytest.raises(DataError, match=r"file\.csv is UTF-16; convert it: iconv -f UTF-16"):
        rows(encoded)


@pytest.mark.parametrize("suffix", [".xlsx", "", ".json", ".csv.gz"])
def test_another_suffix_is_refused_with_the_known_ones(rows, suffix):
    with pytest.raises(DataError, match=r"none of \.csv, \.tsv, \.jsonl, \.txt"):
        rows("text\na\n", suffix)


def test_the_suffix_may_be_in_capitals(rows):
    assert rows("text\na\n", ".CSV") == [Row(2, {"text": "a"})]


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_columns_are_refused_where_a_file_has_none(rows, suffix):
    with pytest.raises(ValueError, match="columns name the fields"):
        rows("a\n", suffix, columns=["text"])


@pytest.mark.parametrize(("data", "suffix"), [
    ("label,text\nham,a\n", ".csv"), ("\n Label\tTEXT \nham\ta\n", ".tsv"), ("\ufefflabel,text\n", ".csv"),
])  # fmt: skip
def test_columns_are_refused_where_the_first_row_has_them(rows, data, suffix):
    with pytest.raises(DataError, match=r":[12]: the first row is the row of names; leave out columns"):
        rows(data, suffix, columns=["label", "text"])


def test_only_the_first_row_can_be_the_row_of_names(rows):
    found = rows("ham,a\nlabel,text\n", columns=["label", "text"])
    assert found == [Row(1, {"text": "a"}), Row(2, {"text": "text"})]
    assert rows("text\n", ".txt") == [Row(1, {"text": "text"})]


def test_a_missing_column_lists_those_there_are_and_the_way_out(rows):
    with pytest.raises(DataError, match=r"no column 'text' \(it has 'ham', 'Hi'\).*with columns"):
        rows("ham\tHi\nspam\tBuy\n", ".tsv")


def test_a_name_is_matched_exactly_before_it_is_matched_without_case(rows):
    assert rows("Text,text,LABEL\na,b,c\n", wanted=("text", "label")) == [Row(2, {"text": "b", "label": "c"})]
    with pytest.raises(DataError, match="more than one column 'text'"):
        rows("Text,TEXT\na,b\n")
    with pytest.raises(DataError, match="more than one column 'text'"):
        rows("text,text\na,b\n")


@pytest.mark.parametrize(("data", "words"), [
    (b'"text\na\n', r":1: a quote is opened"),
    (b"te\xffxt\na\n", r":1:3: byte 0xff"),
    (b"\n\nte\0xt\na\n", r":3:3: a NUL"),
])
def test_a_row_of_names_that_cannot_be_read_is_always_an_error(rows, data, words):
    with pytest.raises(DataError, match=r"file\.csv" + words):
        rows(data)


def test_control_characters_of_a_file_do_not_reach_the_terminal(rows):
    with pytest.raises(DataError) as caught:
        rows("\x1b]0;gotcha\x07,b\na,b\n")
    assert caught.value.args[0].isprintable()
