"""Token shards: documents that read back, spans that are the answers, the same files from the same seed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL_Image
from safetensors.numpy import load_file

from cm3.document import Document, Image, Text, from_ids
from cm3.text import TextTokenizer
from cm3.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train import tokenize_data
from train.phrases import COLOURS_AR, KINDS, Facts
from train.tokenize_data import Config, aliases_of, build, others_of
from train.views import GROUNDS, PLAIN, place, read_split

SMALL = Config(subgroups=("food-fruit",), views=2, draw=1, ask=2, text_vocab=400)


@pytest.fixture(scope="module")
def image_tokenizer(vq_folder: Path) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(vq_folder)


class Shards:
    """The session's token shards, opened: 220 pictures, two views, a caption and questions of each."""

    def __init__(self, folder: Path) -> None:
        self.meta = json.loads((folder / "meta.json").read_text())
        self.text = TextTokenizer.load(folder)
        layout = self.meta["vocab"]
        self.vocab = Vocab(layout["num_special_tokens"], layout["text_vocab_size"], layout["image_vocab_size"])
        arrays = load_file(folder / "train.safetensors")
        self.offsets, self.spans = arrays["offsets"], arrays["spans"]
        self.documents = [part.tolist() for part in np.split(arrays["ids"], self.offsets[1:-1])]

    def decode(self, ids: list[int]) -> str:
        return self.text.decode(self.vocab.ids_to_text(ids))

    def read(self, ids: list[int]) -> Document:
        return from_ids(ids, self.vocab, self.text, (4, 4))


@pytest.fixture(scope="module")
def shards(token_shards: Path) -> Shards:
    return Shards(token_shards)


@pytest.fixture(scope="module")
def rows(sample: Path) -> list[Facts]:
    return [facts for _, _, facts in read_split(sample / "train")]


def test_every_document_is_text_and_a_whole_picture(shards: Shards):
    assert len(shards.documents) == shards.meta["documents"] == 220 * 2 * 2
    for ids in shards.documents:
        text, picture = shards.read(ids)
        assert isinstance(text, Text) and isinstance(picture, Image)
        assert ids[0] == ids[-1] == shards.vocab.eos and ids.count(shards.vocab.break_) == 1


def test_captions_and_questions_take_turns_and_only_questions_have_spans(shards: Shards):
    has = shards.spans[:, 0, 1] > 0
    assert has.tolist() == [False, True] * 440
    tasks = shards.meta["tasks"]
    assert tasks.pop("draw") == 440
    assert sum(tasks.values()) == (shards.spans[..., 1] > 0).sum()


def test_spans_hold_the_answers_and_stand_behind_their_questions(shards: Shards, rows: list[Facts]):
    grounds = [word for ground in GROUNDS.values() for word in ground[:2]]
    ends = ("Caption: ", "Answer: ", "الوصف: ", "جواب: ")
    for i, spans in enumerate(shards.spans):
        facts, ids, at = rows[i // 4], shards.documents[i], 1
        known = {*facts["name"].values(), *KINDS.get(facts["subgroup"], {}).values(), facts["style"], facts["colour"],
                 COLOURS_AR.get(facts["colour"]), *grounds, "yes", "no", "نعم", "لا"}  # fmt: skip
        for start, end in spans[spans[:, 1] > 0].tolist():
            assert shards.decode(ids[at:start]).endswith(ends)
            assert shards.decode(ids[start:end]) in known
            at = end


def test_the_first_view_is_plain(shards: Shards, sample: Path, image_tokenizer: ImageTokenizer):
    _, drawing, _ = next(read_split(sample / "train"))
    picture = PIL_Image.fromarray(place(drawing, PLAIN, 16))
    assert shards.read(shards.documents[0])[1] == Image(image_tokenizer.encode(picture))


def test_what_the_shards_were_made_with_is_noted(shards: Shards, token_shards: Path, rows: list[Facts],
                                                 image_tokenizer: ImageTokenizer):  # fmt: skip
    meta = shards.meta
    assert meta["image_tokenizer"] == image_tokenizer.fingerprint()
    assert meta["vocab"] == {"num_special_tokens": 64, "text_vocab_size": len(shards.text), "image_vocab_size": 32,
                             "image_grid": [4, 4]}  # fmt: skip
    assert meta["pictures"] == len(rows) and meta["tokens"] == shards.offsets[-1] == sum(map(len, shards.documents))
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
        sample: Path, image_tokenizer: ImageTokenizer, fruit: Path, tmp_path: Path):  # fmt: skip
    build(sample, image_tokenizer, tmp_path, SMALL)
    names = {path.name for path in fruit.iterdir()}
    assert names == {"tokenizer.json", "train.safetensors", "concepts.json", "meta.json"}
    assert all((tmp_path / name).read_bytes() == (fruit / name).read_bytes() for name in names)
    build(sample, image_tokenizer, tmp_path, Config(**{**SMALL.__dict__, "seed": 1}))
    assert (tmp_path / "train.safetensors").read_bytes() != (fruit / "train.safetensors").read_bytes()


def test_subgroups_that_match_nothing_are_named(sample: Path, image_tokenizer: ImageTokenizer, tmp_path: Path):
    with pytest.raises(ValueError, match="no training picture in .* belongs to the subgroups moon, mars"):
        build(sample, image_tokenizer, tmp_path / "out", Config(subgroups=("moon", "mars")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("data", "tokenizer", "overrides", "match"), [
    ("nowhere", None, [], "no shards in nowhere"),
    ("nowhere", "no-such-tokenizer", [], "no image tokenizer 'no-such-tokenizer'"),
    ("nowhere", None, ["view=3"], "unknown config keys: view"),
])  # fmt: skip
def test_mistakes_end_the_script_with_one_line(vq_folder: Path, tmp_path: Path, data, tokenizer, overrides, match: str):
    with pytest.raises(SystemExit, match=f"tokenize_data: {match}") as error:
        tokenize_data.main(Path(data), tokenizer or str(vq_folder), tmp_path, None, overrides)
    assert "\n" not in str(error.value.code)
