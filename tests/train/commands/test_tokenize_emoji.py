"""Token shards: documents that read back, spans that are the answers, the same files from the same seed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL_Image

from cm3.tokens.document import Document, Image, Text
from cm3.tokens.encoding import from_ids
from tokenizer_image import ImageTokenizer
from train import tokenize_emoji
from train.documents.shards import Shards
from train.emoji.dataset import EXTRA, others_of, read_samples, read_split, write_shards
from train.emoji.phrases import COLOURS_AR, KINDS, Facts
from train.images.views import GROUNDS, PLAIN, Augmentation, View, place
from train.tokenize_emoji import HELD_OUT_VIEWS, TokenizeConfig, aliases_of, build, drawn_times, extra_views, views_of

SMALL = TokenizeConfig(subgroups=("food-fruit",), views=2, draw=1, ask=2, text_vocab=400)


@pytest.fixture(scope="module")
def image_tokenizer(vq_folder: Path) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(vq_folder)


class Opened:
    """The session's token shards, opened: 220 images, two views, a caption and questions of each."""

    def __init__(self, folder: Path, split: str = "train") -> None:
        self.shards = Shards(folder, split)
        self.meta, self.spans = self.shards.meta, self.shards.spans
        self.text, self.vocab = self.shards.text_tokenizer(), self.shards.vocab()
        self.documents = [self.shards.document(i).ids for i in range(len(self.shards))]

    def decode(self, ids: list[int]) -> str:
        return self.text.decode(self.vocab.ids_to_text(ids))

    def read(self, ids: list[int]) -> Document:
        return from_ids(ids, self.vocab, self.text, (4, 4))


@pytest.fixture(scope="module")
def shards(token_shards: Path) -> Opened:
    return Opened(token_shards)


@pytest.fixture(scope="module")
def rows(sample: Path) -> list[Facts]:
    return [facts for _, _, facts in read_split(sample / "train")]


def test_every_document_is_text_and_a_whole_image(shards: Opened):
    assert len(shards.documents) == shards.meta["documents"] == 220 * 2 * 2
    for ids in shards.documents:
        text, image = shards.read(ids)
        assert isinstance(text, Text) and isinstance(image, Image)
        assert ids[0] == ids[-1] == shards.vocab.eos and ids.count(shards.vocab.break_) == 1


def test_captions_and_questions_take_turns_and_only_questions_have_spans(shards: Opened):
    has = shards.spans[:, 0, 1] > 0
    assert has.tolist() == [False, True] * 440
    tasks = shards.meta["tasks"]
    assert tasks.pop("draw") == 440
    assert sum(tasks.values()) == (shards.spans[..., 1] > 0).sum()


