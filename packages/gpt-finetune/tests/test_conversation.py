"""Conversations: turns in their order, or a sentence that says what is wrong."""

import pytest

from gpt_finetune.conversation import Conversation, Message


def test_turns_in_order_are_kept():
    asked = Conversation.of("Hi", "Hello.", "Bye", system="Be kind.")

    assert [message.role for message in asked.messages] == ["system", "user", "assistant", "user"]
    assert not asked.is_answered
    assert asked.prompt is asked
    with pytest.raises(ValueError, match="has no answer"):
        asked.answer  # noqa: B018


def test_messages_as_of_openais_api_are_read():
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi", "name": "x"}]

    assert Conversation.from_messages(messages) == Conversation.of("Hi", system="Be kind.")
    for bad in ({"role": "user"}, "Hi", {"content": "Hi"}):
        with pytest.raises(ValueError, match="message 2 must have role and content"):
            Conversation.from_messages([messages[0], bad])


def test_an_answered_conversation_knows_prompt_and_answer():
    asked = Conversation.of("Hi", "Hello.")

    assert asked.answer == "Hello."
    assert asked.prompt == Conversation.of("Hi")


@pytest.mark.parametrize(("roles", "reason"), [
    ((), "no message of the user"),
    (("system",), "no message of the user"),
    (("assistant",), "message 1 is the assistant's, but must be the user's"),
    (("user", "user"), "message 2 is the user's, but must be the assistant's"),
    (("system", "system", "user"), "message 2 is the system's, but must be the user's"),
    (("user", "assistant", "system"), "message 3 is the system's"),
])
def test_another_order_is_named(roles, reason):
    with pytest.raises(ValueError, match=reason):
        Conversation(tuple(Message(role=role, content="x") for role in roles))


def test_an_empty_question_is_named_but_not_one_with_an_input():
    with pytest.raises(ValueError, match="message 1, the user's, is empty"):
        Conversation.of(" \n")
    Conversation((Message(role="user", content="", input="the sky"),))


@pytest.mark.parametrize(("fields", "reason"), [
    ({"role": "tool", "content": "x"}, "role must be one of system, user, assistant, got 'tool'"),
    ({"role": "user", "content": None}, "content of the user's message must be text, found a NoneType"),
    ({"role": "user", "content": "a\ud800"}, r"half a surrogate pair \(\\ud800\)"),
    ({"role": "assistant", "content": "x", "input": "y"}, "only a user's message may have an input"),
])
def test_a_bad_message_is_named(fields, reason):
    with pytest.raises(ValueError, match=reason):
        Message(**fields)
