"""What transformers' own common tests ask of a model, and what a folder owes to tools that know only transformers.

What they ask besides (attention implementations, left padding, tied weights, checkpointing ...) stands in
test_transformer.py.
"""

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    StaticCache,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cm3 import CM3
from cm3.engine.guidance import ClassifierFree
from cm3.engine.options import GREEDY
from cm3.hf.model_folder import EMBEDDED
from cm3.hf.modeling import CM3ForConditionalGeneration, GrammarLogitsProcessor
from cm3.hf.processing import CM3Processor
from cm3.hf.remote_code import code
from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.document import Document, Image, Text
from cm3.tokens.encoding import draw_ids, encode
from tests.helpers.checkout import ROOT
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


# generate()


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


# Sizes and plans


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


# The tokenizer of a folder

ANYTHING = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(["<eos>", "<break>", "<image>", "<code:5>", "<mask:0>", "<pad>", "<bos>", " ", "a", "تفاحة"]),
        max_size=6,
    ).map("".join),
)


@pytest.fixture(scope="module")
def emoji() -> CM3:
    return CM3.from_pretrained("emoji", device="cpu")


@pytest.fixture(scope="module")
def auto() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED / "emoji")


@given(ANYTHING)
def test_auto_tokenizer_gives_the_ids_of_the_pipeline_whatever_the_text_spells(words: str):
    for one in (TOKENIZERS["auto"], TOKENIZERS["tokenizers"]):
        got = one(words)
        assert got == TOKENIZERS["pipeline"](words)
        assert all(4096 + 64 > id >= 64 for id in got)


@pytest.fixture(scope="module", autouse=True)
def tokenizers(emoji: CM3, auto: Any) -> None:
    raw = Tokenizer.from_file(str(EMBEDDED / "emoji" / "tokenizer.json"))

    def sound(words: str) -> str:
        return words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    TOKENIZERS["auto"] = lambda words: auto(sound(words))["input_ids"]
    TOKENIZERS["tokenizers"] = lambda words: raw.encode(sound(words)).ids
    TOKENIZERS["pipeline"] = lambda words: emoji.vocab.text_to_ids(emoji.text_tokenizer.encode(words))


TOKENIZERS: dict[str, Any] = {}


def test_the_ids_of_an_apple(auto: Any):
    assert auto("a red apple")["input_ids"] == [128, 1125, 1337]


def test_every_id_has_its_name_and_special_tokens_their_roles(auto: Any, emoji: CM3):
    vocab = emoji.vocab
    ids = [vocab.pad, vocab.eos, vocab.break_, vocab.image, vocab.mask(3), vocab.infill(0), vocab.placeholder]
    assert auto.convert_ids_to_tokens(ids) == [vocab.name(id) for id in ids]
    assert auto.convert_tokens_to_ids("<code:7>") == vocab.code_to_id(7)
    assert (auto.pad_token_id, auto.eos_token_id, auto.bos_token_id) == (vocab.pad, vocab.eos, vocab.bos)
    assert len(auto) == len(vocab) and auto.model_max_length == emoji.context
    document = Document((Text("a red apple"), Image(torch.zeros(8, 8, dtype=torch.long))))
    spelled = auto.decode(encode(document, vocab, emoji.text_tokenizer).ids)
    assert spelled.startswith("<eos>a red apple<break><image><code:0><code:0>")


def test_a_batch_is_padded_on_the_left(auto: Any):
    batch = auto(["a", "a red apple"], padding=True)
    assert batch["input_ids"] == [[0, 0, 128], [128, 1125, 1337]] and batch["attention_mask"][0] == [0, 0, 1]


def test_a_saved_tokenizer_is_the_same(auto: Any, tmp_path: Path):
    auto.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for words in ("a red apple", "<break><eos>", "تفاحة"):
        assert again(words)["input_ids"] == auto(words)["input_ids"]


# Processor and multimodal model


