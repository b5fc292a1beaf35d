"""CM3ForCausalLM: a transformers model like any other, and the laws of a causal one."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    StaticCache,
)

import cm3
from cm3.model import linear
from cm3.model.config import CM3Config
from cm3.model.linear import project
from cm3.model.transformer import CM3ForCausalLM
from tests.helpers.models import build

VARIANTS: dict[str, dict[str, Any]] = {
    "small": {},
    "tied, relu2": dict(tie_word_embeddings=True, activation="relu2"),
    "cm3leon": dict(norm="layernorm", position="learned", activation="relu", qk_norm=False, num_key_value_heads=4),
    "chameleon": dict(qk_norm_type="layernorm", num_key_value_heads=4),
    "gelu": dict(activation="gelu", qk_norm=False),
    "factorised": dict(embedding_size=16),
    "factorised, tied": dict(embedding_size=16, tie_word_embeddings=True),
}


def some_ids(batch: int = 2, length: int = 12) -> torch.Tensor:  # [B, T]
    return torch.randint(64, 400, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=VARIANTS, scope="module")
def model(request: pytest.FixtureRequest) -> CM3ForCausalLM:
    return build(**VARIANTS[request.param])


@torch.inference_mode()
def test_a_position_does_not_see_what_follows(model: CM3ForCausalLM):
    ids = some_ids()
    changed = ids.clone()
    changed[:, 7:] = 65
    logits, other = model(ids).logits, model(changed).logits
    torch.testing.assert_close(logits[:, :7], other[:, :7])
    assert not torch.allclose(logits[:, 7:], other[:, 7:], atol=1e-2)


@torch.inference_mode()
@pytest.mark.parametrize("few", [0, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 24), (2, 24), (8, 24), (9, 24), (1, 1, 24), (2, 3, 24), (0, 24), (24,)])
def test_few_rows_are_multiplied_as_many_are(shape: tuple[int, ...], dtype: torch.dtype, few: int, monkeypatch):
    monkeypatch.setattr(linear, "TRANSPOSED_ROWS", few)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*size, generator=generator).to(dtype) for size in (shape, (40, 24)))
    out = project(x, weight)
    assert out.shape == (*shape[:-1], 40) and out.dtype == dtype
    torch.testing.assert_close(out, F.linear(x, weight), atol=1e-5, rtol=1e-5)
    if out.numel():
        assert out.view(*shape[:-1], 4, 10).shape[-1] == 10  # heads are looked at without a copy


class Quantised(torch.Tensor):
    """A weight that, as torchao's, knows F.linear alone."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func not in (F.linear, torch.Tensor.shape.__get__, torch.Tensor.requires_grad.__get__):  # pyright: ignore
            raise NotImplementedError(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@torch.inference_mode()
def test_a_quantised_weight_is_used_as_it_wants(monkeypatch):
    monkeypatch.setattr(linear, "TRANSPOSED_ROWS", 8)
    x, weight = torch.randn(2, 24), torch.randn(40, 24)
    quantised = weight.as_subclass(Quantised)
    with pytest.raises(NotImplementedError):
        torch.matmul(quantised, x.t())
    assert torch.equal(project(x, quantised).as_subclass(torch.Tensor), F.linear(x, weight))


@pytest.mark.parametrize(("facts", "few"), [("vendor_id: AuthenticAMD", 8), ("vendor_id: GenuineIntel", 0), (None, 0)])
def test_the_maker_of_the_processor_decides(facts: str | None, few: int, tmp_path, monkeypatch):
    if facts:
        (tmp_path / "cpuinfo").write_text(facts)
    monkeypatch.setattr(linear, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert linear._transposed_rows() == few  # pyright: ignore[reportPrivateUsage]


def test_few_rows_have_their_gradients():
    x, weight = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    assert torch.autograd.gradcheck(project, (x.double(), weight.double()))
    project(x, weight).sum().backward()
    assert weight.grad is not None and torch.allclose(weight.grad, x.detach().sum(0).expand(4, -1))


@torch.inference_mode()
def test_a_position_sees_what_went_before(model: CM3ForCausalLM):
    ids = some_ids()
    changed = ids.clone()
    changed[:, 0] = 65
    assert (model(ids).logits - model(changed).logits)[:, 1:].abs().amax(-1).min() > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cached_equals_uncached(model: CM3ForCausalLM, kind: str):
    ids = some_ids()
    caches = {
        "dynamic": lambda: DynamicCache(config=model.config),
        "static": lambda: StaticCache(model.config, 16),
    }
    cache = caches[kind]()
    steps = [model(piece, cache=cache, use_cache=True).logits for piece in ids.split([5, 1, 1, 3, 2], dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(ids, use_cache=False).logits, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_batch_row_equals_the_row_alone_under_left_padding(model: CM3ForCausalLM):
    ids = some_ids(1, 8)
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), ids), dim=1)
    batch = torch.cat((padded, some_ids(1, 12)))
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(batch, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[:1, 4:], model(ids).logits, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_implementations_agree(implementation: str):
    model = build()
    ids, mask = some_ids(), torch.ones(2, 12, dtype=torch.long)
    mask[0, :3] = 0
    expected = model(ids, attention_mask=mask).logits
    other = copy.deepcopy(model)
    try:
        other.set_attn_implementation(implementation)
        logits = other(ids, attention_mask=mask).logits
    except (ImportError, NotImplementedError, RuntimeError) as error:
        pytest.skip(f"{implementation} does not run here: {str(error)[:80]}")
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


def test_eager_attention_gives_the_weights():
    model = build()
    model.set_attn_implementation("eager")
    out = model(some_ids(), output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 2
    assert out.attentions[0].shape == (2, 4, 12, 12)
    assert len(out.hidden_states) == 3
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(2, 4, 12))
    assert out.attentions[0].triu(1).abs().max() == 0


def test_saving_and_loading_keeps_the_logits(model: CM3ForCausalLM, tmp_path):
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    ids = some_ids()
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path), CM3ForCausalLM.from_pretrained(tmp_path)):
        assert isinstance(loaded, CM3ForCausalLM)
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_tied_weights_are_one_tensor():
    model = build(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model = build()
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_the_model_is_known_to_auto_classes():
    assert isinstance(AutoModelForCausalLM.from_config(CM3Config.preset("tiny")), cm3.CM3ForCausalLM)


@pytest.mark.parametrize("variant", VARIANTS)
def test_output_layers_start_from_zero_and_the_rest_as_configured(variant: str):
    config = CM3Config.preset("tiny", hidden_size=64, init_std=0.05, init_position_std=0.002, **VARIANTS[variant])
    model = CM3ForCausalLM(config)
    for name, weight in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            assert weight.abs().max() == 0, name
        elif "norm" in name:
            assert (weight == (0 if name.endswith("bias") else 1)).all(), name
        else:
            expected = 0.002 if "positions" in name else 0.05
            if "embed_in" in name or "embed_out" in name:  # keeps the size of vectors
                expected = weight.shape[1] ** -0.5
            assert abs(weight.std() / expected - 1) < 0.15, name


def test_a_fresh_model_guesses_evenly_whatever_went_before():
    model = CM3ForCausalLM(CM3Config.preset("tiny"))
    ids = some_ids()
    assert abs(model(ids, labels=ids).loss - torch.tensor(416.0).log()) < 0.1


def test_truncated_init_stays_within_its_sigmas():
    model = CM3ForCausalLM(CM3Config.preset("tiny", init_std=0.1, init_truncation=2.0))
    assert model.lm_head.weight.abs().max() <= 0.2
    assert model.lm_head.weight.abs().max() > 0.15


def test_the_loss_is_the_shifted_cross_entropy_without_ignored_labels(model: CM3ForCausalLM):
    ids = some_ids()
    labels = ids.clone()
    labels[:, 5] = -100
    loss = model(ids, labels=labels).loss
    logits = model.lm_head(model.model(ids).last_hidden_state)[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    keep = labels[:, 1:] != -100
    torch.testing.assert_close(loss, nll[keep].mean())


def test_every_weight_learns(model: CM3ForCausalLM):
    model.zero_grad()
    model(some_ids(), labels=some_ids()).loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_gradient_checkpointing_keeps_the_gradients():
    plain, checkpointed = build().train(), build().train()
    checkpointed.activation_checkpointing_enable()
    for model in (plain, checkpointed):
        model(some_ids(), labels=some_ids()).loss.backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@torch.inference_mode()
def test_logits_to_keep_and_embeddings_as_input(model: CM3ForCausalLM):
    ids = some_ids()
    full = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, full[:, -3:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([2, 5])).logits, full[:, [2, 5]])
    torch.testing.assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, full)
    with pytest.raises(ValueError, match="either"):
        model()


