"""Chameleon's weights become this package's, and back: the same logits, the same ids, the same bits."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PIL_Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer, ChameleonForConditionalGeneration

from cm3 import CM3
from cm3.cli import main as cli
from cm3.engine.options import AnswerOptions
from cm3.hf.chameleon import Order, code_of, order_of, weights
from cm3.hf.convert import SOURCE, Stored, convert, convert_back, write_shards
from cm3.tokens.document import Document, Image, Mask, Text
from cm3.tokens.encoding import from_ids, image_ids, image_prompt_ids, text_ids, to_ids
from cm3.tokens.tokenizer_json import load_text
from cm3.tokens.vocab import Vocab
from tests.helpers.chameleons import CODES, build_tokenizer, vocabulary, write_chameleon, write_meta
from tests.helpers.checkout import ROOT
from tokenizer_image.convert import convert as convert_image_tokenizer

WORDS = "a blue car beside two cats"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chameleon")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> ChameleonForConditionalGeneration:
    return write_chameleon(folder, shard="20KB")


@pytest.fixture(scope="module")
def converted(folder: Path, theirs: Any) -> Path:
    convert(folder / "hf", folder / "ours", folder / "vqgan.ckpt")
    return folder / "ours"


@pytest.fixture(scope="module")
def ours(converted: Path) -> CM3:
    return CM3.from_pretrained(converted, device="cpu")


@pytest.fixture(scope="module")
def order() -> Order:
    return order_of(vocabulary(build_tokenizer(), "<image>"))


def unmasked(model: ChameleonForConditionalGeneration, ids: torch.Tensor) -> torch.Tensor:  # [B, T] -> [B, T, V]
    """The logits before transformers takes those of the image codes away."""
    with torch.no_grad():
        return model.lm_head(model.model(input_ids=ids).last_hidden_state)


def largest_gap(model: CM3, theirs: ChameleonForConditionalGeneration, order: Order) -> float:
    """Between the logits after the same ids, of text and of image codes."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ids = torch.randint(40, len(order.rows), (2, 40))
    rows = torch.tensor(order.rows)
    with torch.no_grad():
        mine = model.model(ids).logits
    return (mine - unmasked(theirs, rows[ids])[..., rows]).abs().max().item()


def test_the_order_of_ids_is_a_bijection_by_name(order: Order):
    names = vocabulary(build_tokenizer(), "<image>")
    assert sorted(order.rows) == sorted(names.values())
    assert order.num_codes == CODES
    vocab = Vocab(64, order.num_text, CODES, "chameleon")
    back = {id: name for name, id in names.items()}
    assert [back[order.rows[id]] for id in (vocab.pad, vocab.eos, vocab.bos, vocab.image, vocab.end_image)] == [
        *("<pad>", "</s>", "<s>", "<racm3:break>", "<eoss>")
    ]
    assert [code_of(back[id]) for id in order.rows[-CODES:]] == list(range(CODES))


def test_the_logits_are_theirs_with_those_of_image_codes(ours: CM3, theirs: Any, order: Order):
    assert largest_gap(ours, theirs, order) < 1e-5


SHAPES = [{"swin_norm": True}, {"num_key_value_heads": 2}, {"rms_norm_eps": 1e-3}]


@pytest.mark.parametrize("overrides", SHAPES, ids=str)
def test_the_other_shapes_too(overrides: dict[str, Any], order: Order, tmp_path: Path):
    model = write_chameleon(tmp_path, seed=3, **overrides)
    convert(tmp_path / "hf", tmp_path / "ours", tmp_path / "vqgan.ckpt")
    assert largest_gap(CM3.from_pretrained(tmp_path / "ours"), model, order) < 1e-5


@pytest.mark.parametrize(("parts", "groups"), [(1, 4), (1, 2), (2, 4), (2, 2)])
def test_metas_layout_gives_the_same(parts: int, groups: int, order: Order, tmp_path: Path):
    model = write_chameleon(tmp_path, num_key_value_heads=groups)
    expected = write_meta(model, tmp_path / "meta", parts)
    shutil.copy(tmp_path / "vqgan.ckpt", tmp_path / "meta" / "tokenizer")
    (tmp_path / "meta" / "tokenizer" / "vqgan.yaml").write_text("model:\n  params:\n    resolution: 64\n")
    model.load_state_dict(expected, strict=False)
    convert(tmp_path / "meta", tmp_path / "ours")
    assert largest_gap(CM3.from_pretrained(tmp_path / "ours"), model, order) < 1e-5