@pytest.fixture(scope="module")
def folder(emoji: CM3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "emoji"
    emoji.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def processor(folder: Path) -> CM3Processor:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def multimodal(folder: Path) -> Any:
    return AutoModelForMultimodalLM.from_pretrained(folder).eval()


def codes_of(ids: torch.Tensor, model: CM3) -> list[int]:
    return [model.vocab.id_to_code(id) for id in ids.tolist() if model.vocab.is_code(id)]


def test_the_auto_classes_give_our_classes(folder: Path, processor: Any, multimodal: Any):
    assert isinstance(multimodal, CM3ForConditionalGeneration) and isinstance(processor, CM3Processor)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(folder), CM3ForConditionalGeneration)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_generate_draws_what_the_pipeline_draws(scale: float, processor: Any, multimodal: Any, emoji: CM3):
    inputs = processor(text=["a red apple", "a cow in the noto style"], generation_mode="image", return_tensors="pt")
    ids = multimodal.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=scale)
    guide = ClassifierFree(image=scale)
    for row, words in zip(ids, ("a red apple", "a cow in the noto style"), strict=True):
        request = emoji.prompts.image(Document((Text(words),)), [emoji.prompts.nothing], guide, GREEDY, 0)
        assert codes_of(row, emoji) == emoji.draw_codes([request])[0].flatten().tolist()
    images = processor.post_process_multimodal_output(multimodal.decode_image_tokens(ids), generation_mode="image")
    assert [image.size for image in images] == [emoji.image_tokenizer.size] * 2


def test_captions_and_answers_are_those_of_the_pipeline(processor: Any, multimodal: Any, emoji: CM3):
    images = emoji.generate(["a red apple", "a cow"], seed=5)
    shown = [some[0] for some in images]

    def told(messages: list[Any]) -> list[str]:
        inputs = processor.apply_chat_template(messages, tokenize=True, return_tensors="pt")
        ids = multimodal.generate(**inputs, generation_mode="text", do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [words.strip() for words in processor.post_process_multimodal_output(new)]

    def message(image: Any, *words: str) -> list[Any]:
        content = [{"type": "image", "image": image}, *({"type": "text", "text": one} for one in words)]
        return [{"role": "user", "content": content}]

    assert told([message(one) for one in shown]) == emoji.caption(shown)
    questions = ["What is this?", "ما هذا؟"]
    asked = [message(one, words) for one, words in zip(shown, questions, strict=True)]
    assert told(asked) == emoji.answer(shown, questions)


def test_beams_sampling_and_assistance_stay_within_the_grammar(processor: Any, multimodal: Any, emoji: CM3):
    inputs = processor(text="a red apple", generation_mode="image", return_tensors="pt")
    for options in (
        {"num_beams": 3, "num_return_sequences": 3, "do_sample": False},
        {"do_sample": True, "num_return_sequences": 2, "top_p": 0.9},
        {"prompt_lookup_num_tokens": 2, "do_sample": False},
    ):
        ids = multimodal.generate(**inputs, generation_mode="image", **options)
        for row in ids:
            assert len(codes_of(row, emoji)) == 64 and row.tolist().count(emoji.vocab.image) == 1


def test_a_prompt_lookup_draws_what_greedy_decoding_draws(processor: Any, multimodal: Any):
    inputs = processor(text="a red apple", generation_mode="image", return_tensors="pt")
    plain = multimodal.generate(**inputs, generation_mode="image", do_sample=False)
    looked_up = multimodal.generate(**inputs, generation_mode="image", do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(plain, looked_up)


def test_interleaved_output_is_texts_and_codes(processor: Any, multimodal: Any, emoji: CM3):
    inputs = processor(text="a red apple", generation_mode="interleaved", return_tensors="pt")
    torch.manual_seed(1)
    ids = multimodal.generate(**inputs, generation_mode="interleaved", do_sample=True, num_return_sequences=4)
    documents = processor.post_process_multimodal_output(ids, generation_mode="interleaved")
    assert all(isinstance(items[0], str) and items[0].startswith("a red apple") for items in documents)
    grids = [item for items in documents for item in items if not isinstance(item, str)]
    assert grids and all(grid.shape == emoji.grid for grid in grids)
    assert multimodal.decode_codes(torch.stack(grids)).shape == (len(grids), 3, *emoji.image_tokenizer.size)


def test_text_that_spells_special_tokens_stays_text_in_the_processor(processor: Any, emoji: CM3):
    ids = processor(text="<image> <placeholder>", generation_mode="image")["input_ids"][0]
    special = [emoji.vocab.name(id) for id in ids if emoji.vocab.is_special(id)]
    assert special == ["<eos>", "<break>", "<image>"]


def test_logits_with_pixels_are_those_with_the_codes(processor: Any, multimodal: Any, emoji: CM3):
    image = emoji.generate("a cow", seed=2)[0]
    inputs = processor(text="Caption: ", images=image, return_tensors="pt")
    ids = torch.tensor([emoji.prompts.question_ids("Caption: ", emoji.processor.encode(image))])
    with torch.inference_mode():
        assert torch.equal(multimodal(**inputs).logits, multimodal(input_ids=ids).logits)


def test_what_cannot_be_processed_is_named(processor: Any, multimodal: Any, emoji: CM3):
    image = emoji.generate("a cow", seed=2)[0]
    with pytest.raises(ValueError, match="generation_mode must be"):
        processor(text="a", generation_mode="audio")
    with pytest.raises(ValueError, match="generation_mode must be"):
        multimodal.generate(torch.tensor([[1, 128]]), generation_mode="audio")
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        processor(text=["a", "b"], images=[image] * 3)
    with pytest.raises(ValueError, match="trained on one message"):
        processor.apply_chat_template([{"role": "system", "content": "a"}], tokenize=True)
    with pytest.raises(ValueError, match="type 'video'"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}], tokenize=True)
    inputs = processor(text="Caption: ", images=image, return_tensors="pt")
    with pytest.raises(ValueError, match="no pixel_values"):
        multimodal(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="placeholders for 64 codes, but the images have 128"):
        multimodal(**{**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)})
    with pytest.raises(ValueError, match="an image has 64 codes"):
        multimodal.decode_image_tokens(torch.tensor([[1, 128, 2, 3, 4200]]))
    with pytest.raises(ValueError, match="without an image tokenizer"):
        CM3ForConditionalGeneration(emoji.model.config).decode_codes(torch.zeros(1, 8, 8, dtype=torch.long))