def test_packed_documents_do_not_see_each_other(model: CM3ForCausalLM):
    ids = some_ids(1, 12)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    packed = model(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed[:, 5:], model(ids[:, 5:]).logits, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_transformers_own_generate_works(model: Any):
    ids = some_ids(2, 6)
    new = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert new.shape == (2, 11)
    expected = ids
    for _ in range(5):
        logits = model(expected).logits[:, -1]
        logits[:, 1] = -torch.inf  # <eos> before its time
        expected = torch.cat((expected, logits.argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(new, expected)
    beams = model.generate(ids, max_new_tokens=3, num_beams=2, do_sample=False)
    assert beams.shape == (2, 9)


@torch.inference_mode()
def test_generate_pads_on_the_left():
    model: Any = build()
    ids = some_ids(1, 6)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), ids), dim=1)
    options: dict[str, Any] = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    alone = model.generate(ids, **options)
    new = model.generate(padded, attention_mask=(padded != 0).long(), **options)
    assert torch.equal(new[:, 9:], alone[:, 6:])


def test_autocast_to_bfloat16_stays_close():
    model = build()
    ids = some_ids()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(ids, use_cache=False).logits
    wide = model(ids, use_cache=False).logits
    assert (narrow - wide).abs().mean() < 0.05 * wide.std()


def test_the_pipeline_is_imported_late():
    with pytest.raises(AttributeError, match="CM4"):
        cm3.CM4  # noqa: B018  # pyright: ignore


@torch.inference_mode()
def test_continuous_batching_gives_the_ids_of_generate():
    model: Any = build()
    prompts = [some_ids(1, length)[0].tolist() for length in (3, 9, 6)]
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    model.set_attn_implementation("sdpa")
    room = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
    batch = model.generate_batch(prompts, settings, room, warmup=False)
    alone = [model.generate(torch.tensor([prompt]), generation_config=settings)[0] for prompt in prompts]
    assert sorted(tuple(row.generated_tokens) for row in batch.values()) == sorted(
        tuple(ids[len(prompt) :].tolist()) for prompt, ids in zip(prompts, alone, strict=True)
    )


@torch.inference_mode()
def test_the_cache_goes_by_its_old_name_too():
    model = build()
    ids = some_ids()
    seen = {
        name: model(ids[:, 8:], **{name: model(ids[:, :8], use_cache=True).cache}).logits
        for name in ("cache", "past_key_values")
    }
    assert torch.equal(seen["cache"], seen["past_key_values"])
    torch.testing.assert_close(seen["cache"], model(ids).logits[:, 8:], atol=1e-4, rtol=1e-4)
