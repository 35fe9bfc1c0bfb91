"""A chat model answers as its tokens say, keeps to its context, and comes back from its folder."""

import json

import pytest
import torch

from gpt_core import GPTConfig, GPTModel, Sampling, generate_tokens, load_checkpoint, save_checkpoint
from gpt_finetune.chat import ChatModel, load_chat_model
from gpt_finetune.classifier import with_class_head
from gpt_finetune.conversation import Conversation
from gpt_finetune.lora import LoRAConfig, add_lora, lora_parameters
from gpt_finetune.template import ALPACA, TEMPLATES
from gpt_tokenizer import BPETokenizer, get_tokenizer
from gpt_train import DataError

TOKENIZER = BPETokenizer.train(["Be kind. Hi, hello, bye, see you. What is it?"] * 3, vocab_size=280)


def make(template="chatml", context_length=64):
    torch.manual_seed(5)
    config = GPTConfig(vocab_size=280, context_length=context_length, emb_dim=16, n_heads=2, n_layers=2)
    return ChatModel.from_base(GPTModel(config), TOKENIZER, template=template)


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_is_what_the_tokens_after_the_prompt_say(template):
    chat, asked = make(template, context_length=200), Conversation.of("Hi")
    tokens = list(generate_tokens(chat.model, chat.prompt_ids(asked), max_new_tokens=9, stop_ids=chat.stop_ids))
    answer = chat.answer(asked, max_new_tokens=9)

    said = [token.id for token in tokens if token.finish != "stop"]
    assert answer.text == chat.tokenizer.decode(said)
    assert (answer.n_tokens, answer.n_prompt) == (len(tokens), len(chat.prompt_ids(asked)))
    assert answer.finish == tokens[-1].finish


@pytest.mark.parametrize("token", [
    lambda chat: chat.end_id,
    lambda chat: chat.tokenizer.special_tokens["<|im_start|>"],
    lambda chat: chat.tokenizer.eot_token,
    lambda chat: chat.tokenizer.n_vocab + 1,  # a row of the model that stands for no token
])
def test_an_answer_ends_at_a_control_token_and_leaves_it_out(token):
    config = GPTConfig(vocab_size=290, context_length=64, emb_dim=16, n_heads=2, n_layers=2)
    chat = ChatModel.from_base(GPTModel(config), TOKENIZER, template="chatml")
    prompt = chat.prompt_ids(Conversation.of("Hi"))
    with torch.no_grad():  # a head that can say one thing: the end
        chat.model.out_head.weight.zero_()
        vector = chat.model.features(torch.tensor([prompt]))[0, -1]
        chat.model.out_head.weight[token(chat)] = vector

    answer = chat.answer(Conversation.of("Hi"))
    assert (answer.text, answer.finish, answer.n_tokens) == ("", "stop", 1)


def test_answers_of_many_are_those_of_each_alone():
    chat = make()
    asked = [Conversation.of("Hi" * n, system="Be kind.") for n in (1, 4, 2)]

    assert chat.answer_all(asked, max_new_tokens=7) == [chat.answer(one, max_new_tokens=7) for one in asked]
    drawn = chat.answer_all(asked[:1] * 2, max_new_tokens=20, sampling=Sampling(temperature=1.5, seed=1))
    assert drawn[0] != drawn[1]
    assert drawn == chat.answer_all(asked[:1] * 2, max_new_tokens=20, sampling=Sampling(temperature=1.5, seed=1))
    others = chat.answer_all(asked[:1] * 2, max_new_tokens=20, sampling=Sampling(temperature=1.5, seed=2))
    assert others[0] not in drawn


def test_the_oldest_exchange_goes_first_and_the_system_stays():
    chat = make()
    turns = [text for number in range(6) for text in (f"Hi, what is it? {number}", "hello, see you")] + ["bye"]
    whole = Conversation.of(*turns, system="Be kind.")
    seen, ids = chat.fit(whole, room=16)

    assert seen.messages[0] == whole.messages[0]
    n_dropped = len(whole.messages) - len(seen.messages)
    assert n_dropped % 2 == 0
    assert seen.messages[1:] == whole.messages[1 + n_dropped :]
    assert len(ids) + 16 <= 64
    longer = Conversation((whole.messages[0], *whole.messages[n_dropped - 1 :]))
    assert len(chat.prompt_ids(longer)) + 16 > 64
    assert chat.answer(whole, max_new_tokens=16).n_dropped == n_dropped


