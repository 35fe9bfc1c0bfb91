"""Our templates make the tokens that transformers makes with the Jinja templates published for these formats."""

import pytest
from transformers import PreTrainedTokenizerFast

from gpt_core import GPTConfig, GPTModel
from gpt_eval import GPTLM
from gpt_finetune import TEMPLATES, ChatModel, Conversation
from gpt_tokenizer import BPETokenizer

# Phi-3-mini's (tokenizer_config.json of Microsoft's model), and ChatML's as transformers documents it.
JINJA = {
    "phi3": "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}
CONVERSATIONS = [
    Conversation.of("Hi"),
    Conversation.of("Which colour has the sky?", "Blue.", "And grass? ", system="Be brief."),
    Conversation.of("  spaces\n\n", "\n", "é中文🙂\ttab"),
]


@pytest.mark.parametrize("name", JINJA)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_prompts_are_transformers(name, conversation, tmp_path):
    base = BPETokenizer.train(["Which colour has the sky? Be brief."], vocab_size=280)
    model = GPTModel(GPTConfig(vocab_size=280, context_length=128, emb_dim=8, n_heads=1, n_layers=1))
    chat = ChatModel.from_base(model, base, template=TEMPLATES[name])
    chat.tokenizer.save(tmp_path / "tokenizer.json")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), chat_template=JINJA[name])
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    assert chat.prompt_ids(conversation) == ids


@pytest.mark.slow  # importing lm-eval
def test_a_chat_model_is_evaluated_by_its_own_template():
    base = BPETokenizer.train(["Which colour has the sky? Be brief."], vocab_size=280)
    model = GPTModel(GPTConfig(vocab_size=280, context_length=128, emb_dim=8, n_heads=1, n_layers=1))
    chat = ChatModel.from_base(model, base, template="chatml")
    harness = GPTLM(
        chat.model, chat.tokenizer, stop_ids=chat.stop_ids,
        render=lambda messages: chat.prompt_ids(Conversation.from_messages(messages)))
    messages = [{"role": "user", "content": "Hi <|im_end|>"}]

    rendered = harness.apply_chat_template(messages)
    assert harness.tok_encode(rendered) == chat.prompt_ids(Conversation.of("Hi <|im_end|>"))
