"""Conversations as batches: every token of an answer and its end is a target, nothing is lost unsaid."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_core import GPTConfig, GPTModel
from gpt_finetune.chat import ChatModel
from gpt_finetune.chat_batches import ChatBatches, ChatExamples, chat_batches_in_order, encode_conversations
from gpt_finetune.conversation import Conversation, Message
from gpt_tokenizer import BPETokenizer

INSTRUCTIONS = Path(__file__).resolve().parents[4] / "shared" / "data" / "instruction-data.json"
TOKENIZER = BPETokenizer.train(["Hi, hello, bye, see you."], vocab_size=270)
CONTEXT = 80


def make(template="chatml", tokenizer=TOKENIZER, context_length=CONTEXT):
    config = GPTConfig(
        vocab_size=tokenizer.n_vocab, context_length=context_length, emb_dim=8, n_heads=1, n_layers=1)
    return ChatModel.from_base(GPTModel(config), tokenizer, template=template)


def learned(examples, number):
    return [token for token in examples.targets[number] if token != -100]


words = st.lists(st.sampled_from(["Hi", "hello", "bye", "<|endoftext|>", "\0"]), min_size=1, max_size=8).map(" ".join)


@given(contents=st.lists(words, min_size=2, max_size=6).filter(lambda found: len(found) % 2 == 0))
def test_every_token_of_every_answer_is_a_target_and_so_is_its_end(contents):
    for template in ("alpaca", "chatml"):
        chat = make(template, context_length=2000)
        examples = encode_conversations(chat, [Conversation.of(*contents)])
        wanted = [token for text in contents[1::2] for token in (*TOKENIZER.encode(text), chat.end_id)]

        assert learned(examples, 0) == wanted
        for token, target in zip(examples.ids[0][1:], examples.targets[0], strict=True):
            assert target in (token, -100)


def test_with_all_every_token_but_the_first_is_a_target():
    examples = encode_conversations(make(), [Conversation.of("Hi", "hello")], learn="all")

    assert examples.targets[0] == examples.ids[0][1:]


def test_what_is_longer_than_the_context_is_cut_off_without_an_end_and_counted():
    chat = make()
    short, long, hopeless = (
        Conversation.of("Hi", "hello"), Conversation.of("Hi", "bye " * 100), Conversation.of("Hi " * 100, "bye"))
    examples = encode_conversations(chat, [short, long, hopeless])

    assert (len(examples), examples.numbers, examples.truncated, examples.left_out) == (2, (0, 1), (1,), (2,))
    assert len(examples.ids[1]) == CONTEXT + 1
    assert learned(examples, 1) == TOKENIZER.encode("bye " * 100)[: len(learned(examples, 1))]
    assert chat.end_id not in learned(examples, 1)
    assert examples.n_targets == len(learned(examples, 0)) + len(learned(examples, 1))
    assert examples.report.startswith("2 of 3 conversations")
    assert encode_conversations(chat, [hopeless], learn="all").left_out == (0,)


def test_a_conversation_that_just_fits_keeps_its_end():
    chat = make()
    n_frame = len(chat.encode(Conversation.of("Hi", "hello")).ids) - len(TOKENIZER.encode("hello"))
    answer = "!" * (CONTEXT + 1 - n_frame)
    examples = encode_conversations(chat, [Conversation.of("Hi", answer), Conversation.of("Hi", answer + "!")])

    assert examples.truncated == (1,)
    assert learned(examples, 0)[-1] == chat.end_id


def test_a_question_without_answer_is_named():
    with pytest.raises(ValueError, match="conversation 1 ends with the user's message"):
        encode_conversations(make(), [Conversation.of("Hi", "hello"), Conversation.of("Hi")])
    with pytest.raises(ValueError, match="learn must be"):
        encode_conversations(make(), [], learn="prompts")


rows = st.lists(st.integers(2, 40), min_size=1, max_size=40)


def examples_of(lengths):
    ids = tuple(tuple([number] * length) for number, length in enumerate(lengths))
    return ChatExamples(ids=ids, targets=tuple(row[1:] for row in ids), numbers=tuple(range(len(lengths))))


@given(lengths=rows, batch_size=st.integers(1, 9), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_every_example_comes_once_an_epoch_with_its_targets(lengths, batch_size, seed, epoch):
    batches = ChatBatches(examples_of(lengths), batch_size=batch_size, seed=seed)
    found = []
    for inputs, targets in batches.epoch(epoch):
        assert inputs.dtype == targets.dtype == torch.int64
        for ids, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
            length = sum(target != -100 for target in wanted)
            assert ids[:length] == wanted[:length]
            assert ids[length:] == [0] * (len(ids) - length)
            found.append((wanted[0], length + 1))

    assert sorted(found) == list(enumerate(lengths))


@given(lengths=rows, start=st.integers(0, 90))
def test_batches_go_on_from_any_step(lengths, start):
    batches = ChatBatches(examples_of(lengths), batch_size=3, seed=1)
    whole = [inputs.tolist() for inputs, _ in batches.epochs(3)]

    assert [inputs.tolist() for inputs, _ in batches.epochs(3, start=start)] == whole[start:]


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_bad_batch_size_is_named(size):
    for make_batches in (
        lambda: ChatBatches(examples_of([3]), batch_size=size, seed=1),
        lambda: chat_batches_in_order(examples_of([3]), batch_size=size),
    ):
        with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
            make_batches()


def test_in_order_the_shortest_come_first():
    sizes = [tuple(inputs.shape) for inputs, _ in chat_batches_in_order(examples_of([9, 3, 5, 4, 8]), batch_size=2)]

    assert sizes == [(2, 3), (2, 7), (1, 8)]


@pytest.mark.parametrize("batch_size", [8, 16, 32])
def test_of_the_books_data_less_than_a_tenth_is_padding(batch_size):
    if not INSTRUCTIONS.exists():
        pytest.skip("needs instruction-data.json in ../shared/data")
    data = json.loads(INSTRUCTIONS.read_text(encoding="utf-8"))
    tokenizer = BPETokenizer.train([entry["instruction"] for entry in data], vocab_size=600)
    chat = make("alpaca", tokenizer, context_length=256)
    asked = [
        Conversation((Message(role="user", content=entry["instruction"], input=entry["input"]),
                      Message(role="assistant", content=entry["output"]))) for entry in data]
    batches = ChatBatches(encode_conversations(chat, asked), batch_size=batch_size, seed=123)

    n_padding = sum(int((targets == -100).sum()) for _, targets in ChatBatches(
        encode_conversations(chat, asked, learn="all"), batch_size=batch_size, seed=123).epoch(0))
    n_inputs = sum(inputs.numel() for inputs, _ in batches.epoch(0))
    assert batches.padding_share() == pytest.approx(n_padding / n_inputs)
    assert batches.padding_share() < 0.1
