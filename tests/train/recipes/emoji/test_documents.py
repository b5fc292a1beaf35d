"""Documents of the emoji recipe: what each kind holds, and that a build can be interrupted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cm3.tokens.document import Answer, Document, Image, Text
from cm3.tokens.plan import Plan
from cm3.tokens.text_tokenizer import LETTERS, TextTokenizer
from cm3.tokens.vocab import Vocab
from train.documents.shards import Shards
from train.recipes.emoji.art import TILE, single
from train.recipes.emoji.build_documents import build
from train.recipes.emoji.documents import Builder, DocumentsConfig
from train.recipes.emoji.shelf import Codes, Shelf
from train.recipes.emoji.world import World
from worlds import small_tokenizer, small_world

FEW = {
    **{"draw large": 6, "draw small": 6, "draw scene": 6, "read small": 6, "read large": 3, "read scene": 6},
    **{
        "change small": 4,
        "change large": 2,
        "change scene": 4,
        "recall": 6,
        "request": 9,
        "instruct": 9,
        "translate": 9,
    },
}


@pytest.fixture(scope="module")
def data(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(sample, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def builder(data: Path) -> Builder:
    return Builder(World.read(data), Shelf.read(data, "train"), Codes(small_tokenizer()), DocumentsConfig())


def made(builder: Builder, kind: str, seed: int) -> Document:
    document = builder.makers[kind](np.random.default_rng(seed), seed)
    assert isinstance(document, Document)
    return document


@pytest.mark.parametrize("kind", ["draw large", "draw small", "draw scene"])
def test_a_plan_stands_before_what_is_drawn(builder: Builder, kind: str):
    for seed in range(5):
        words, image = made(builder, kind, seed)
        assert isinstance(words, Text) and isinstance(image, Image)
        plan = Plan.parse(words.text)
        assert plan == plan.plain and image.grid == ((8, 8) if kind == "draw small" else (16, 16))
        assert all(thing.place for thing in plan.things) == (kind == "draw scene")


def test_a_scene_has_in_each_tile_the_codes_that_its_thing_has_alone(builder: Builder):
    for seed in range(20):
        words, image = made(builder, "draw scene", seed)
        assert isinstance(words, Text) and isinstance(image, Image)
        plan, tiles = Plan.parse(words.text), image.codes.reshape(4, 8, 8)
        for place, tile in zip(("top left", "top right", "bottom left", "bottom right"), tiles, strict=True):
            thing = next((one for one in plan.things if one.place == place), None)
            if thing is not None and thing.name in builder.editor.by_a:
                drawing = builder.shelf.drawings[builder.editor.by_a[thing.name].code, plan.style]
                alone = builder.codes.encode([single(drawing, TILE)])[0]  # pyright: ignore[reportOptionalMemberAccess]
                assert np.array_equal(alone, tile.numpy())


@pytest.mark.parametrize("kind", ["read small", "read large", "read scene"])
def test_the_plan_is_the_first_answer_about_an_image(builder: Builder, kind: str):
    for seed in range(8):
        first, plan, *_, image = made(builder, kind, seed)
        assert first == Text("Plan: ") and isinstance(plan, Answer) and isinstance(image, Image)
        assert Plan.parse(plan.text).things


@pytest.mark.parametrize("kind", ["change small", "change large", "change scene"])
def test_a_change_has_both_plans_and_both_images(builder: Builder, kind: str):
    for seed in range(8):
        words, before, after = made(builder, kind, seed)
        assert isinstance(words, Text) and isinstance(before, Image) and isinstance(after, Image)
        first, second = words.text.split("\n")
        assert Plan.parse(first.removeprefix("From: ")) != Plan.parse(second.removeprefix("To: "))
        assert before.grid == after.grid and not torch.equal(before.codes, after.codes)


def test_what_is_recalled_stands_whole_before(builder: Builder):
    for seed in range(8):
        documents = builder.makers["recall"](np.random.default_rng(seed), seed)
        assert isinstance(documents, list) and documents[-1] in documents[:-1]


@pytest.mark.parametrize("kind", ["request", "instruct", "translate"])
def test_text_documents_have_one_answer(builder: Builder, kind: str):
    for seed in range(10):
        words, answer = made(builder, kind, seed)
        assert isinstance(words, Text) and words.text.endswith("\n") and isinstance(answer, Answer)
        if kind != "translate":
            assert Plan.parse(answer.text)


def test_a_build_goes_on_where_it_was_interrupted(data: Path, tmp_path: Path):
    small_tokenizer().save_pretrained(tmp_path / "vq")
    config = DocumentsConfig(documents=FEW, held_out=1, shards=3, text_vocab=400)
    whole = build(data, str(tmp_path / "vq"), tmp_path / "docs", config, 1, texts=300)
    assert whole["documents"] == sum(FEW.values())
    shard = tmp_path / "docs" / "train-00001.safetensors"
    before = shard.read_bytes()
    shard.unlink()
    assert build(data, str(tmp_path / "vq"), tmp_path / "docs", config, 1, texts=300) == whole
    assert shard.read_bytes() == before
    assert len(Shards(tmp_path / "docs", "train")) == whole["documents"]


def test_documents_that_stand_one_after_the_other_are_closed_each(builder: Builder):
    text = TextTokenizer.train(["a cat, in the noto style"], 300, pattern=LETTERS)
    vocab = Vocab(64, 300, 64, grids=((8, 8),))
    ids, spans = builder.stored("recall", np.random.default_rng(0), 0, vocab, text)
    assert ids.count(vocab.eos) in (3, 4) and ids[0] == ids[-1] == vocab.eos and not spans
