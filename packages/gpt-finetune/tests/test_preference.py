"""Preferences, their pairs and batches: which are learned from, what of them counts, and how little is padding."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core import GPTConfig, GPTModel, initialize_gpt2
from gpt_finetune.chat import ChatModel
from gpt_finetune.conversation import Conversation
from gpt_finetune.preference import Preference, Preferences
from gpt_finetune.preference_pairs import PreferenceBatches, encode_preferences, preference_batch, rectangles
from gpt_tokenizer import BPETokenizer

TOKENIZER = BPETokenizer.train(["Which colour has the sky? Blue."], vocab_size=280)
ASKED = Conversation.of("Which colour has the sky?")


def make(context_length=64):
    model = GPTModel(GPTConfig(vocab_size=280, context_length=context_length, emb_dim=8, n_heads=2, n_layers=1))
    initialize_gpt2(model, seed=1)
    return ChatModel.from_base(model, TOKENIZER, template="chatml")


def test_a_preference_gives_two_conversations_with_one_prompt():
    chosen, rejected = Preference(ASKED, "Blue.", "No.").conversations

    assert chosen.prompt == rejected.prompt == ASKED
    assert (chosen.answer, rejected.answer) == ("Blue.", "No.")


@pytest.mark.parametrize(
    ("fields", "message"),
    [((Conversation.of("Hi", "Hello."), "a", "b"), "must end with the user's message; pass conversation.prompt"),
     ((ASKED, 3, "b"), "chosen: .*must be text, found a int"),
     ((ASKED, "a", "\ud800"), r"rejected: .*half a surrogate pair")])
def test_what_is_no_preference_is_refused_with_the_reason(fields, message):
    with pytest.raises(ValueError, match=message):
        Preference(*fields)


def test_each_preference_needs_a_line():
    with pytest.raises(ValueError, match="got 1 preferences and 2 lines"):
        Preferences(source="a.jsonl", preferences=(Preference(ASKED, "a", "b"),), lines=(1, 2))


def test_a_row_is_the_prompt_and_one_answer_with_its_end():
    chat = make()
    pairs = encode_preferences(chat, [Preference(ASKED, "Blue.", "I do not care.")])

    for row, start, answer in zip(pairs.rows, pairs.starts, ["Blue.", "I do not care."], strict=True):
        whole = chat.encode(Conversation.of("Which colour has the sky?", answer))
        assert list(row) == whole.ids
        assert whole.is_target == [False] * start + [True] * (len(row) - start)
        assert row[-1] in chat.stop_ids


def test_what_does_not_fit_and_what_is_equal_is_left_out_and_counted():
    chat = make()
    n_prompt = len(chat.prompt_ids(ASKED))
    longest = "z" * (64 + 1 - n_prompt - 1)  # the last token, the end, is only predicted
    wanted = [
        Preference(ASKED, "Blue.", longest), Preference(ASKED, longest + "z", "No."), Preference(ASKED, "No.", "No."),
        Preference(ASKED, "No.", longest + "z"), Preference(ASKED, "Blue.", "No."),
    ]
    pairs = encode_preferences(chat, wanted)

    assert (pairs.numbers, pairs.too_long, pairs.equal) == ((0, 4), (1, 3), (2,))
    assert len(pairs.rows[1]) == 65
    assert pairs.report == (
        "2 of 5 preferences can be learned from: 2 left out that do not fit into the context, 1 whose two answers are "
        "the same")


def test_an_epoch_has_each_pair_once_and_the_same_seed_the_same_batches():
    pairs = encode_preferences(make(), [Preference(ASKED, "a" * n, "b" * (20 - n)) for n in range(1, 19)])
    orders = []
    for seed in (1, 1, 2):
        batches = list(PreferenceBatches(pairs, batch_size=4, seed=seed).epochs(2))
        numbers = [targets.tolist() for _, targets in batches]
        assert sorted(chain(*numbers[:5])) == sorted(chain(*numbers[5:])) == list(range(18))
        for inputs, targets in batches:
            for place, number in enumerate(targets.tolist()):
                for side in (0, 1):
                    row = list(pairs.rows[2 * number + side])
                    assert inputs[2 * place + side].tolist() == row + [0] * (inputs.shape[1] - len(row))
        orders.append(numbers)

    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:5] != orders[0][5:]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40))
def test_rectangles_hold_each_row_once_and_less_than_a_fifth_of_padding_in_any(lengths):
    found = rectangles(lengths)

    assert sorted(chain(*found)) == list(range(len(lengths)))
    for places in found:
        assert lengths[places[0]] == max(lengths[place] for place in places)
        assert all(lengths[place] >= 0.8 * lengths[places[0]] for place in places)


def test_less_than_a_tenth_is_padding_where_chosen_answers_are_short_and_rejected_ones_long():
    chat = make(context_length=512)
    lengths = [(8 + 7 * n % 60, 40 + 31 * n % 200) for n in range(200)]
    pairs = encode_preferences(chat, [Preference(ASKED, "q" * short, "z" * long) for short, long in lengths])
    batches = PreferenceBatches(pairs, batch_size=8, seed=1)
    in_one_rectangle = [inputs.numel() for inputs, _ in batches.epochs(1)]

    assert batches.padding_share() < 0.1
    assert 1 - sum(map(len, pairs.rows)) / sum(in_one_rectangle) > 0.2


def test_a_batch_is_what_its_numbers_say():
    pairs = encode_preferences(make(), [Preference(ASKED, "a", "bb"), Preference(ASKED, "ccc", "d")])
    inputs, targets = preference_batch(pairs, [1])

    assert targets.tolist() == [1]
    assert inputs.tolist() == [list(pairs.rows[2]), [*pairs.rows[3], 0, 0]]
