"""JSON as rows: what is decoded, where a row is said to be, and what ends the reading."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune.objects import MOST_BYTES, load_json, read_objects
from gpt_finetune.rows import LeftOut, Row
from gpt_train import DataError


@pytest.fixture
def objects(tmp_path):
    def read(data, suffix=".json"):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return list(read_objects(path))

    return read


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8)  # fmt: skip


@given(st.lists(st.dictionaries(st.text(), values, max_size=4)), st.sampled_from([None, 0, 2]), st.booleans())
def test_what_pythons_json_module_writes_is_read_back_from_both_formats(tmp_path_factory, rows, indent, ascii_only):
    folder = tmp_path_factory.mktemp("json")
    (folder / "a.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows]
    (folder / "a.jsonl").write_text("".join(lines), encoding="utf-8", newline="")

    assert [row.fields for row in read_objects(folder / "a.json")] == rows
    assert list(read_objects(folder / "a.jsonl")) == [Row(line, row) for line, row in enumerate(rows, 1)]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_row_of_an_array_has_the_line_and_column_of_its_brace(objects, mark, end):
    found = objects(mark + end.join([' [ {"a": 1}, {"b": "x\\ny"},', "", "", '  { "c":', ' [2]}, {"d": 3} ] ', ""]))
    assert found == [
        Row(1, {"a": 1}, 4), Row(1, {"b": "x\ny"}, 14), Row(4, {"c": [2]}, 3), Row(5, {"d": 3}, 8)]


@pytest.mark.parametrize(("element", "words"), [
    ('{"a": 1, "a": 2}', "refused: the name 'a' stands twice"),
    ('{"a": [{"b": 1, "b": {}}]}', "refused: the name 'b' stands twice"),
    ('{"a": NaN}', "refused: NaN is no JSON"),
    ('{"a": -Infinity}', "refused: -Infinity is no JSON"),
    ('{"a": 1e400}', "refused: the number 1e400 is too large"),
    ('{"a": -1e400}', "refused: the number -1e400 is too large"),
    ('{"a": ' + "9" * 5000 + "}", "refused: a number has 5,000 digits"),
    ("[1]", "must be a JSON object, found a list"),
    ("12", "must be a JSON object, found a int"),
    ("null", "must be a JSON object, found a NoneType"),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_what_is_decoded_and_refused_is_one_bad_row(objects, element, words, suffix):
    found = objects(f'[{{"a": 0}},\n{element},\n{{"a": 9}}]' if suffix == ".json" else
                    f'{{"a": 0}}\n{element}\n{{"a": 9}}', suffix)  # fmt: skip
    assert [(row.line, isinstance(row, LeftOut)) for row in found] == [(1, False), (2, True), (3, False)]
    assert words in found[1].reason
    assert found[1].is_fault


def test_a_byte_that_is_not_utf8_costs_its_row_and_is_named_with_its_place(objects):
    found = objects('[{"a": "caf\udce9"},\n{"b": 1, "\u20ac":\n "\u00fc\udcff"}, {"c": "\u20ac"}]'.encode(
        errors="surrogateescape"))  # fmt: skip
    way = "is not UTF-8; if the file is latin-1, convert it: iconv -f latin1 -t UTF-8 OLD > NEW"
    assert found == [
        LeftOut(1, f"byte 0xe9 {way}", 12), LeftOut(2, f"byte 0xff {way} (line 3, column 4)", 1),
        Row(3, {"c": "\u20ac"}, 9)]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "words"), [
    ('[{"a": 1}', ":1:10", "Expecting ',' or ']'"),
    ('[{"a": 1} {"b": 2}]', ":1:11", "Expecting ',' or ']'"),
    ('[{"a": 1},]', ":1:11", "no JSON"),
    ('[{"a": 1}]\n[]', ":2:1", "Extra data"),
    ('[\n{"a": 1},\n{"b": "x}\n]', ":3:10", "no JSON: Invalid control character"),
    ('[{"a": "\0"}]', ":1:9", "no JSON: Invalid control character"),
    ("[{'a': 1}]", ":1:3", "no JSON"),
    ("[", ":1:2", "no JSON"),
    ('[{"a":', ":1:7", "no JSON"),
    ("[" * 100_000, ":1:2", "nested too deeply"),
    ('[\n {"a": ' + "[" * 100_000 + "]" * 100_000 + "}]", ":2:2", "nested too deeply"),
    ("", "", "it is empty"),
    ("  \n", "", "it is empty"),
    ('{"a": 1}\n{"a": 2}\n', "", "found '{' first; one with an object a line is to end in .jsonl"),
])  # fmt: skip
def test_an_array_that_cannot_be_decoded_further_is_an_error_there(objects, text, place, words):
    with pytest.raises(DataError) as caught:
        objects(text)
    message = caught.value.args[0]

    assert f"file.json{place}" in message
    assert words in message
    assert message.isprintable()


def test_what_stands_before_the_damage_is_read(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('[{"a": 1},\n{"a": 2}, {"a"', encoding="utf-8")
    rows = read_objects(path)

    assert [next(rows), next(rows)] == [Row(1, {"a": 1}, 2), Row(2, {"a": 2}, 1)]
    with pytest.raises(DataError, match=r"file\.json:2:15: it is no JSON"):
        next(rows)


def test_an_array_without_elements_has_no_row(objects):
    assert objects(" [ \n ] ") == []


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_utf16_file_is_called_one(objects, suffix, encoding):
    with pytest.raises(DataError, match="is UTF-16; convert it: iconv"):
        objects('[{"a": 1}]'.encode(encoding), suffix)


@pytest.mark.parametrize("suffix", [".csv", "", ".json.gz"])
def test_another_suffix_is_refused(objects, suffix):
    with pytest.raises(DataError, match=r"neither \.json nor \.jsonl"):
        objects("[]", suffix)


def test_a_line_of_100_megabytes_is_a_fault_of_a_jsonl_that_takes_little_memory(tmp_path):
    path = tmp_path / "file.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": "')
        file.seek(100_000_000)
        file.write(b'"}\n{"a": 1}\n')
    tracemalloc.start()
    found = list(read_objects(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert "more than 16,777,216 bytes" in found[0].reason
    assert found[1] == Row(2, {"a": 1})
    assert peak < 40_000_000


def test_an_array_with_more_bytes_than_are_held_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    path.write_text('[{"a": 1}]', encoding="utf-8")
    monkeypatch.setattr("gpt_finetune.objects.MOST_BYTES", 9)
    with pytest.raises(DataError, match="has more than 9 bytes; split it"):
        list(read_objects(path))
    with pytest.raises(DataError, match="has more than 9 bytes; split it"):
        load_json(path)
    assert MOST_BYTES == 268_435_456


def test_many_elements_on_one_line_are_read_in_linear_time(objects):
    """A quadratic count of columns would take minutes."""
    assert len(objects("[" + "1," * 200_000 + "{}]")) == 200_001


@given(st.binary() | st.text(st.sampled_from('[]{}",:1ae\\ \n\r\0\ud800\udce9\u20ac')).map(
    lambda text: ("[" + text).encode(errors="surrogatepass")), st.sampled_from([".json", ".jsonl"]))  # fmt: skip
def test_any_bytes_are_rows_or_the_packages_error(tmp_path_factory, data, suffix):
    path = tmp_path_factory.mktemp("any") / f"file{suffix}"
    path.write_bytes(data)
    try:
        found = list(read_objects(path))
    except DataError:
        return
    if suffix == ".jsonl":
        assert [row.line for row in found] == list(range(1, data.count(b"\n") + 1 + (data[-1:] not in (b"", b"\n"))))
    else:
        assert len(found) == len(json.loads(data.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")))