def test_text_has_their_ids_and_no_special_tokens(ours: CM3, converted: Path, order: Order, folder: Path):
    alone, auto = AutoTokenizer.from_pretrained(folder / "hf"), AutoTokenizer.from_pretrained(converted)
    for words in (WORDS, "تفاحة حمراء", "new words, 42 of them!"):
        mine = ours.vocab.text_to_ids(ours.text_tokenizer.encode(words))
        assert [order.rows[id] for id in mine] == alone(words, add_special_tokens=False)["input_ids"]
        assert auto(words)["input_ids"] == mine and ours.processor.text(mine) == words
    for spelled in ("<s>", "IMGIMGBZ", "<reserved08706>", "<racm3:break>"):
        assert all(map(ours.vocab.is_text, auto(f"a {spelled}")["input_ids"]))


def test_a_conversation_is_turns(ours: CM3):
    red, vocab = PIL_Image.new("RGB", (32, 32), "red"), ours.vocab
    spell = partial(text_ids, vocab=vocab, tokenizer=ours.text_tokenizer)
    asked = ours.jobs.answer(red, "Why?", AnswerOptions(history=[("What?", "a cat"), ("Red?", "no")]))
    [request] = asked.requests
    assert request.prompt == [
        *(vocab.bos, *image_ids(ours.processor.encode(red), vocab), *spell("What?"), vocab.end_turn, *spell("a cat")),
        *(*spell("Red?"), vocab.end_turn, *spell("no"), *spell("Why?"), vocab.end_turn),
    ]
    assert isinstance(ours.texts([request])[0], str)


def test_every_task_runs(ours: CM3):
    job = ours.jobs.generate(WORDS)
    ids = ours.run_requests(job.requests)
    assert sum(map(ours.vocab.is_code, ids[0])) == 1024 and ids[0][-1] == ours.vocab.end_image
    job.give(ids)
    image = job.result[0]
    assert image.size == (64, 64)
    assert isinstance(ours.caption(image), str) and isinstance(ours.answer(image, "What is this?"), str)
    assert ours.edit(image, "make it red").size == (64, 64)
    mask = image.convert("L").point(lambda _: 0)
    mask.paste(255, (0, 0, 32, 32))
    filled = ours.infill(image, mask)[0]
    assert filled.crop((40, 40, 64, 64)).tobytes() == image.crop((40, 40, 64, 64)).tobytes()
    document = Document((Text(WORDS), Image(torch.zeros(32, 32, dtype=torch.long))))
    assert len(ours.score(document).ids) == len(ours.prompts.ids(document, to_ids)) - 1
    assert len(ours.complete(Document((Text("a"),)), seed=1)) >= 1
    with pytest.raises(ValueError, match="without masks"):
        ours.complete(Document((Text("a"), Mask())))


def test_prompts_are_laid_as_chameleon_was_taught(ours: CM3):
    vocab = ours.vocab
    image = Image(torch.arange(1024).view(32, 32) % CODES)
    drawn = ours.prompts.ids(Document((Text("a"),)), image_prompt_ids)
    assert [vocab.name(id) for id in drawn if vocab.is_special(id)] == ["<bos>", "<end_turn>", "<image>"]
    asked = ours.prompts.text("What?", image, ours.jobs.generate("a").requests[0].sampling, 0).prompt
    shape = [vocab.name(id) if vocab.is_special(id) else "text" if vocab.is_text(id) else "code" for id in asked]
    assert list(dict.fromkeys(shape)) == ["<bos>", "<image>", "code", "</image>", "text", "<end_turn>"]
    request = ours.jobs.generate("a").requests[0]
    assert request.extra_prompts == [[vocab.bos, vocab.image]]


