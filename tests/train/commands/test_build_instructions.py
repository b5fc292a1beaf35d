"""The instruction mix: ratios within the thresholds, codes kept where nothing changed, a whole build in small."""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from cm3 import CM3
from cm3.tokens.document import Document, Image, Text
from cm3.tokens.encoding import from_ids
from cm3.tokens.text_tokenizer import TextTokenizer
from drawings import drawn_things
from tokenizer_image import ImageTokenizer
from train import build_instructions
from train.build_instructions import InstructionsConfig, build, sampling_ratios, store, taken, task_shares
from train.documents.shards import Shards, ShardWriter, Target, read_meta
from train.language.config import LMConfig as Recipe
from train.language.setup import starting_model
from train.scenes.scene import THINGS, Thing, compositional
from train.scenes.studio import Studio, encode, read_things
from train.scenes.tasks import EDITS, TASKS, TaskDocument

SMALL = InstructionsConfig(documents=60, held_out=1, known=0.5, chunk=40, workers=1)


def test_ratios_stay_within_the_thresholds():
    sizes = {"few": 10, "right": 100, "some": 100, "many": 1000, "none": 0}
    wanted = {"few": 100.0, "right": 100.0, "some": 150.0, "many": 100.0, "none": 100.0}
    ratios = sampling_ratios(sizes, wanted, down=0.3, up=3.0)
    assert ratios == {"few": 3.0, "right": 1.0, "some": 1.5, "many": 0.3}


def test_edits_may_have_another_share_of_the_new_documents():
    usual, most = task_shares(0), task_shares(0.6)
    assert usual == {name: task.share for name, task in TASKS.items()}
    assert sum(most.values()) == pytest.approx(1) and sum(most[name] for name in EDITS) == pytest.approx(0.6)
    for some in (EDITS, TASKS.keys() - set(EDITS)):
        assert len({round(most[name] / usual[name], 6) for name in some}) == 1


@pytest.mark.parametrize("ratio", [0.3, 1.0, 1.5, 3.0])
def test_documents_are_taken_as_often_as_the_ratio_says(ratio: float):
    numbers = taken(10, ratio, np.random.default_rng(0))
    assert len(numbers) == round(10 * ratio) and numbers.tolist() == sorted(numbers)
    assert set(Counter(numbers.tolist()).values()) <= {int(ratio), int(ratio) + 1}
    assert np.array_equal(numbers, taken(10, ratio, np.random.default_rng(0)))


@pytest.fixture(scope="module")
def studios() -> dict[bool, Studio]:
    things, words = drawn_things(), {"en": ["FOX", "CAT"], "ar": ["قط", "كلب"]}
    made = {novel: Studio.of(things, [thing.name["en"] for thing in things], 32, novel) for novel in (False, True)}
    return {novel: Studio(studio.scenes, studio.solo, words) for novel, studio in made.items()}


@pytest.mark.parametrize("novel", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_made_in_both_languages(studios: dict[bool, Studio], task: str, novel: bool):
    rng = np.random.default_rng(0)
    for language in ("en", "ar"):
        made, scene = studios[novel].make(task, language, rng)
        assert compositional(scene) == novel
        assert bool(made.words) != bool(made.asked) and 1 <= len(made.images) <= 2
        assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in made.images)


def test_some_maps_and_edits_show_one_large_thing(studios: dict[bool, Studio]):
    rng = np.random.default_rng(0)
    scenes = [studios[False].make("reground", "en", rng)[1] for _ in range(60)]
    large = [len(scene.placed) == 1 and scene.placed[0].side >= 24 for scene in scenes]
    assert np.mean(large) == pytest.approx(0.4, abs=0.2)


def test_in_aligned_scenes_a_large_thing_fills_the_image_and_grounds_are_as_often_white_as_asked():
    things, rng = drawn_things(), np.random.default_rng(0)
    studio = Studio.of(things, [thing.name["en"] for thing in things], 32, aligned=1.0, white=0.9)
    assert {one.side for _ in range(20) for one in studio.solo.scene(rng).placed} == {32}
    for stage in (studio.scenes, studio.solo):
        assert 0.8 < np.mean([stage.scene(rng).ground == "white" for _ in range(200)]) < 0.97