def test_an_answer_ends_where_the_context_is_full():
    chat = make()
    answer = chat.answer(Conversation.of("What is it? " * 3), max_new_tokens=500)

    assert answer.finish == "stop" or answer.n_prompt + answer.n_tokens in (64, 65)


def test_a_message_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"the prompt has \d+ tokens.*context of 64; shorten"):
        make().answer(Conversation.of("What is it? " * 40))


def test_a_folder_gives_the_chat_model_back(tmp_path):
    chat, asked = make("phi3"), Conversation.of("Hi", "hello", "bye")
    chat.save(tmp_path / "chat", provenance={"data": "mine"})
    again = load_chat_model(tmp_path / "chat", read_tokenizer=get_tokenizer)

    assert again.template == chat.template
    assert again.prompt_ids(asked) == chat.prompt_ids(asked)
    assert again.answer(asked, max_new_tokens=12) == chat.answer(asked, max_new_tokens=12)
    provenance = load_checkpoint(tmp_path / "chat").provenance
    assert provenance["data"] == "mine"
    assert provenance["chat_template"]["name"] == "phi3"


def test_lora_is_saved_merged_and_goes_on(tmp_path):
    chat = make()
    add_lora(chat.model, LoRAConfig(rank=2))
    with torch.no_grad():
        for parameter in lora_parameters(chat.model):
            parameter.normal_(std=0.3)
    chat.save(tmp_path / "chat")
    again = load_chat_model(tmp_path / "chat", read_tokenizer=get_tokenizer)
    ids = torch.tensor([chat.prompt_ids(Conversation.of("Hi"))])

    assert lora_parameters(chat.model)
    chat.model.eval()
    torch.testing.assert_close(again.model(ids), chat.model(ids), atol=1e-5, rtol=1e-4)


def test_a_folder_knows_which_tokens_are_still_to_be_learned(tmp_path):
    chat = make()
    chat.save(tmp_path / "chat")

    assert load_chat_model(tmp_path / "chat", read_tokenizer=get_tokenizer).new_ids == chat.new_ids == {280, 281}


def test_a_name_of_the_provenance_is_not_overwritten(tmp_path):
    for name in ("versions", "chat_template"):
        with pytest.raises(ValueError, match=f"provenance has '{name}'"):
            make().save(tmp_path / "chat", provenance={name: "mine"})


def test_what_is_no_chat_model_is_named(tmp_path):
    model = GPTModel(GPTConfig(vocab_size=280, context_length=8, emb_dim=16, n_heads=2, n_layers=1))
    save_checkpoint(tmp_path / "bare", model)
    save_checkpoint(tmp_path / "base", model, tokenizer=TOKENIZER)
    save_checkpoint(tmp_path / "damaged", model, tokenizer=TOKENIZER, provenance={"chat_template": {"name": 1}})
    reasons = {"bare": "no tokenizer", "base": "no chat template.*train_chat", "damaged": "no chat template"}
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=reason):
            load_chat_model(tmp_path / name, read_tokenizer=get_tokenizer)


def test_a_model_that_does_not_go_with_the_tokenizer_is_refused():
    small = GPTModel(GPTConfig(vocab_size=100, context_length=8, emb_dim=16, n_heads=2, n_layers=1))
    with pytest.raises(ValueError, match="ids up to 279, but the model's vocab_size is 100"):
        ChatModel(small, TOKENIZER)
    with pytest.raises(ValueError, match="tells 2 classes apart"):
        ChatModel(with_class_head(small, 2, seed=1), TOKENIZER)
    with pytest.raises(ValueError, match="template must be one of alpaca, phi3, chatml"):
        ChatModel(small, TOKENIZER, template="llama")


def test_alpaca_needs_no_new_token():
    model = GPTModel(GPTConfig(vocab_size=280, context_length=8, emb_dim=16, n_heads=2, n_layers=1))

    chat = ChatModel.from_base(model, TOKENIZER, template=ALPACA)
    assert chat.model is model
    assert chat.tokenizer is TOKENIZER
    assert json.dumps(chat.template.to_dict())
