"""Training a chat model: it learns to answer and to stop, keeps its best weights, and goes on after a kill."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from gpt_core import GPTConfig, GPTModel, initialize_gpt2, load_checkpoint
from gpt_finetune.chat import ChatModel, load_chat_model
from gpt_finetune.chat_batches import ChatBatches, encode_conversations
from gpt_finetune.chat_training import ChatConfig, chat_loss, train_chat
from gpt_finetune.conversation import Conversation
from gpt_finetune.lora import LoRAConfig, add_lora
from gpt_finetune.trained_part import train_only_last_blocks
from gpt_tokenizer import BPETokenizer, get_tokenizer
from gpt_train import DataError, TrainState

COLOURS = {"sky": "Blue.", "grass": "Green.", "sun": "Yellow.", "snow": "White."}
CONVERSATIONS = [
    Conversation.of(f"{ask} the {thing}", answer) for thing, answer in COLOURS.items()
    for ask in ("Which colour has", "Name the colour of", "Tell me the colour of")
]
TOKENIZER = BPETokenizer.train([" ".join(m.content for m in c.messages) for c in CONVERSATIONS], vocab_size=290)


def make(drop_rate=0.0):
    model = GPTModel(GPTConfig(
        vocab_size=290, context_length=64, emb_dim=32, n_heads=2, n_layers=2, drop_rate=drop_rate))
    initialize_gpt2(model, seed=1)
    return ChatModel.from_base(model, TOKENIZER, template="chatml")


def tensors(chat):
    return {name: tensor.clone() for name, tensor in chat.model.state_dict().items()}


def test_it_learns_to_answer_and_to_stop():
    chat = make()
    examples = encode_conversations(chat, CONVERSATIONS)
    before = chat_loss(chat, examples)
    reports = list(train_chat(chat, examples, config=ChatConfig(epochs=30, batch_size=4, lr=1e-2)))

    assert (before > 3, chat_loss(chat, examples) < 0.1) == (True, True)
    assert len(reports) == 90
    answers = chat.answer_all([conversation.prompt for conversation in CONVERSATIONS], max_new_tokens=10)
    assert [answer.text for answer in answers] == [conversation.answer for conversation in CONVERSATIONS]
    assert {answer.finish for answer in answers} == {"stop"}


def test_the_loss_is_the_mean_over_the_answers_tokens():
    chat = make()
    examples = encode_conversations(chat, CONVERSATIONS)
    total, n = 0.0, 0
    for ids, targets in zip(examples.ids, examples.targets, strict=True):
        logits = chat.model(torch.tensor([ids[:-1]]))[0].double()
        wanted = torch.tensor(targets)
        total += cross_entropy(logits[wanted != -100], wanted[wanted != -100], reduction="sum").item()
        n += int((wanted != -100).sum())

    assert n == examples.n_targets
    assert chat_loss(chat, examples, batch_size=5) == pytest.approx(total / n, abs=1e-5)


@pytest.mark.parametrize("way", ["last block", "lora"])
def test_only_what_is_thawed_changes(way):
    chat = make()
    if way == "lora":
        add_lora(chat.model, LoRAConfig(rank=4, alpha=8))
        chat.new_ids = frozenset()  # as of a model that was taught the template before
    else:
        train_only_last_blocks(chat.model)
    before = tensors(chat)
    examples = encode_conversations(chat, CONVERSATIONS)
    loss = chat_loss(chat, examples)
    list(train_chat(chat, examples, config=ChatConfig(epochs=4, batch_size=4, lr=1e-2)))

    changed = {name for name, tensor in tensors(chat).items() if not torch.equal(tensor, before[name])}
    allowed = ("lora",) if way == "lora" else ("trf_blocks.1.", "final_norm", "out_head")
    assert changed
    assert all(any(part in name for part in allowed) for name in changed)
    assert chat_loss(chat, examples) < loss


def test_new_control_tokens_are_not_left_unlearned():
    chat = make()
    add_lora(chat.model, LoRAConfig(rank=4, alpha=8))
    examples = encode_conversations(chat, CONVERSATIONS)
    with pytest.raises(ValueError, match=r"'chatml' are new to this model.*out_head"):
        next(train_chat(chat, examples))
    chat.model.out_head.requires_grad_(True)
    list(train_chat(chat, examples, config=ChatConfig(epochs=30, batch_size=4, lr=1e-2)))

    answers = chat.answer_all([conversation.prompt for conversation in CONVERSATIONS], max_new_tokens=20)
    assert {answer.finish for answer in answers} == {"stop"}
    chat.model.out_head.requires_grad_(False)  # they are learned now
    list(train_chat(chat, examples, config=ChatConfig(epochs=1)))


def test_the_best_epochs_weights_are_kept():
    chat = make()
    training, held_out = (encode_conversations(chat, part) for part in (CONVERSATIONS[:9], CONVERSATIONS[9:]))
    losses = {}
    config = ChatConfig(epochs=12, batch_size=4, lr=1e-2)
    for report in train_chat(chat, training, validation=held_out, config=config):
        if report.val_loss is not None:
            losses[report.val_loss] = tensors(chat)

    best = losses[min(losses)]
    assert min(losses) != list(losses)[-1]
    assert all(torch.equal(tensor, best[name]) for name, tensor in tensors(chat).items())
    assert chat_loss(chat, held_out) == pytest.approx(min(losses), abs=1e-5)


@pytest.mark.parametrize("stop_after", [1, 3, 4, 7])
def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path, stop_after):
    config = ChatConfig(epochs=3, batch_size=4, lr=1e-2, keep_best=False)
    whole = make(drop_rate=0.1)
    examples = encode_conversations(whole, CONVERSATIONS)
    first = copy.deepcopy(whole)
    losses = [report.loss for report in train_chat(whole, examples, config=config)]

    state = TrainState(first.model, config.train_config(len(examples)))
    for report in train_chat(first, examples, config=config, state=state):
        if report.step == stop_after:
            first.save(tmp_path / "chat", extra=state.save)
            break
    second = load_chat_model(tmp_path / "chat", read_tokenizer=get_tokenizer)
    state = TrainState(second.model, config.train_config(len(examples)))
    state.load(load_checkpoint(tmp_path / "chat").folder)
    rest = [report.loss for report in train_chat(second, examples, config=config, state=state)]

    assert rest == losses[stop_after:]
    again = tensors(second)
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors(whole).items())


def test_asking_the_model_meanwhile_changes_nothing():
    one, other = make(drop_rate=0.1), make(drop_rate=0.1)
    examples = encode_conversations(one, CONVERSATIONS)
    config = ChatConfig(epochs=1, batch_size=4, lr=1e-2)
    for _ in train_chat(one, examples, config=config):
        one.answer(CONVERSATIONS[0].prompt, max_new_tokens=2)
    list(train_chat(other, examples, config=config))

    again = tensors(other)
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors(one).items())


def test_what_cannot_be_trained_is_named():
    chat = make()
    nothing = encode_conversations(chat, [Conversation.of("Which colour has the sky " * 40, "Blue.")])
    examples = encode_conversations(chat, CONVERSATIONS)
    with pytest.raises(DataError, match="examples hold nothing to learn: 0 of 1 conversations"):
        next(train_chat(chat, nothing))
    with pytest.raises(DataError, match="validation hold nothing"):
        next(train_chat(chat, examples, validation=nothing))
    with pytest.raises(DataError, match="nothing to judge by"):
        chat_loss(chat, nothing)
    state = TrainState(chat.model, ChatConfig().train_config(len(examples)))
    with pytest.raises(ValueError, match="keep_best=False"):
        next(train_chat(chat, examples, validation=examples, state=state))
    for other in (
        TrainState(make().model, ChatConfig(keep_best=False).train_config(len(examples))),
        TrainState(chat.model, ChatConfig(keep_best=False, lr=1).train_config(len(examples))),
    ):
        with pytest.raises(ValueError, match="belongs to another model or config"):
            next(train_chat(chat, examples, config=ChatConfig(keep_best=False), state=other))
    adapted = make()
    add_lora(adapted.model, LoRAConfig(rank=2))
    state = TrainState(adapted.model, ChatConfig().train_config(len(examples)))
    with pytest.raises(ValueError, match="LoRA cannot be resumed"):
        next(train_chat(adapted, examples, state=state))
    chat.model.requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient"):
        next(train_chat(chat, examples))


@pytest.mark.parametrize(("name", "value"), [
    ("epochs", 0), ("batch_size", 1.5), ("lr", float("nan")), ("lr", "1"), ("seed", 2**63), ("keep_best", 1),
    ("weight_decay", -1), ("precision", "float8"),
])
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        ChatConfig(**{name: value})


def test_batches_follow_the_seed():
    examples = encode_conversations(make(), CONVERSATIONS)
    orders = [
        [inputs.tolist() for inputs, _ in ChatBatches(examples, batch_size=4, seed=seed).epoch(epoch)]
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]