def test_an_interleaved_document_of_anoles_form_comes_back_as_text_and_images(ours: CM3):
    codes = torch.arange(1024).view(32, 32) % CODES
    vocab, text = ours.vocab, ours.text_tokenizer
    laid = to_ids(Document((Text("a red apple"), Image(codes), Text("and a dog"), Image(codes.flip(0)))), vocab, text)
    assert [vocab.name(id) for id in laid if vocab.is_special(id)] == [
        *("<bos>", "<image>", "</image>", "<image>", "</image>", "<eos>")
    ]
    turned = [*laid[:3], vocab.end_turn, *laid[3:]]
    items = list(from_ids(turned, vocab, text, ours.grid))
    assert [type(item) for item in items] == [Text, Text, Image, Text, Image]
    assert "".join(item.text for item in items[:2] if isinstance(item, Text)) == "a red apple"
    assert items[2] == Image(codes) and items[4] == Image(codes.flip(0))


def test_a_lora_step_lowers_the_loss_on_image_codes(converted: Path):
    from peft import LoraConfig, get_peft_model

    model = CM3.from_pretrained(converted, device="cpu")
    codes = Image(torch.arange(1024).view(32, 32) % CODES)
    ids = torch.tensor([model.prompts.ids(Document((Text(WORDS), codes)), to_ids)])
    labels = ids.masked_fill(ids < model.vocab.first_code, -100)
    tuned: Any = get_peft_model(
        model.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    )
    optimizer = torch.optim.AdamW([one for one in tuned.parameters() if one.requires_grad], lr=1e-2)
    losses: list[float] = []
    for _ in range(4):
        loss = tuned(input_ids=ids, labels=labels).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.05, losses


def test_the_way_back_is_the_same_to_the_bit(converted: Path, folder: Path, theirs: Any):
    convert_back(converted, folder / "back")
    before, after = ({}, {})
    for name, tensors in (("hf", before), ("back", after)):
        for file in (folder / name).glob("*.safetensors"):
            tensors |= load_file(file)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    back = ChameleonForConditionalGeneration.from_pretrained(folder / "back")
    ids = torch.randint(4, 30, (1, 9))
    assert torch.equal(unmasked(back.eval(), ids), unmasked(theirs, ids))
    assert AutoTokenizer.from_pretrained(folder / "back")(WORDS) == AutoTokenizer.from_pretrained(folder / "hf")(WORDS)


def test_half_precision_stays_as_it_is(tmp_path: Path):
    write_chameleon(tmp_path)
    file = tmp_path / "hf" / "model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    convert(tmp_path / "hf", tmp_path / "ours", tmp_path / "vqgan.ckpt")
    assert {value.dtype for value in load_file(tmp_path / "ours" / "model.safetensors").values()} == {torch.bfloat16}
    assert CM3.from_pretrained(tmp_path / "ours").model.dtype == torch.bfloat16


def test_only_what_came_from_there_goes_back(tiny_folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=f"has no {SOURCE}/.* with --like"):
        convert_back(tiny_folder, tmp_path / "back")


def test_tied_heads_stay_tied(order: Order, tmp_path: Path):
    model = write_chameleon(tmp_path, tie_word_embeddings=True)
    convert(tmp_path / "hf", tmp_path / "ours", tmp_path / "vqgan.ckpt")
    mine = CM3.from_pretrained(tmp_path / "ours")
    assert mine.model.lm_head.weight is mine.model.model.embed_tokens.weight
    assert largest_gap(mine, model, order) < 1e-5


def test_a_model_that_was_trained_from_it_goes_back_too(converted: Path, folder: Path, ours: CM3, order: Order):
    assert load_text(converted, ours.vocab).fingerprint() == ours.text_tokenizer.fingerprint()
    ours.save_pretrained(folder / "tuned")
    convert_back(folder / "tuned", folder / "tuned-back", like=converted)
    before, after = (load_file(folder / name / "model.safetensors") for name in ("tuned", "tuned-back"))
    rows = torch.tensor(order.rows)
    assert torch.equal(after["lm_head.weight"][rows], before["lm_head.weight"])


def test_another_models_source_is_not_taken(tiny_folder: Path, converted: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="belongs to another model"):
        convert_back(tiny_folder, tmp_path / "back", like=converted)


