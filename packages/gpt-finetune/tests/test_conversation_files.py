"""Conversations from files: the formats, what a bad row is called, and that no row is lost."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune.conversation import Conversation, Message
from gpt_finetune.conversation_files import Conversations, read_conversations
from gpt_finetune.rows import LeftOut
from gpt_train import DataError

INSTRUCTIONS = Path(__file__).resolve().parents[4] / "shared" / "data" / "instruction-data.json"
GOOD = {"instruction": "Hi", "output": "Ho"}


@pytest.fixture
def write(tmp_path):
    def write(*rows, suffix=".jsonl"):
        path = tmp_path / f"file{suffix}"
        text = json.dumps(rows, indent=1) if suffix != ".jsonl" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def openai(*contents, roles=("user", "assistant")):
    return [{"role": roles[n % len(roles)], "content": content} for n, content in enumerate(contents)]


def test_every_row_of_the_books_instructions_is_read():
    if not INSTRUCTIONS.exists():
        pytest.skip("the real instruction-data.json is not beside the repository")
    data = read_conversations(INSTRUCTIONS)
    text = INSTRUCTIONS.read_text(encoding="utf-8")
    lines = [number for number, line in enumerate(text.split("\n"), 1) if line.strip() == "{"]

    assert len(data) == data.n_rows == 1100
    assert data.left_out == ()
    assert list(data.lines) == lines
    assert [
        {"instruction": c.messages[0].content, "input": c.messages[0].input, "output": c.answer}
        for c in data.conversations
    ] == json.loads(text)


two = Conversation.of("Hi", "Ho", "And?", "No.", system="Be brief.")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSON"])
@pytest.mark.parametrize(("row", "conversation"), [
    ({"instruction": "Add.", "input": "1 2", "output": " 3\n"},
     Conversation((Message(role="user", content="Add.", input="1 2"), Message(role="assistant", content=" 3\n")))),
    ({"instruction": "Hi", "input": "", "output": "Ho", "id": 7}, Conversation.of("Hi", "Ho")),
    ({"instruction": "Hi", "input": None, "output": "Ho"}, Conversation.of("Hi", "Ho")),
    ({"instruction": "Hi", "output": "Ho", "prompt": "Hi"}, Conversation.of("Hi", "Ho")),
    ({"id": "x", "conversations": [
        {"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"},
        {"from": "user", "value": "And?"}, {"from": "chatgpt", "value": "No."}]}, two),
    ({"messages": openai("Be brief.", "Hi", "Ho", "And?", "No.", roles=("developer", "user", "assistant", "user",
                                                                        "assistant"))}, two),
    ({"messages": openai("", "Hi", "Ho", roles=("system", "user", "assistant")), "prompt": "Hi"},
     Conversation.of("Hi", "Ho")),
    ({"messages": openai([{"type": "text", "text": "H"}, {"type": "text", "text": "i"}], "Ho")},
     Conversation.of("Hi", "Ho")),
    ({"prompt": "The sky is", "completion": " blue."}, Conversation.of("The sky is", " blue.")),
    ({"prompt": openai("Hi", "Ho", "And?"), "completion": openai("No.", roles=["assistant"])},
     Conversation.of("Hi", "Ho", "And?", "No.")),
    ({"prompt": openai("Hi"), "completion": "Ho"}, Conversation.of("Hi", "Ho")),
])  # fmt: skip
def test_each_format_gives_its_conversation(write, suffix, row, conversation):
    data = read_conversations(write(row, suffix=suffix))
    assert data.conversations == (conversation,)


def test_the_rows_of_a_file_may_have_different_formats(write):
    data = read_conversations(write(GOOD, {"messages": openai("a", "b")}, {"prompt": "c", "completion": "d"}))
    assert [c.answer for c in data.conversations] == ["Ho", "b", "d"]
    assert data.lines == (1, 2, 3)


@pytest.mark.parametrize(("row", "words"), [
    ({"messages": openai("Hi", "Ho", "x", roles=("user", "assistant", "tool"))},
     "messages[2].role is 'tool', but must be one of system, developer, user, assistant"),
    ({"messages": openai("Hi", "Ho", "And?")}, "messages[2] is the user's and has no answer"),
    ({"messages": openai("Hi", "Ho", roles=("assistant", "user"))}, "message 1 is the assistant's, but must be"),
    ({"messages": openai("Hi", "Ho", "x", roles=("user", "assistant", "assistant"))}, "message 3 is the assistant's"),
    ({"messages": openai("Hi", "Ho", "x", roles=("user", "assistant", "system"))}, "message 3 is the system's"),
    ({"messages": openai("Ho", roles=["assistant"])}, "message 1 is the assistant's"),
    ({"messages": openai("Hi", "Ho", "And?", " ")}, "messages[3] has no text"),
    ({"messages": openai("", "Ho")}, "messages[0] has no text"),
    ({"messages": openai(7, "Ho")}, "messages[0].content must be text, found a int"),
    ({"messages": openai("Hi", None)}, "messages[1].content must be text, found a NoneType"),
    ({"messages": openai("a\0", "Ho")}, "messages[0].content has a NUL"),
    ({"messages": openai("Hi", [{"type": "image_url", "image_url": "x"}])},
     "messages[1].content[0].type is 'image_url', but only 'text' can be read"),
    ({"messages": openai("Hi", [{"type": []}])}, "messages[1].content[0].type is a list"),
    ({"messages": openai("Hi", ["Ho"])}, "messages[1].content[0] must be an object, found a str"),
    ({"messages": openai("Hi", [{"type": "text"}])}, "messages[1].content[0] has no 'text' (it has 'type')"),
    ({"messages": ["Hi", "Ho"]}, "messages[0] must be an object, found a str"),
    ({"messages": [{"from": "human", "value": "Hi"}]}, "messages[0] has no 'role' (it has 'from', 'value')"),
    ({"messages": [{"role": ["user"], "content": "Hi"}]}, "messages[0].role must be text, found a list"),
    ({"messages": "Hi"}, "messages must be a list of messages, found a str"),
    ({"messages": {}}, "messages must be a list of messages, found a dict"),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "bing", "value": "Ho"}]},
     "conversations[1].from is 'bing', but must be one of system, human, user, gpt, assistant, chatgpt"),
    ({"instruction": "", "input": "  ", "output": "Ho"}, "instruction has no text"),
    ({"instruction": 1, "output": "Ho"}, "instruction must be text, found a int"),
    ({"instruction": "Hi", "input": ["x"], "output": "Ho"}, "input must be text, found a list"),
    ({"instruction": "Hi", "output": openai("Ho")}, "output must be text, found a list"),
    ({"instruction": "Hi", "output": "\ud800"}, "output has half a surrogate pair (\\ud800)"),
    ({"prompt": "Hi", "completion": None}, "completion must be text or a list of messages, found a NoneType"),
    ({"prompt": "", "completion": "Ho"}, "prompt has no text"),
    ({"instruction": "Hi", "output": "Ho", "messages": openai("Hi", "Ho")},
     "the fields of several formats, 'instruction' with 'output', and 'messages'; keep those of one"),
    ({"instruction": "Hi"}, "the fields of no known format, 'instruction' and 'output', or 'conversations', or "),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, "(it has 'prompt', 'chosen', 'rejected')"),
    ({}, "(it has none)"),
    ([GOOD], "must be a JSON object, found a list"),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_bad_row_is_an_error_with_file_line_and_place_or_is_left_out(write, suffix, row, words):
    path = write(GOOD, row, GOOD, suffix=suffix)
    line = ":6:2: " if suffix == ".json" else ":2: "  # json.dump puts a field a line
    with pytest.raises(DataError) as caught:
        read_conversations(path)
    message = caught.value.args[0]
    data = read_conversations(path, max_bad=1)

    assert message.startswith(f"{path}{line}")
    assert words in message
    assert message.endswith("(max_bad=1 would leave the row out)")
    assert (len(data), data.n_rows) == (2, 3)
    assert data.left_out[0].is_fault
    assert data.left_out[0].located(path) == message.removesuffix(" (max_bad=1 would leave the row out)")


@pytest.mark.parametrize("row", [
    {"instruction": "Hi", "output": ""},
    {"instruction": "", "output": " \n"},
    {"messages": []},
    {"messages": openai("Hi")},
    {"messages": openai("Hi", "", "And?", "")},
    {"conversations": [{"from": "system", "value": "Be brief."}]},
    {"prompt": "Hi", "completion": ""},
    {"prompt": [], "completion": []},
])  # fmt: skip
def test_rows_without_any_answer_are_left_out_and_do_not_count_as_bad(write, row):
    data = read_conversations(write(GOOD, row, GOOD))
    assert (len(data), data.n_rows, data.lines) == (2, 3, (1, 3))
    assert data.left_out == (LeftOut(2, "the row has no answer", is_fault=False),)


def test_empty_lines_are_left_out_and_do_not_count_as_bad(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\r\n\r\n{"prompt": "c", "completion": "d"}')
    data = read_conversations(path)
    assert data.lines == (1, 3)
    assert data.left_out == (LeftOut(2, "the row is empty", is_fault=False),)


def test_up_to_max_bad_rows_are_left_out_and_the_next_is_the_error(write):
    path = write(GOOD, {}, {}, GOOD)
    assert read_conversations(path, max_bad=2).lines == (1, 4)
    with pytest.raises(DataError, match=r"file\.jsonl:3: .*\(it is one more than max_bad=1 allows\)"):
        read_conversations(path, max_bad=1)
    for wrong in (-1, True, 1.5):
        with pytest.raises(ValueError, match="max_bad must be a whole number"):
            read_conversations(path, max_bad=wrong)


@pytest.mark.parametrize(("text", "suffix", "words"), [
    ("", ".jsonl", "has no row; give a file with conversations"),
    ("[]", ".json", "has no row; give a file with conversations"),
    ('[{"prompt": "a", "completion": ""}]', ".json", "only rows left out, the first because the row has no answer"),
    ('{"data": []}', ".json", "must be an array of objects, found '{' first"),
    ('[{"prompt": "a", "completion": "b"}', ".json", "Expecting ',' or ']'; mend the file"),
    ("a,b\n", ".csv", "neither .json nor .jsonl"),
])  # fmt: skip
def test_a_file_that_gives_no_conversation_is_an_error_whatever_max_bad_is(tmp_path, text, suffix, words):
    path = tmp_path / f"file{suffix}"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_conversations(path, max_bad=100)
    assert caught.value.args[0].startswith(str(path))
    assert words in caught.value.args[0]


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_conversations(tmp_path / "none.json")


def test_a_selection_has_the_rows_asked_for_in_their_order(write):
    rows = [{"prompt": str(n), "completion": str(n)} for n in range(5)]
    part = read_conversations(write(*rows, {"messages": []})).select(range(3, 0, -2))
    assert [c.answer for c in part.conversations] == ["3", "1"]
    assert (part.lines, part.left_out, part.n_rows) == ((4, 2), (), 2)


def test_conversations_and_lines_must_be_as_many():
    with pytest.raises(ValueError, match="got 1 conversations and 2 lines"):
        Conversations(source="x", conversations=(two,), lines=(1, 2))


def test_control_characters_of_a_file_do_not_reach_the_terminal(write):
    with pytest.raises(DataError) as caught:
        read_conversations(write({"messages": openai("Hi", roles=["\x1b]0;gotcha\x07"]), "\x1b[2J": 1}))
    assert caught.value.args[0].isprintable()


words = st.sampled_from(["", " ", "Hi", "\0", "\ud800", None, 7, [], {}, [{"type": "text", "text": "Ho"}]])
roles = st.sampled_from(["system", "user", "assistant", "human", "gpt", "tool", None, []])
turns = st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), roles | words), max_size=4)
names = st.sampled_from(["instruction", "input", "output", "prompt", "completion", "messages", "conversations"])


@given(st.lists(st.dictionaries(names, words | turns) | words, max_size=6), st.sampled_from([".json", ".jsonl"]))
def test_every_row_of_any_json_is_kept_or_left_out(tmp_path_factory, rows, suffix):
    path = tmp_path_factory.mktemp("rows") / f"file{suffix}"
    text = json.dumps([GOOD, *rows]) if suffix == ".json" else "\n".join(map(json.dumps, [GOOD, *rows]))
    path.write_text(text, encoding="utf-8")
    data = read_conversations(path, max_bad=len(rows))

    assert len(data) + len(data.left_out) == data.n_rows == 1 + len(rows)
    assert all(c.is_answered and c.answer.strip() for c in data.conversations)


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")), st.integers(0, 60),
       st.sampled_from([".json", ".jsonl"]))  # fmt: skip
def test_a_file_with_any_bytes_in_it_is_read_or_refused_by_name(tmp_path_factory, data, at, suffix):
    path = tmp_path_factory.mktemp("any") / f"file{suffix}"
    good = json.dumps(GOOD).encode()
    whole = b"[" + good + b"," + good + b"]" if suffix == ".json" else good + b"\n" + good
    path.write_bytes(whole[:at] + data + whole[at:])
    try:
        found = read_conversations(path, max_bad=100)
        message = str(path)
    except DataError as error:
        found, message = None, str(error)

    assert message.startswith(str(path))
    if found is not None and suffix == ".jsonl":
        assert found.n_rows == path.read_bytes().count(b"\n") + (not path.read_bytes().endswith(b"\n"))


def test_a_rows_own_system_message_stands_first(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi"}, '
                    '{"from": "gpt", "value": "Hello."}]}\n', encoding="utf-8")
    (conversation,) = read_conversations(path)

    assert conversation == Conversation.of("Hi", "Hello.", system="Be kind.")


@pytest.mark.parametrize(("row", "reason"), [
    ('{"instruction": "x", "output": "y", "history": [["a", "b"]]}', "history has earlier turns"),
    ('{"system": "x", "messages": [{"role": "system", "content": "y"}, {"role": "user", "content": "a"}, '
     '{"role": "assistant", "content": "b"}]}', r"system and messages\[0\] are both"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}',
     r"messages\[1\] has 'weight'"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [1]}]}',
     r"messages\[1\] has 'tool_calls'"),
])
def test_what_would_change_what_is_said_is_not_passed_over(tmp_path, row, reason):
    path = tmp_path / "rows.jsonl"
    path.write_text(row + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=reason):
        read_conversations(path)