def test_the_multimodal_model_saves_what_others_read(multimodal: Any, tmp_path: Path):
    multimodal.save_pretrained(tmp_path)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), CM3ForCausalLM)
    again: Any = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    codes = torch.arange(64).view(1, 8, 8)
    assert torch.equal(again.decode_codes(codes), multimodal.decode_codes(codes))


def test_the_grammar_goes_on_from_rows_that_it_has_not_seen(emoji: CM3):
    vocab = emoji.vocab
    prompt = emoji.prompts.ids(Document((Text("a cat"),)), draw_ids)
    rows = torch.tensor([prompt + [vocab.code_to_id(5)] * 64])
    grammar = GrammarLogitsProcessor(vocab, "image", 64, 70)
    scores = torch.zeros(1, len(vocab))
    grammar(rows[:, : len(prompt)], scores)
    assert grammar(rows, scores).argmax().item() == vocab.end_image  # 64 steps at once
    ended = torch.cat((rows, torch.tensor([[vocab.end_image]])), dim=1)
    assert grammar(ended, scores).argmax().item() == vocab.eos
    assert grammar(torch.cat((ended, torch.tensor([[vocab.eos, vocab.pad]])), 1), scores).argmax().item() == vocab.eos


PIPELINES = """
import sys, warnings
for name in ("cm3", "tokenizer_image"):
    sys.modules[name] = None  # not importable
import torch, transformers
from transformers import (AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor,
    AutoTokenizer, pipeline)
from transformers.pipelines import any_to_any
transformers.utils.logging.set_verbosity_error()
folder, trust = sys.argv[1], dict(trust_remote_code=True)
assert AutoConfig.from_pretrained(folder, **trust).hidden_size == 256
ids = AutoTokenizer.from_pretrained(folder, **trust)("a red apple", return_tensors="pt")
assert AutoModel.from_pretrained(folder, **trust)(**ids).last_hidden_state.shape == (1, 3, 256)
alone = AutoModelForCausalLM.from_pretrained(folder, **trust)
assert alone.generate(**ids, max_new_tokens=2, min_new_tokens=2).shape == (1, 5)
processor = AutoProcessor.from_pretrained(folder, **trust)
model = AutoModelForMultimodalLM.from_pretrained(folder, **trust)
inputs = processor(text="a red apple", generation_mode="image", return_tensors="pt")
drawn = model.decode_image_tokens(model.generate(**inputs, generation_mode="image", do_sample=False))
image = processor.post_process_multimodal_output(drawn, generation_mode="image")[0]
print("drawn", image.size)
any_to_any.requires_backends = lambda *names: None  # it asks for torchvision, which nothing here needs
asked = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]}]
tell = {"generation_mode": "text"}
for task in ("any-to-any", "image-text-to-text"):
    ask = pipeline(task, model=folder, **trust)
    print(task, ask(text=asked, return_full_text=False, generate_kwargs=tell)[0]["generated_text"].strip())
draw = pipeline("any-to-any", model=folder, **trust)
said = [{"role": "user", "content": [{"type": "text", "text": "a red apple"}]}]
print("drawn", draw(text=said, generation_mode="image")[0]["generated_image"].size)
assert "torchvision" not in sys.modules
"""


