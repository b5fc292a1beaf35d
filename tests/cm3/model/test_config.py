"""CM3Config: the sizes, what is derived, and what is refused."""

import pytest
from transformers import AutoConfig

from cm3.model.config import PRESETS, CM3Config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_its_parts_add_up(name: str):
    config = CM3Config.preset(name)
    assert config.vocab_size == config.num_special_tokens + config.text_vocab_size + config.image_vocab_size
    assert config.head_dim * config.num_attention_heads == config.hidden_size


def test_the_paper_family_follows_the_paper():
    config = CM3Config.preset("cm3leon-7b")
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (32, 4096, 16384)
    assert (config.norm, config.position, config.qk_norm) == ("layernorm", "learned", False)
    assert (config.init_std, config.init_position_std, config.init_truncation) == (0.006, 0.0002, 3.0)
    assert config.image_grid == (32, 32)


def test_saving_and_loading_keeps_the_config(tmp_path):
    config = CM3Config.preset("tiny", image_grid=(3, 5), rope_theta=500.0)
    config.save_pretrained(tmp_path)
    for loaded in (CM3Config.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, CM3Config)
        assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
        assert loaded.image_grid == (3, 5)


def test_overrides_replace_the_presets_fields():
    assert CM3Config.preset("tiny", hidden_size=64).hidden_size == 64


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (dict(hidden_size=30), "multiple"),
        (dict(num_key_value_heads=3), "num_key_value_heads"),
        (dict(num_attention_heads=32), "even"),
        (dict(norm="batchnorm"), "rmsnorm, layernorm"),
        (dict(activation="tanh"), "swiglu"),
        (dict(position="alibi"), "rope, learned"),
        (dict(num_hidden_layers=0), "num_hidden_layers"),
        (dict(num_special_tokens=8), "40"),
        (dict(vocab_size=100), "100"),
        (dict(image_grid=(0, 4)), "image_grid"),
        (dict(image_grid=(4,)), "image_grid"),
        (dict(widht=4), "widht"),
    ],
)
def test_a_mistake_is_named(overrides: dict, word: str):
    if "num_attention_heads" in overrides:
        overrides["num_key_value_heads"] = 32
    with pytest.raises(ValueError, match=word):
        CM3Config.preset("tiny", **overrides)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="emoji"):
        CM3Config.preset("huge")