def blocks(images: torch.Tensor) -> torch.Tensor:
    """[N, 3, 16, 16] -> [N, 4, 4] codes that depend on the whole image: each cell's sum, and the image's."""
    cells = ((images + 1) * 127.5).round().long().sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((-1, -2))
    return cells + cells.sum((1, 2), keepdim=True) * 100_000


def test_a_cell_that_an_edit_leaves_alone_keeps_its_code():
    tokenizer = cast(ImageTokenizer, SimpleNamespace(size=(16, 16), grid=(4, 4), encode_pixels=blocks))
    before = np.random.default_rng(0).integers(0, 200, (16, 16, 3)).astype(np.uint8)
    after = before.copy()
    after[5, 6, 1] += 50  # in cell (1, 1)
    after[12:, 12:] += 5  # too little to be seen
    edit, pair = TaskDocument("", (), (before, after), kept=True), TaskDocument("", (), (before, after))
    (source, target), (_, own) = encode([edit, pair], tokenizer)
    assert np.flatnonzero(target != source).tolist() == [5] and target[1, 1] == own[1, 1]
    assert (own != source).all()


@pytest.fixture(scope="module")
def start(token_shards: Path, vq_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the tokenizers of the session's token shards."""
    image_tokenizer = ImageTokenizer.from_pretrained(vq_folder)
    config = Recipe(preset="tiny", model={"max_position_embeddings": 256})
    folder = tmp_path_factory.mktemp("models") / "start"
    model = starting_model(config, read_meta(token_shards), image_tokenizer)
    CM3(model, TextTokenizer.load(token_shards), image_tokenizer).save_pretrained(folder)
    return folder


def test_documents_are_stored_as_they_are_learnt(start: Path):
    model = CM3.from_pretrained(start, device="cpu")
    writer = ShardWriter(model.text_tokenizer, model.vocab)
    writer.sample(name="x")
    codes = [np.full((4, 4), 3), np.full((4, 4), 4)]
    empty = np.zeros((16, 16, 3), np.uint8)
    store(writer, TaskDocument("Edit: make it red", (), (empty, empty)), codes)
    store(writer, TaskDocument("", (Target("count", "Question: How many? Answer: ", "2"),), (empty,)), codes[:1])
    texts = [
        from_ids(writer.ids[a:b].tolist(), model.vocab, model.text_tokenizer, (4, 4))
        for a, b in pairwise(writer.offsets)
    ]
    first, second = (Image(torch.full((4, 4), code)) for code in (3, 4))
    assert texts == [
        Document((Text("Edit: make it red"), first, second)),
        Document((Text("Question: How many? Answer: 2"), first)),
    ]
    assert writer.images == [2, 1] and writer.spans[0][0] == [0, 0]
    low, high = writer.spans[1][0]
    ids = writer.ids[writer.offsets[1] :].tolist()[low:high]
    assert model.text_tokenizer.decode(model.vocab.ids_to_text(ids)) == "2"


def quickly(patch: pytest.MonkeyPatch) -> None:
    """Let `build` work in this process, on smaller drawings."""

    def small(*args: Any) -> list[Thing]:
        return [replace(thing, drawing=thing.drawing.resize((24, 24))) for thing in read_things(*args)]

    patch.setattr(build_instructions, "read_things", small)
    patch.setattr(build_instructions, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(workers))
    build_instructions.workshop.cache_clear()


@pytest.fixture(scope="module")
def built(sample: Path, start: Path, token_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder, meta) of a small mix made of the data sample, in this process."""
    out = tmp_path_factory.mktemp("instruct")
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        return out, build(sample, str(start), token_shards, out, SMALL)


def test_a_mix_has_each_task_by_its_share_and_what_is_known(built):
    _, meta = built
    for name, task in TASKS.items():
        assert meta["tasks"].get(name, 0) == round(60 * task.share)
    new = sum(meta["tasks"].get(name, 0) for name in TASKS)
    assert meta["documents"] == sum(meta["tasks"].values())
    # 30 of each known kind are wanted, but at least 0.3 of its 440 documents are taken.
    assert meta["tasks"]["known draw"] == meta["tasks"]["known ask"] == meta["documents"] / 2 - new / 2 == 132
    assert meta["config"]["documents"] == 60


def test_every_document_of_a_mix_reads_back(built, start: Path):
    out, _ = built
    for split in ("train", "held_out"):
        shards = Shards(out, split)
        assert not shards.bad
        vocab, text = shards.vocab(), shards.text_tokenizer()
        for i in range(len(shards)):
            (ids, spans), facts = shards.document(i), shards.sample(i)
            items = from_ids(ids, vocab, text, (4, 4)).items
            task = facts.get("task", "known")
            images = (
                2
                if task in ("segments", "edges")
                or (task in TASKS and "sign" not in task and not spans and task not in ("draw", "grounded"))
                else 1
            )
            assert isinstance(items[0], Text) and len(items) == 1 + images
            assert all(isinstance(item, Image) for item in items[1:])
            assert bool(spans) == bool(re.match("(Question|Caption|Describe|سؤال|الوصف|صف)", items[0].text))
            if task in TASKS:
                assert bool(facts["parents"]) != ("sign" in task)
                assert bool(facts["licence"]) == bool(facts["parents"])


def test_unseen_combinations_are_held_out_and_known_documents_with_them(built):
    out, _ = built
    held_out = Shards(out, "held_out")
    tasks = [held_out.sample(i).get("task") for i in range(len(held_out))]
    assert tasks[: len(TASKS)] == list(TASKS) and set(tasks[len(TASKS) :]) == {None}


def test_known_documents_are_those_of_the_shards(built, token_shards: Path):
    out, _ = built
    old, new = Shards(token_shards), Shards(out)
    known = {tuple(old.document(i).ids) for i in range(len(old))}
    names = {old.sample(i)["name"] for i in range(len(old))}
    found = [i for i in range(len(new)) if "task" not in new.sample(i)]
    assert len(found) == 264
    assert all(tuple(new.document(i).ids) in known and new.sample(i)["name"] in names for i in found)


def test_the_same_seed_builds_the_same_mix(
    built, sample: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, meta = built
    quickly(monkeypatch)
    again = build(sample, str(start), None, tmp_path, SMALL)
    news = [shard for shard in meta["splits"]["train"]["shards"] if shard["name"] < "train-00002"]
    assert again["splits"]["train"]["shards"] == news and len(news) == 2
    assert (tmp_path / "train-00000.jsonl").read_bytes() == (out / "train-00000.jsonl").read_bytes()


def test_shards_of_another_text_tokenizer_are_refused(
    sample: Path, token_shards: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    quickly(monkeypatch)
    with pytest.raises(SystemExit, match="build_instructions: .*another text tokenizer"):
        build_instructions.main(sample, str(tiny_folder), token_shards, tmp_path, None, ["documents=0", "held_out=0"])


def test_a_missing_model_or_a_wrong_option_ends_the_script_with_one_line(tmp_path: Path):
    for start, options, match in (
        ("no-such-model", [], "there is no model"),
        ("emoji", ["known=much"], "known"),
        ("emoji", ["edits=1.5"], "edits is 1.5"),
        ("emoji", ["known=1"], "known is 1"),
        ("emoji", ["white=-0.1"], "white is -0.1"),
    ):
        with pytest.raises(SystemExit, match=f"build_instructions: .*{match}") as error:
            build_instructions.main(tmp_path, start, None, tmp_path / "out", None, options)
        assert "\n" not in str(error.value.code)


def test_things_are_read_with_their_names_and_colours(sample: Path):
    things = read_things(sample, "train")
    assert len({thing.key for thing in things}) == len(things) > 200
    assert {thing.name["en"] for thing in things} & set(THINGS) and all(thing.name["ar"] for thing in things)
    assert all(thing.drawing.mode == "RGBA" for thing in things)
    fruit = read_things(sample, "train", ("food-fruit",))
    assert 0 < len(fruit) < len(things)
    rows = [json.loads(line) for line in (sample / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {thing.key for thing in things} <= {row["key"] for row in rows}
