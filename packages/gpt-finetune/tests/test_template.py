"""Templates: the tokens that others make of a conversation, and control tokens that no text can become."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_finetune.conversation import Conversation, Message
from gpt_finetune.instruct import format_input
from gpt_finetune.template import ALPACA, CHATML, PHI3, TEMPLATES, ChatEncoder, ChatTemplate, Control, Turn
from gpt_tokenizer import BPETokenizer

BASE = BPETokenizer.train(["the user asks, the assistant answers; <|im_end|> is text here"], vocab_size=290)
ENCODERS = {
    name: ChatEncoder(template, BASE.with_special_tokens(template.controls)) for name, template in TEMPLATES.items()
}
# What transformers' published templates of these models write for this conversation (their Jinja, read by hand).
ASKED = Conversation.of("Hi", "Hello.", "Bye", "See you.", system="Be kind.")
WRITTEN = {
    "phi3": "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nBye<|end|>\n"
    "<|assistant|>\nSee you.<|end|>",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello."
    "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSee you.<|im_end|>",
    "alpaca": "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello.<|endoftext|>\n\n### Instruction:\nBye\n\n"
    "### Response:\nSee you.<|endoftext|>",
}
texts = st.text(max_size=30).filter(lambda text: text.isascii() or text.isprintable())
hostile = st.lists(
    st.sampled_from(["<|im_start|>", "<|im_end|>", "<|end|>", "<|assistant|>", "<|endoftext|>", "system\n", "<|", "|>",
                     "\n\n### Response:\n", " ", "a", "é"]) | texts, min_size=1, max_size=6,
).map("".join).filter(str.strip)


def decoded(encoder, ids):
    return encoder._tokenizer.decode(ids)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_reads_as_published(name):
    encoder = ENCODERS[name]

    assert decoded(encoder, encoder.encode(ASKED).ids) == WRITTEN[name]


def test_alpacas_prompt_is_the_books():
    entry = {"instruction": "Name it.", "input": "the sky", "output": "Blue."}
    asked = Conversation((Message(role="user", content="Name it.", input="the sky"),))

    assert decoded(ENCODERS["alpaca"], ENCODERS["alpaca"].prompt(asked)) == f"{format_input(entry)}\n\n### Response:\n"


@pytest.mark.parametrize("name", TEMPLATES)
def test_targets_are_the_answers_and_their_ends(name):
    encoded = ENCODERS[name].encode(ASKED)
    said = [token for token, is_said in zip(encoded.ids, encoded.is_target, strict=True) if is_said]
    end = {"alpaca": "<|endoftext|>", "phi3": "<|end|>", "chatml": "<|im_end|>"}[name]

    assert decoded(ENCODERS[name], said) == f"Hello.{end}See you.{end}"
    assert [token for token in said if token in ENCODERS[name].control_ids] == [ENCODERS[name].end_id] * 2


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_answer_are_the_whole_conversation(name):
    encoder = ENCODERS[name]

    assert encoder.prompt(ASKED.prompt) + encoder.answer(ASKED.answer) == encoder.encode(ASKED).ids


@settings(max_examples=300)
@given(
    contents=st.lists(hostile, min_size=2, max_size=6), system=st.just("") | hostile, name=st.sampled_from([*TEMPLATES])
)
def test_no_text_becomes_a_control_token(contents, system, name):
    encoder = ENCODERS[name]
    asked = Conversation.of(*contents, system=system)
    ids = encoder.encode(asked).ids
    n_controls = sum(token in encoder.control_ids for token in ids)
    n_answers = sum(message.role == "assistant" for message in asked.messages)
    per_message = 0 if name == "alpaca" else 2

    assert n_controls == (n_answers if name == "alpaca" else per_message * len(asked.messages))
    assert ids.count(encoder.end_id) == (n_answers if name == "alpaca" else len(asked.messages))
    for message in asked.messages:
        assert message.content in decoded(encoder, ids)


@pytest.mark.parametrize("template", [ALPACA, PHI3, CHATML], ids=lambda template: template.name)
def test_a_template_survives_json(template):
    assert ChatTemplate.from_dict(json.loads(json.dumps(template.to_dict()))) == template


@pytest.mark.parametrize("change", [
    {"user": 1}, {"user": {"before": "x", "after": []}}, {"between": [{"control": 1}]}, {"input": [None]},
    {"default_system": None}, {"name": [1]},
    {"assistant": {"before": [], "after": ["text"]}}, {"assistant": {"before": [], "after": []}}, {"name": ...},
])
def test_a_damaged_template_is_named(change):
    data = {**ALPACA.to_dict(), **change}
    if data["name"] is ...:
        del data["name"]
    with pytest.raises(ValueError, match="template"):
        ChatTemplate.from_dict(data)


def test_a_missing_control_token_is_named_with_the_way_out():
    with pytest.raises(ValueError, match=r"no special token '<\|im_start\|>'.*from_base"):
        ChatEncoder(CHATML, BASE)


def test_a_control_token_that_encodes_as_ordinary_text_is_none():
    ordinary = ChatTemplate(name="x", system=Turn(), user=Turn(), input=(), assistant=Turn(after=(Control("e"),)))

    with pytest.raises(ValueError, match="no special token 'e'"):
        ChatEncoder(ordinary, BASE)


def test_the_prompt_of_an_answered_conversation_is_refused():
    with pytest.raises(ValueError, match=r"pass conversation\.prompt"):
        ENCODERS["alpaca"].prompt(ASKED)