def test_the_command_converts_both_ways(folder: Path, theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def command(*words: object) -> int:
        monkeypatch.setattr("sys.argv", ["cm3", "convert", *map(str, words)])
        return cli.run()

    assert command(folder / "hf", tmp_path / "ours", "--image-tokenizer", folder / "vqgan.ckpt") == 0
    assert command(tmp_path / "ours", tmp_path / "back", "--to", "chameleon") == 0
    assert list((tmp_path / "back").glob("*.safetensors"))
    assert command(tmp_path, tmp_path / "none") == 2


LAYERS, WIDTH, WIDE, PER_SHARD = 20, 2048, 5504, 5  # 2 GB in bf16, four shards
SCRIPT = """
import re, sys
from pathlib import Path
from cm3.hf.convert import convert

def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

source, out, image = map(Path, sys.argv[1:])
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = memory("VmRSS")
convert(source, out, image)
print(memory("VmHWM") - before)
"""


def write_large(folder: Path) -> int:
    """A folder of transformers' layout with that many layers. Returns the bytes of its largest shard."""
    write_chameleon(folder, num_hidden_layers=1)
    place, shapes = folder / "hf", {}
    (place / "model.safetensors").unlink()
    values = json.loads((place / "config.json").read_text())
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDE, "num_hidden_layers": LAYERS}
    (place / "config.json").write_text(json.dumps(values | sizes))
    rows = values["vocab_size"]
    for key in weights(LAYERS):
        kind = key.ours.split(".")[-2]
        shapes[key.ours] = {
            **{"embed_tokens": (rows, WIDTH), "lm_head": (rows, WIDTH), "gate_proj": (WIDE, WIDTH)},
            **{"up_proj": (WIDE, WIDTH), "down_proj": (WIDTH, WIDE)},
            **{"q_norm": (4, WIDTH // 4), "k_norm": (4, WIDTH // 4)},
        }.get(kind, (WIDTH, WIDTH) if kind.endswith("_proj") else (WIDTH,))
    pattern = re.compile(r"layers\.(\d+)\.")
    shards: list[list[Stored]] = [[] for _ in range(LAYERS // PER_SHARD)]
    for name, shape in shapes.items():
        layer = pattern.search(name)
        one = Stored(name, shape, torch.bfloat16, lambda shape=shape: torch.full(shape, 0.01, dtype=torch.bfloat16))
        shards[int(layer[1]) // PER_SHARD if layer else 0].append(one)
    write_shards(place, shards)
    return max(path.stat().st_size for path in place.glob("model-*.safetensors"))


@pytest.mark.slow
def test_the_memory_that_it_takes_is_bounded_by_a_shard(tmp_path: Path):
    shard = write_large(tmp_path)
    convert_image_tokenizer(tmp_path / "vqgan.ckpt", tmp_path / "vq", resolution=64)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "hf"), str(tmp_path / "ours"), str(tmp_path / "vq")]
    taken = 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    print(f"{taken / 1e6:.0f} MB for shards of {shard / 1e6:.0f} MB")
    assert taken < 1.1 * shard + 2 * WIDTH * WIDE
    assert sum(path.stat().st_size for path in (tmp_path / "ours").glob("model-*")) > 1.9e9


def test_transformers_draws_and_tells_with_a_converted_folder(converted: Path, ours: CM3):
    model: Any = AutoModelForMultimodalLM.from_pretrained(converted)
    processor: Any = AutoProcessor.from_pretrained(converted)
    inputs = processor(text=WORDS, generation_mode="image", return_tensors="pt")
    ids = model.generate(**inputs, generation_mode="image", do_sample=False)
    image = processor.post_process_multimodal_output(model.decode_image_tokens(ids), generation_mode="image")[0]
    assert image.tobytes() == ours.generate(WORDS, temperature=0.0, guidance=1.0)[0].tobytes()
    shown = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(shown, tokenize=True, return_tensors="pt")
    said = model.generate(**inputs, generation_mode="text", do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert processor.post_process_multimodal_output(said)[0].strip() == ours.answer(image, "What?")
    inputs = processor(text=WORDS, generation_mode="interleaved", return_tensors="pt")
    torch.manual_seed(0)
    options: dict[str, Any] = dict(do_sample=True, max_new_tokens=1200, temperature=9.0)
    whole = model.generate(**inputs, generation_mode="interleaved", **options)
    items = processor.post_process_multimodal_output(whole, generation_mode="interleaved")[0]
    assert items[0] == WORDS and all(isinstance(item, str) or item.shape == (32, 32) for item in items)
