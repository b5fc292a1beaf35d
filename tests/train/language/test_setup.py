"""What a run starts from: fresh models, loaded ones, adapters; and what leaves it."""

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cm3 import CM3
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.vocab import Vocab
from documents import write_shards
from tests.helpers.models import build
from tokenizer_image import ImageTokenizer
from train.documents.shard_files import layout, read_meta
from train.documents.shards import finish
from train.language.config import LMConfig
from train.language.lora import Lora, add_lora, merged, save_adapter
from train.language.packing import Batch
from train.language.setup import attention_of, fresh_model, learner_of, loaded_model, rebuilt
from train.runtime import config as configs
from train.runtime.config import override

LORA = Lora(rank=3, alpha=7)


@pytest.fixture(scope="module")
def folder(vq_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("tokens"), vq_folder, [40] * 4)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(5, 400, (2, 30), generator=torch.Generator().manual_seed(0))


def model_of(**fields: object) -> CM3ForCausalLM:
    return build(std=0.2, **fields)


def with_adapters(lora: Lora, **fields: object) -> tuple[CM3ForCausalLM, peft.LoraConfig]:
    """A model whose adapters do something; and their config."""
    model = model_of(**fields)
    config = add_lora(model, lora, 0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn(parameter.shape), alpha=0.3)
    return model.eval(), config


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """As the training loop has it: by named_parameters, which names tied ones once."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_of_codes_that_look_alike_start_alike(folder: Path, vq_folder: Path, tied: bool):
    tokenizer = ImageTokenizer.from_pretrained(vq_folder)
    codebook = tokenizer.model.quantize.codebook()
    likeness = codebook @ codebook.T

    def agreement(weight: Tensor) -> float:
        rows = torch.nn.functional.normalize(weight.data[-tokenizer.num_codes :], dim=-1)
        upper = torch.triu_indices(len(rows), len(rows), 1)
        pairs = torch.stack([(rows @ rows.T)[*upper], likeness[*upper]])
        return torch.corrcoef(pairs)[0, 1].item()

    for codebook_init, low, high in ((True, 0.4, 1.0), (False, -0.2, 0.2)):
        fields = {"hidden_size": 64, "tie_word_embeddings": tied}
        model = fresh_model("tiny", fields, read_meta(folder), tokenizer, codebook_init, 0)
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            assert low < agreement(weight) < high
            std = weight[-tokenizer.num_codes :].std() / weight[: -tokenizer.num_codes].std()
            assert 0.7 < std < 1.4  # the scale of the others


def test_a_fresh_model_has_the_shards_vocabulary_and_is_a_function_of_the_seed(folder: Path, vq_folder: Path):
    meta = read_meta(folder)
    tokenizer, fields = ImageTokenizer.from_pretrained(vq_folder), {"num_hidden_layers": 1}
    before = torch.get_rng_state()
    one, two, other = (fresh_model("tiny", fields, meta, tokenizer, True, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert layout(Vocab.from_config(one.config), one.config.grid) == meta["vocab"] and len(one.model.layers) == 1
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_a_loaded_model_takes_shards_that_were_made_for_it_alone(tiny_folder: Path, folder: Path, tmp_path: Path):
    pipeline = CM3.from_pretrained(tiny_folder, device="cpu")
    text, image = pipeline.text_tokenizer, pipeline.image_tokenizer
    meta = finish(tmp_path, text, pipeline.vocab, image)
    model = loaded_model(str(tiny_folder), meta, "data/x", {})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pipeline.model.parameters(), strict=True))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    for key, was in (("image_tokenizer", image.fingerprint()), ("text_tokenizer", meta["text_tokenizer"])):
        with pytest.raises(
            ValueError,
            match=rf"data/x was made for another model: {key} 0123456789ab is not "
            rf"{tiny_folder}'s {was}; prepare it with --model {tiny_folder}",
        ):
            loaded_model(str(tiny_folder), meta | {key: "0123456789ab"}, "data/x", {})
    vocab = {**meta["vocab"], "image_vocab_size": 77}
    with pytest.raises(ValueError, match=rf"image_vocab_size 77 is not {tiny_folder}'s 32;"):
        loaded_model(str(tiny_folder), meta | {"vocab": vocab}, "data/x", {})
    with pytest.raises(ValueError, match=r"model\.hidden_size cannot change a model that is loaded"):
        loaded_model(str(tiny_folder), meta, "data/x", {"hidden_size": 3})


@pytest.mark.parametrize("embeddings", [False, True])
def test_only_adapters_train_and_embeddings_where_they_are_asked_for(embeddings: bool):
    model = model_of()
    add_lora(model, Lora(rank=2, embeddings=embeddings), 0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapters = {name for name in trained if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 7  # A and B of seven layers in two blocks
    assert trained - adapters == ({"model.embed_tokens.weight", "lm_head.weight"} if embeddings else set())


def test_adapters_change_nothing_at_the_start_and_are_functions_of_the_seed(ids: Tensor):
    plain, before = model_of(), torch.get_rng_state()
    states = []
    for seed in (0, 0, 1):
        model = model_of()
        add_lora(model, LORA, seed)
        assert torch.equal(logits(model.eval(), ids), logits(plain, ids))
        states.append(state_of(model)["model.layers.0.mlp.up_proj.lora_A.default.weight"])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    "lora", [LORA, Lora(rank=4, alpha=1, targets=("q_proj", "up_proj")), Lora(rank=2, embeddings=True)]
)
@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_do_what_adapters_do_and_are_those_of_peft(lora: Lora, tied: bool, ids: Tensor):
    model, config = with_adapters(lora, tie_word_embeddings=tied)
    plain = rebuilt(model.config, merged(state_of(model), lora))
    assert not any("lora" in name for name, _ in plain.named_parameters()) and not plain.training
    assert_close(logits(plain, ids), logits(model, ids), rtol=1e-5, atol=1e-5)
    assert (logits(plain, ids) - logits(model_of(tie_word_embeddings=tied), ids)).abs().max() > 0.1
    if not lora.embeddings:
        theirs = peft.get_peft_model(model_of(tie_word_embeddings=tied), config)  # pyright: ignore[reportArgumentType]
        adapters = {name: value for name, value in state_of(model).items() if ".lora_" in name}
        theirs.load_state_dict({f"base_model.model.{name}": value for name, value in adapters.items()}, strict=False)
        theirs = theirs.merge_and_unload().state_dict()  # pyright: ignore[reportCallIssue]
        assert theirs.keys() == plain.state_dict().keys()
        for name, value in plain.state_dict().items():
            assert_close(value, theirs[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_peft_reads_the_saved_adapters_onto_the_model_they_were_trained_on(tmp_path: Path, tied: bool, ids: Tensor):
    model, config = with_adapters(LORA, tie_word_embeddings=tied)
    save_adapter(state_of(model), config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 1  # safetensors alone would let nobody else read its file
    facts = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (facts["r"], facts["lora_alpha"], len(facts["target_modules"])) == (3, 7, 7)
    base = model_of(tie_word_embeddings=tied)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()  # pyright: ignore[reportArgumentType]
    assert_close(logits(loaded, ids), logits(model, ids), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_saved_adapters_bring_the_embeddings_that_were_trained_with_them(tmp_path: Path, tied: bool, ids: Tensor):
    model, config = with_adapters(Lora(rank=2, embeddings=True), tie_word_embeddings=tied)
    save_adapter(state_of(model), config, tmp_path)
    base = model_of(tie_word_embeddings=tied)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()  # pyright: ignore[reportArgumentType]
    assert_close(logits(loaded, ids), logits(model, ids), rtol=1e-6, atol=1e-6)


def test_all_layers_inside_the_blocks_get_adapters_where_none_are_named():
    for fields, count in (({}, 7), ({"activation": "relu"}, 6)):
        model = model_of(**fields)
        add_lora(model, Lora(rank=2), 0)
        layers = {
            name.split(".")[-4] + "." + name.split(".")[-3]
            for name, _ in model.named_parameters()
            if ".lora_A." in name
        }
        assert len(layers) == count


@pytest.mark.parametrize("targets", [("q_proj", "nothing"), ("nothing",), ("lm_head",), ("embed_tokens", "q_proj")])
def test_targets_that_the_blocks_lack_are_named(targets: tuple[str, ...]):
    lacking = ({*targets} - {"q_proj"}).pop()
    with pytest.raises(ValueError, match=rf"lora\.targets {lacking}: the model's blocks have no such layers, but dow"):
        add_lora(model_of(), Lora(rank=2, targets=targets), 0)


@pytest.mark.parametrize("tied", [False, True])
def test_a_rebuilt_model_shares_no_memory_and_gives_the_same_logits(tied: bool, ids: Tensor):
    model = model_of(tie_word_embeddings=tied)
    before = torch.get_rng_state()
    twin = rebuilt(model.config, state_of(model))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits(twin, ids), logits(model, ids))
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())
    assert (twin.lm_head.weight is twin.model.embed_tokens.weight) == tied


def test_a_run_can_be_told_to_train_embeddings_with_its_adapters():
    assert configs.fill(LMConfig, {"lora": {"rank": 2, "embeddings": True}}).lora == Lora(2, embeddings=True)


@pytest.mark.parametrize("softmax", ["all", "modality"])
def test_the_loss_has_the_softmax_that_the_settings_name(softmax: str, folder: Path, vq_folder: Path):
    config = override(LMConfig(), {"preset": "tiny", "data.seq_len": 64, "loss.softmax": softmax})
    learner = learner_of(
        config, read_meta(folder), ImageTokenizer.from_pretrained(vq_folder), torch.device("cpu")
    ).learner
    vocab = Vocab.from_config(learner.model.config)
    assert learner.first_code == (0 if softmax == "all" else vocab.first_code)
    ids = torch.tensor([[vocab.bos, vocab.first_text, vocab.first_code]])
    losses = learner(Batch(ids, torch.ones(1, 3), torch.ones(1, 3, dtype=torch.int64), torch.arange(3)[None]))
    logits = learner.model(input_ids=ids, use_cache=False).logits[0, :-1]
    if softmax == "modality":
        logits[0, vocab.first_code :] = logits[1, : vocab.first_code] = -torch.inf
    assert_close(losses.total, torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))


def test_attention_fits_the_device_and_the_heads_unless_told(monkeypatch):
    config, cpu, gpu = LMConfig(), torch.device("cpu"), torch.device("cuda")
    assert attention_of(config, cpu, 64) == "eager"
    assert attention_of(replace(config, attention="sdpa"), cpu, 64) == "sdpa"
    monkeypatch.setattr("train.language.setup.is_flash_attn_2_available", lambda: False)
    assert [attention_of(config, gpu, size) for size in (64, 8, 48)] == ["flex_attention", "sdpa", "sdpa"]
    monkeypatch.setattr("train.language.setup.is_flash_attn_2_available", lambda: True)
    assert attention_of(config, gpu, 64) == "flash_attention_2"
