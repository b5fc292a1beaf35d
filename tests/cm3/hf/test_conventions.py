"""What transformers' own common tests ask of a model.

What they ask besides (attention implementations, left padding, tied weights, checkpointing ...) stands in
test_transformer.py.
"""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cm3 import CM3
from cm3.model.config import CM3Config
from tests.helpers.models import build

GREEDY_TWELVE = GenerationConfig(max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=1)
VARIANTS: dict[str, dict[str, Any]] = {
    "small": {},
    "cm3leon": dict(norm="layernorm", position="learned", activation="relu", qk_norm=False, num_key_value_heads=4),
    "chameleon": dict(qk_norm_type="layernorm", num_key_value_heads=4, swin_norm=True),
}


@pytest.fixture(params=VARIANTS, scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    return build(**VARIANTS[request.param])


def some_ids(batch: int = 1, length: int = 10) -> torch.Tensor:  # [B, T]
    return torch.randint(64, 400, (batch, length), generator=torch.Generator().manual_seed(1))


def test_every_cache_gives_the_same_ids(model: Any):
    ids = some_ids(2)
    dynamic = model.generate(ids, generation_config=GREEDY_TWELVE)
    static = model.generate(ids, generation_config=GREEDY_TWELVE, cache_implementation="static")
    without = model.generate(ids, generation_config=GREEDY_TWELVE, use_cache=False)
    for other in (static, without):
        assert torch.equal(dynamic, other)


def test_assisted_decoding_and_prompt_lookup_give_the_ids_of_greedy_decoding(model: Any):
    ids = some_ids()
    ids = torch.cat((ids, ids[:, :6]), dim=1)  # something to look up
    alone = model.generate(ids, generation_config=GREEDY_TWELVE)
    for helper in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": build(num_hidden_layers=1)}):
        assert torch.equal(model.generate(ids, generation_config=GREEDY_TWELVE, **helper), alone)


def test_beams_are_at_least_as_likely_as_greedy_ids(model: Any):
    ids = some_ids()

    def likelihood(rows: torch.Tensor) -> float:
        with torch.inference_mode():
            chosen = model(rows).logits[:, 9:-1].log_softmax(-1).gather(2, rows[:, 10:, None])
        return chosen.sum().item()

    options = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)
    one, many = model.generate(ids, **options), model.generate(ids, num_beams=50, **options)
    assert likelihood(many) >= likelihood(one) - 1e-4


@pytest.mark.slow  # a minute of compilation
def test_the_decode_step_compiles_to_one_graph():
    model, ids = build(), some_ids(2, 6)
    cache = StaticCache(config=model.config, max_cache_len=16)
    with torch.inference_mode():
        model(ids, cache=cache, use_cache=True)
        step = torch.compile(model, fullgraph=True)
        new = some_ids(2, 1)
        got = step(new, cache=cache, use_cache=True, position_ids=torch.full((1, 1), 6)).logits
        torch.testing.assert_close(got[:, -1], model(torch.cat((ids, new), 1)).logits[:, -1], atol=1e-4, rtol=1e-4)


def test_what_an_engine_hands_to_the_model_reaches_its_attention():
    """vLLM gives each layer an attention of its own by a keyword, and gives the ids of all rows as one."""
    model, seen = build(), []

    def attend(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **kwargs: Any) -> Any:
        mine = kwargs["attention_instances"][module.layer_idx]
        seen.append((module.layer_idx, mine, module.is_causal, kwargs["scaling"]))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, mask, **{"scaling": kwargs["scaling"]})

    ALL_ATTENTION_FUNCTIONS.register("an_engine", attend)
    ids = some_ids()
    expected = model(ids, use_cache=False).logits
    model.set_attn_implementation("an_engine")
    out = model.model(
        input_ids=None,
        inputs_embeds=model.get_input_embeddings()(ids),
        position_ids=torch.arange(10)[None],
        use_cache=False,
        attention_instances={0: "first", 1: "second"},
        return_dict=False,
    )
    assert seen == [(0, "first", True, 8**-0.5), (1, "second", True, 8**-0.5)]
    torch.testing.assert_close(model.lm_head(out[0]), expected)
    assert type(model.model).is_backend_compatible()


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_can_be_resized_and_the_model_saved_loaded_and_used(tied: bool, tmp_path: Path, tiny: CM3):
    model = build(image_grid=(4, 4), tie_word_embeddings=tied)
    whole = CM3(model, tiny.text_tokenizer, tiny.image_tokenizer)
    whole.save_pretrained(tmp_path)
    drawn = whole.generate("a cat", seed=3)[0].tobytes()
    ids = some_ids()
    before = model(ids).logits
    model.resize_token_embeddings(len(tiny.vocab) + 16)
    assert model.lm_head.weight.shape == model.model.embed_tokens.weight.shape == (len(tiny.vocab) + 16, 32)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    torch.testing.assert_close(model(ids).logits[..., : len(tiny.vocab)], before)
    model.save_pretrained(tmp_path)
    (tmp_path / "checksums.json").unlink()
    again = CM3.from_pretrained(tmp_path, device="cpu")
    assert again.model.config.vocab_size == len(tiny.vocab) + 16
    assert again.generate("a cat", seed=3)[0].tobytes() == drawn


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tensor_parallel_plan_names_modules_that_there_are_and_divides_them(variant: str):
    model = build(**VARIANTS[variant])
    modules = dict(model.model.named_modules())
    plan: dict[str, str] = model.config.base_model_tp_plan
    has_gate = model.config.activation == "swiglu"
    for pattern, style in plan.items():
        found = [name for name in modules if fnmatch(name, pattern)]
        known = "gate_proj" not in pattern or has_gate
        assert len(found) == (model.config.num_hidden_layers if known else 0), pattern
        if style in ("colwise", "rowwise") and found:
            assert modules[found[0]].weight.shape[style == "rowwise"] % 2 == 0
    divided = "layers.*.self_attn.q_proj" in plan
    assert divided == (variant != "chameleon")  # its norms have a row for each head
    assert ("layers.*.self_attn.q_norm" in plan) == divided
    assert "base_model_tp_plan" not in model.config.to_dict()


def test_rotary_positions_are_given_as_llama_has_them(tmp_path: Path):
    given_so = CM3Config.preset("tiny", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert given_so.rope_theta == 500.0
    assert CM3Config.preset("tiny", rope_theta=500.0).rope_parameters == given_so.rope_parameters
    given_so.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["rope_parameters"] == {"rope_type": "default", "rope_theta": 500.0}
    assert CM3Config.from_pretrained(tmp_path).rope_theta == 500.0
    with pytest.raises(ValueError, match="rope_type is 'yarn'"):
        CM3Config.preset("tiny", rope_parameters={"rope_type": "yarn"})
