from dataclasses import asdict, replace

import pytest

from gpt_core import GPT_CONFIG_124M
from gpt_pretrain.config import config_from_settings, recipe_settings, settings_of
from gpt_pretrain.errors import USAGE, PretrainError
from gpt_pretrain.recipes import load_recipe, recipe_names


def test_the_recipes_are_the_four_that_are_promised():
    assert recipe_names() == ["gpt2-124m", "quick", "shakespeare", "verdict"]


@pytest.mark.parametrize("name", ["gpt2-124m", "quick", "shakespeare", "verdict"])
def test_every_recipe_loads_and_says_what_it_is_about(name):
    config, notes = load_recipe(name)
    assert config.recipe == name
    assert notes["about"]
    assert ("needs_data" in notes) == (name != "quick")


def test_verdict_is_the_books_setting():
    config, _ = load_recipe("verdict")
    book = {**GPT_CONFIG_124M, "context_length": 256}
    assert {name: asdict(config.model)[name] for name in book} == book
    train = config.train
    assert (train.lr, train.weight_decay, train.schedule, train.grad_clip) == (4e-4, 0.1, "constant", 0.0)
    assert (config.batch_size, config.seed, config.init, config.prompt) == (
        2,
        123,
        "torch",
        "Every effort moves you",
    )


@pytest.mark.parametrize("name", ["gpt2-124m", "verdict"])
def test_a_recipe_with_gpt2s_tokenizer_has_gpt2s_vocabulary(name):
    config, _ = load_recipe(name)
    assert (config.data.tokenizer, config.model.vocab_size) == ("gpt2", GPT_CONFIG_124M["vocab_size"])


def test_gpt2_124m_takes_half_a_million_tokens_a_step():
    config, _ = load_recipe("gpt2-124m")
    assert config.batch_size * config.train.accumulate * config.model.context_length == 491_520


def test_config_and_flat_settings_are_the_same_thing():
    config, _ = load_recipe("shakespeare")
    again = config_from_settings(settings_of(config), recipe="shakespeare")
    assert again == config
    # Recorded where they are not GPT-2's.
    variants = {"n_kv_heads", "sliding_window", "positions", "rope_base", "norm", "n_classes"}
    assert set(settings_of(config)) == set(recipe_settings()) - {"text_field"} - variants
    rotary = replace(config, model=replace(config.model, positions="rotary", n_kv_heads=1))
    assert set(settings_of(rotary)) - set(settings_of(config)) == {"positions", "n_kv_heads"}
    assert config_from_settings(settings_of(rotary), recipe="shakespeare") == rotary


def recipe_file(tmp_path, change):
    quick = "\n".join(
        f"{k} = {v!r}"
        for k, v in (
            ("vocab_size", 300),
            ("context_length", 8),
            ("emb_dim", 8),
            ("n_heads", 2),
            ("n_layers", 1),
            ("max_steps", 5),
        )
    )
    path = tmp_path / "mine.toml"
    path.write_text(f"{quick}\n{change}\n", encoding="utf-8")
    return str(path)


def test_a_file_is_a_recipe_too(tmp_path):
    config, _ = load_recipe(recipe_file(tmp_path, "lr = 1e-2"))
    assert (config.train.max_steps, config.train.lr) == (5, 0.01)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("lerning_rate = 1", "unknown key 'lerning_rate'"),
        ("warmup_step = 1", "did you mean 'warmup_steps'"),
        ("out = 'x'", "unknown key 'out'"),
        ("lr = 'fast'", "lr must be a finite number"),
        ("seed = -1", "seed must be at least 0"),
        ("n_classes = 2", "pretraining predicts tokens: leave out n_classes, got 2"),
        ("batch_size = 'many'", "batch_size must be a whole number"),
        ("max_steps = ", "not valid TOML"),
    ],
)
def test_wrong_recipe_is_refused_with_the_reason(tmp_path, change, problem):
    with pytest.raises(PretrainError, match=problem) as caught:
        load_recipe(recipe_file(tmp_path, change))
    assert caught.value.exit_code == USAGE


def test_recipe_that_lacks_a_setting_without_default_names_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("max_steps = 3\n", encoding="utf-8")
    with pytest.raises(PretrainError, match="emb_dim"):
        load_recipe(str(path))


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(PretrainError, match=r"unknown recipe 'shakespear'.*did you mean 'shakespeare'"):
        load_recipe("shakespear")


def test_recipe_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(PretrainError, match=r"cannot read the recipe .*none\.toml"):
        load_recipe(str(tmp_path / "none.toml"))