def test_a_folder_opens_without_this_package_and_runs_in_transformers_pipelines(
    folder: Path, tmp_path: Path, emoji: CM3, processor: Any, multimodal: Any
):
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", PIPELINES, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    inputs = processor(text="a red apple", generation_mode="image", return_tensors="pt")
    drawn = multimodal.decode_image_tokens(multimodal.generate(**inputs, generation_mode="image", do_sample=False))
    said = emoji.answer(processor.image_processor.postprocess(drawn)[0], "What is this?")
    size = f"drawn {emoji.image_tokenizer.size}"
    lines = [size, f"any-to-any {said}", f"image-text-to-text {said}", size]
    assert done.stdout.splitlines() == lines


def test_a_folder_carries_the_packages_own_code_and_nothing_that_leads_back_to_it(folder: Path):
    for name, content in code().items():
        assert (folder / name).read_text() == content
        assert not re.search(r"^\s*(from|import) (cm3|tokenizer_image)\b", content, re.MULTILINE)
    config = json.loads((folder / "config.json").read_text())
    for entry in config["auto_map"].values():
        module, _, name = entry.partition(".")
        assert f"class {name}(" in (folder / f"{module}.py").read_text()


def test_the_embedded_folder_names_no_code():
    for path in (EMBEDDED / "emoji").glob("*.json"):
        assert "auto_map" not in path.read_text()
    assert not list((ROOT / "cm3" / "pretrained").rglob("*.py"))


TWO_RANKS = """
import os, sys, warnings
import torch
import torch.distributed as dist
import cm3.hf.auto
from transformers import AutoModelForCausalLM
warnings.simplefilter("ignore")
dist.init_process_group("gloo")
assert dist.get_world_size() == 2
ids = torch.arange(64, 104)[None]
whole = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
divided = AutoModelForCausalLM.from_pretrained(sys.argv[1], tp_plan="auto").eval()
with torch.inference_mode():
    gap = (whole(ids).logits - divided(ids).logits).abs().max().item()
local = divided.model.layers[0].mlp.up_proj.weight.to_local().shape[0]
os.write(1, f"gap {gap} {local}\\n".encode())  # whole, whatever the other process prints
dist.barrier()
"""


@pytest.mark.slow
def test_two_processes_with_half_of_each_layer_give_the_logits_of_one(folder: Path, tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(script), str(folder)], capture_output=True, text=True, env=environment, timeout=300
    )
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("gap")]
    assert len(rows) == 2, done.stderr[-2000:]
    assert all(float(gap) < 1e-4 and int(local) == 352 for _, gap, local in rows)
