import json

import pytest

from gpt_eval.answers_file import read_answers
from gpt_eval.scores import JudgeItem

ENTRY = {"instruction": "Say hi.", "input": "", "output": "Hi!", "model_response": "Hello \u00e9"}
ITEM = JudgeItem(instruction="Say hi.", output="Hi!", answer="Hello \u00e9")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps([ENTRY, ENTRY], indent=4)),
        ("a.json", "\ufeff" + json.dumps([ENTRY, ENTRY], ensure_ascii=False)),
        ("a.jsonl", f"{json.dumps(ENTRY)}\r\n\n{json.dumps(ENTRY)}"),
    ],
)
def test_items_are_read_in_order(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    assert read_answers(tmp_path / name) == [ITEM, ITEM]


def test_the_answer_may_have_another_name_and_the_input_be_missing(tmp_path):
    (tmp_path / "a.json").write_text('[{"instruction": "a", "output": "b", "mine": "c"}]', encoding="utf-8")
    assert read_answers(tmp_path / "a.json", key="mine") == [JudgeItem(instruction="a", output="b", answer="c")]


GOOD = json.dumps(ENTRY).encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", r"a\.json:1:1: no JSON"),
        ("a.json", b"[]", "holds no items"),
        ("a.jsonl", b"\n", "holds no items"),
        ("a.json", b"{}", "one object, but answers are a JSON array"),
        ("a.json", b"[" + GOOD + b",\n 5]", r"a\.json, item 2: a number, but"),
        ("a.json", b"[" + GOOD + b",\n}", r"a\.json:2:1: no JSON"),
        ("a.json", b"[" + GOOD + b"]x", "no JSON"),
        ("a.json", b"[" * 100_000, r"a\.json:1: .*nested too deep"),
        ("a.json", b'[{"instruction": "a", "output": "b"}]', "item 1: the item has no 'model_response'.*--key"),
        ("a.json", b'[{"output": "b", "model_response": "c"}]', "item 1: the item has no 'instruction'"),
        ("a.json", b'[{"instruction": 5, "output": "b", "model_response": "c"}]', "'instruction' as a number"),
        ("a.json", b'[{"instruction": "a", "input": null, "output": "b", "model_response": "c"}]', "'input' as a null"),
        ("a.json", b'[{"a": 1, "a": 2}]', r"a\.json:1: an item has 'a' twice"),
        ("a.jsonl", GOOD + b"\n{}", r"a\.jsonl:2: the item has no 'instruction'"),
        ("a.jsonl", GOOD + b"\n" + GOOD[:-1], r"a\.jsonl:2:\d+: no JSON"),
        ("a.jsonl", GOOD + b"\n\xff", r"a\.jsonl:2: byte 0xff is not UTF-8"),
        ("a.json", json.dumps([ENTRY]).encode("utf-16"), "UTF-16"),
        ("a.json", b'[{"instruction": ' + b"9" * 5000 + b"}]", r"a\.json:1: "),
    ],
)  # fmt: skip
def test_what_is_no_file_of_answers_is_named_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_answers(tmp_path / name)