def test_spans_hold_the_answers_and_stand_behind_their_questions(shards: Opened, rows: list[Facts]):
    grounds = [word for ground in GROUNDS.values() for word in ground[:2]]
    ends = ("Caption: ", "Answer: ", "الوصف: ", "جواب: ")
    for i, spans in enumerate(shards.spans):
        facts, ids, at = rows[i // 4], shards.documents[i], 1
        known = {
            *facts["name"].values(),
            *KINDS.get(facts["subgroup"], {}).values(),
            facts["style"],
            facts["colour"],
            COLOURS_AR.get(facts["colour"]),
            *grounds,
            "yes",
            "no",
            "نعم",
            "لا",
        }
        for start, end in spans[spans[:, 1] > 0].tolist():
            assert shards.decode(ids[at:start]).endswith(ends)
            assert shards.decode(ids[start:end]) in known
            at = end


def test_the_first_view_is_plain(shards: Opened, sample: Path, image_tokenizer: ImageTokenizer):
    _, drawing, _ = next(read_split(sample / "train"))
    image = PIL_Image.fromarray(place(drawing, PLAIN, 16))
    assert shards.read(shards.documents[0])[1] == Image(image_tokenizer.encode(image))


def test_what_the_shards_were_made_with_is_noted(
    shards: Opened, token_shards: Path, rows: list[Facts], image_tokenizer: ImageTokenizer
):
    meta = shards.meta
    assert meta["image_tokenizer"] == image_tokenizer.fingerprint()
    assert meta["vocab"] == {
        "num_special_tokens": 64,
        "text_vocab_size": len(shards.text),
        "image_vocab_size": 32,
        "image_grid": [4, 4],
        "image_grids": [],
        "document_form": "cm3",
    }
    assert meta["images"] == len(rows) and meta["tokens"] == sum(map(len, shards.documents))
    concepts = json.loads((token_shards / "concepts.json").read_text(encoding="utf-8"))
    assert {code: concept["name"] for code, concept in concepts.items()} == {row["code"]: row["name"] for row in rows}


def test_a_keyword_of_many_concepts_names_none_of_them():
    rows = [{"code": str(i), "keywords": {"en": ["fruit", f"word {i}"], "ar": []}} for i in range(3)]
    assert aliases_of(rows, max_sharing=2)["1", "en"] == ["word 1"]
    assert aliases_of(rows, max_sharing=3)["1", "en"] == ["fruit", "word 1"]


def test_others_hold_each_concept_once(rows: list[Facts]):
    for subgroup, others in others_of(rows).items():
        assert {other["code"] for other in others} == {row["code"] for row in rows if row["subgroup"] == subgroup}
        assert len({other["code"] for other in others}) == len(others)


@pytest.fixture(scope="module")
def fruit(sample: Path, image_tokenizer: ImageTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the fruits, from a folder that holds the training split alone."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("fruit")
    (data / "train").symlink_to(sample / "train")
    build(data, image_tokenizer, out, SMALL)
    return out


def test_only_the_chosen_subgroups_are_in_it(fruit: Path, rows: list[Facts]):
    concepts = json.loads((fruit / "concepts.json").read_text(encoding="utf-8"))
    assert set(concepts) == {row["code"] for row in rows if row["subgroup"] == "food-fruit"}
    assert {concept["subgroup"] for concept in concepts.values()} == {"food-fruit"}


def test_the_same_seed_gives_the_same_files_and_another_seed_others(
    sample: Path, image_tokenizer: ImageTokenizer, fruit: Path, tmp_path: Path
):
    build(sample, image_tokenizer, tmp_path, SMALL)
    names = {path.name for path in fruit.iterdir()}
    shard = "train-00000.safetensors"
    assert names == {"tokenizer.json", shard, "train-00000.jsonl", "concepts.json", "meta.json"}
    same = names - {"meta.json", "train-00000.jsonl"}  # `fruit` has no manifest and no unseen cells
    assert all((tmp_path / name).read_bytes() == (fruit / name).read_bytes() for name in same)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    build(sample, image_tokenizer, tmp_path, SMALL)
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    build(sample, image_tokenizer, tmp_path, TokenizeConfig(**{**SMALL.__dict__, "seed": 1}))
    assert (tmp_path / shard).read_bytes() != (fruit / shard).read_bytes()


def test_unseen_cells_are_held_out_in_both_languages(
    shards: Opened, token_shards: Path, sample: Path, image_tokenizer: ImageTokenizer
):
    held = Opened(token_shards, "held_out")
    cells = [(drawing, row) for _, drawing, row in read_split(sample / "unseen_cell")]
    assert len(held.documents) == len(cells) * HELD_OUT_VIEWS * 4
    words = "".join(held.read(ids)[0].text for ids in held.documents[:4])
    assert all(any(low <= letter <= high for letter in words) for low, high in (("a", "z"), ("ا", "ي")))
    image = PIL_Image.fromarray(place(cells[0][0], PLAIN, 16))
    assert held.read(held.documents[0])[1] == Image(image_tokenizer.encode(image))
    assert {held.shards.sample(i)["code"] for i in range(len(held.shards))} == {row["code"] for _, row in cells}


def test_every_document_leads_to_its_image_in_the_data_set(shards: Opened, sample: Path):
    known = {row["key"]: row for row in map(json.loads, (sample / "manifest.jsonl").open(encoding="utf-8"))}
    row = shards.shards.sample(5)
    origin = known[row["name"]]
    assert row == {
        "name": origin["key"],
        "source": f"{origin['package']}@{origin['version']}",
        "licence": origin["licence"],
        "owner": origin["author"],
        "sha256": origin["pixels"],
        "style": origin["style"],
        "code": origin["code"],
        "documents": 4,
    }
    assert [shards.shards.sample(i)["name"] for i in (4, 7, 8)] == [row["name"]] * 2 + [shards.shards.sample(9)["name"]]


def test_many_documents_are_cut_into_shards(
    sample: Path, image_tokenizer: ImageTokenizer, fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokenize_emoji, "PER_SHARD", 30)
    build(sample, image_tokenizer, tmp_path, SMALL)
    many, one = Shards(tmp_path), Shards(fruit)
    assert len(list(tmp_path.glob("train-*.safetensors"))) == -(-len(one) // 30) > 1 and len(many) == len(one)
    assert all(many.document(i) == one.document(i) for i in range(len(one)))
    build(sample, image_tokenizer, tmp_path, TokenizeConfig(**{**SMALL.__dict__, "views": 1}))
    assert len(Shards(tmp_path)) == len(one) // 2  # no shard of the earlier build is left


def test_subgroups_that_match_nothing_are_named(sample: Path, image_tokenizer: ImageTokenizer, tmp_path: Path):
    with pytest.raises(ValueError, match="no training image in .* belongs to the subgroups moon, mars"):
        build(sample, image_tokenizer, tmp_path / "out", TokenizeConfig(subgroups=("moon", "mars")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "tokenizer", "overrides", "match"),
    [
        ("nowhere", None, [], "no shards in nowhere"),
        ("nowhere", "no-such-tokenizer", [], "no image tokenizer 'no-such-tokenizer'"),
        ("nowhere", None, ["view=3"], "unknown config keys: view"),
    ],
)
def test_mistakes_end_the_script_with_one_line(vq_folder: Path, tmp_path: Path, data, tokenizer, overrides, match: str):
    with pytest.raises(SystemExit, match=f"tokenize_emoji: {match}") as error:
        tokenize_emoji.main(Path(data), tokenizer or str(vq_folder), tmp_path, None, overrides)
    assert "\n" not in str(error.value.code)


def test_views_are_plain_then_on_coloured_grounds_then_moved():
    config = TokenizeConfig(views=6, grounds=3, plain=5, draw=1, draw_moved=False)
    views = views_of(config, Augmentation(), np.random.default_rng(0), 64)
    assert views[0] == PLAIN and len(views) == 6
    assert all(view == View(view.ground) and view.ground != "white" for view in views[1:4])
    assert len({view.ground for view in views[1:4]}) == 3
    assert [drawn_times(view, config) for view in views] == [5, 1, 1, 1, 0, 0]
    assert [drawn_times(view, TokenizeConfig()) for view in views] == [2] * 6


def test_an_image_is_drawn_as_often_as_is_said_and_its_grounds_are_named(
    sample: Path, image_tokenizer: ImageTokenizer, tmp_path: Path
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(sample / "train")
    config = replace(SMALL, views=3, grounds=1, plain=4, draw=2, draw_moved=False, ask=1, styled=1.0)
    build(tmp_path / "data", image_tokenizer, tmp_path / "out", config)
    opened = Opened(tmp_path / "out")
    count = len({opened.shards.sample(i)["name"] for i in range(len(opened.documents))})
    assert len(opened.documents) == count * (4 + 2 + 3)
    first = [opened.read(opened.documents[i]) for i in range(9)]
    drawn = [document[0].text for document in (*first[:4], *first[5:7])]
    assert all("style" in words or "أسلوب" in words or opened.shards.sample(0)["style"] in words for words in drawn)
    assert all("background" in words or "خلفية" in words for words in drawn[4:])


def test_distorted_views_come_last_and_are_never_drawn():
    config = TokenizeConfig(views=3, grounds=1, distorted=4)
    views = views_of(config, Augmentation(), np.random.default_rng(0), 64)
    assert [view.distortion is None for view in views] == [True] * 3 + [False] * 4
    assert len({view.distortion for view in views[3:]}) == 4
    assert [drawn_times(view, config) for view in views] == [2, 2, 2, 0, 0, 0, 0]
    same = views_of(replace(config, distorted=0), Augmentation(), np.random.default_rng(0), 64)
    assert same == views[:3]


def test_seven_in_ten_views_of_extra_styles_are_distorted():
    views = extra_views(TokenizeConfig(extra=400), Augmentation(), np.random.default_rng(0), 64)
    assert len(views) == 400 and 0.6 < np.mean([view.distortion is not None for view in views]) < 0.8


def test_of_distorted_views_and_extra_styles_only_the_name_is_asked(
    sample: Path, image_tokenizer: ImageTokenizer, tmp_path: Path
):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train").symlink_to(sample / "train")
    apples = [one for one in read_samples(sample / "train") if one[2]["code"] == "1f34e"][:2]
    cats = [one for one in read_samples(sample / "train") if one[2]["code"] == "1f431"][:1]
    extra = [(f"new_{i}", png, facts | {"style": "new"}) for i, (_, png, facts) in enumerate(apples + cats)]
    write_shards(data / EXTRA, extra)
    config = replace(SMALL, views=1, distorted=2, extra=4, ask=1)
    build(data, image_tokenizer, tmp_path / "out", config)
    opened = Opened(tmp_path / "out")
    of = [opened.shards.sample(i) for i in range(len(opened.documents))]
    new = [i for i, one in enumerate(of) if one["style"] == "new"]
    assert [of[i]["name"] for i in new] == ["new_0"] * 4 + ["new_1"] * 4  # the cat is no fruit
    known = {row["name"] for row in of if row["style"] != "new"}
    assert len(opened.documents) == 4 * len(known) + 8  # a caption and three questions of each
    names = {facts["name"][language] for *_, facts in apples for language in ("en", "ar")}
    kinds = set(KINDS["food-fruit"].values())
    for i in new:
        said = [opened.decode(opened.documents[i][a:b]) for a, b in opened.spans[i].tolist() if b]
        assert said and set(said) <= names | kinds | {"yes", "no", "نعم", "لا"}
    images = {str(opened.read(opened.documents[i])[1]) for i in new}
    assert len(images) > 4
