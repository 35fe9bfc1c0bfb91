"""Preferences from files: the formats, and what a bad row is called."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune.conversation import Conversation, Message
from gpt_finetune.preference import Preference
from gpt_finetune.preference_files import read_preferences
from gpt_finetune.rows import LeftOut
from gpt_train import DataError

GOOD = {"prompt": "Hi", "chosen": "Ho", "rejected": "Ha"}


@pytest.fixture
def write(tmp_path):
    def write(*rows, suffix=".jsonl"):
        path = tmp_path / f"file{suffix}"
        text = json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def said(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]


def answer(content):
    return said(content, first="assistant")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(("row", "prompt"), [
    (GOOD, Conversation.of("Hi")),
    ({"prompt": said("Hi"), "chosen": answer("Ho"), "rejected": answer("Ha")}, Conversation.of("Hi")),
    ({"prompt": said("a", "b", "Hi"), "chosen": "Ho", "rejected": answer("Ha")}, Conversation.of("a", "b", "Hi")),
    ({"prompt": "Hi", "chosen": said("Hi", "Ho"), "rejected": said("Hi", "Ha"), "score": 1}, Conversation.of("Hi")),
    ({"chosen": said("Hi", "Ho"), "rejected": said("Hi", "Ha")}, Conversation.of("Hi")),
    ({"chosen": [{"role": "system", "content": "s"}, *said("Hi", "Ho")],
      "rejected": [{"role": "system", "content": "s"}, *said("Hi", "Ha")]}, Conversation.of("Hi", system="s")),
    ({"instruction": "Hi", "input": "you", "output": "Ho", "chosen": "Ho", "rejected": "Ha"},
     Conversation((Message(role="user", content="Hi", input="you"),))),
    ({"instruction": "Hi", "chosen": "Ho", "rejected": "Ha"}, Conversation.of("Hi")),
])  # fmt: skip
def test_each_format_gives_its_preference(write, suffix, row, prompt):
    data = read_preferences(write(row, suffix=suffix))
    assert data.preferences == (Preference(prompt, "Ho", "Ha"),)
    assert (data.lines, data.left_out, len(data)) == ((1,), (), 1)


@pytest.mark.parametrize(("row", "words"), [
    ({"prompt": "Hi", "chosen": "Ho"}, "the fields of no known format, 'prompt' and 'chosen' and 'rejected', or"),
    ({**GOOD, "instruction": "Hi"}, "the fields of several formats"),
    ({**GOOD, "prompt": 7}, "prompt must be text or a list of messages, found a int"),
    ({**GOOD, "prompt": ""}, "prompt has no text"),
    ({**GOOD, "prompt": []}, "the conversation has no message of the user"),
    ({**GOOD, "prompt": said("Hi", "Ho")}, "prompt[1] is the assistant's, but the prompt must end with the user's"),
    ({**GOOD, "prompt": answer("Hi")}, "prompt[0] is the assistant's"),
    ({**GOOD, "chosen": None}, "chosen must be text or a list of messages, found a NoneType"),
    ({**GOOD, "rejected": " "}, "rejected has no text; write an answer, or leave the row out"),
    ({**GOOD, "chosen": []}, "chosen has 0 messages, but must be the answer alone, or the prompt's messages and then"),
    ({**GOOD, "chosen": said("Hey", "Ho")}, "chosen has 2 messages"),
    ({**GOOD, "chosen": said("Ho")}, "chosen[0] is the user's, but must be the assistant's answer"),
    ({**GOOD, "chosen": "\0"}, "chosen has a NUL"),
    ({"chosen": said("Hi", "Ho"), "rejected": said("Hey", "Ha")}, "the same messages but for the last, the answer"),
    ({"chosen": said("Hi"), "rejected": said("Hi")}, "chosen[0] is the user's, but must be"),
    ({"chosen": "Ho", "rejected": "Ha"}, "chosen must be a list of messages, found a str"),
    ({"chosen": answer("Ho"), "rejected": answer("Ha")}, "the conversation has no message of the user"),
])  # fmt: skip
def test_a_bad_row_is_an_error_with_file_line_and_place_or_is_left_out(write, row, words):
    path = write(GOOD, row)
    with pytest.raises(DataError) as caught:
        read_preferences(path)
    data = read_preferences(path, max_bad=1)

    assert caught.value.args[0].startswith(f"{path}:2: ")
    assert words in caught.value.args[0]
    assert (len(data), data.left_out[0].is_fault) == (1, True)


def test_rows_without_any_answer_are_left_out_and_do_not_count_as_bad(write):
    data = read_preferences(write(GOOD, {"prompt": "Hi", "chosen": "", "rejected": " "}))
    assert data.left_out == (LeftOut(2, "the row has no answer", is_fault=False),)


def test_a_file_without_preferences_is_an_error(write):
    with pytest.raises(DataError, match="has no row; give a file with preferences"):
        read_preferences(write())


parts = st.sampled_from(["", "Hi", None, 7, [], {}]) | st.sampled_from(
    [said("Hi"), said("Hi", "Ho"), answer("Ho"), answer(""), said("Hi", "Ho", "x"), [7], [{"role": "tool"}]])
names = st.sampled_from(["prompt", "chosen", "rejected", "instruction", "input"])


@given(st.lists(st.dictionaries(names, parts) | parts, max_size=8), st.sampled_from([".json", ".jsonl"]))
def test_every_row_of_any_json_is_kept_or_left_out(tmp_path_factory, rows, suffix):
    path = tmp_path_factory.mktemp("rows") / f"file{suffix}"
    text = json.dumps([GOOD, *rows]) if suffix == ".json" else "\n".join(map(json.dumps, [GOOD, *rows]))
    path.write_text(text, encoding="utf-8")
    data = read_preferences(path, max_bad=len(rows))

    assert len(data) + len(data.left_out) == 1 + len(rows)
    assert not any(p.prompt.is_answered for p in data.preferences)
    assert all(p.chosen.strip() and p.rejected.strip() for p in data.preferences)
