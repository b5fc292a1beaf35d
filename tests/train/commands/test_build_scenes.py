"""Scenes for an image tokenizer: what the folder holds, and that the image tokenizer can be trained on it."""

import json
from pathlib import Path

import pytest

from train import build_scenes
from train.build_scenes import ScenesConfig, build
from train.emoji.dataset import read_samples
from train.images.loader import ImageLoader
from train.scenes.scene import THINGS
from train.scenes.studio import read_things

SMALL = ScenesConfig(images=40, held_out=4, signs=0.2, size=32, cells=4)


@pytest.fixture(scope="module")
def built(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    assert build(sample, out, SMALL) == {"train": 220 + 40, "unseen_cell": 3, "unseen_scene": 4}
    return out


def test_drawings_and_scenes_stand_beside_each_other(built: Path, sample: Path):
    drawings = {key: png for key, png, _ in read_samples(sample / "train")}
    made = {key: (png, facts) for key, png, facts in read_samples(built / "train")}
    assert {key: png for key, (png, _) in made.items() if key in drawings} == drawings
    scenes = [facts for key, (_, facts) in made.items() if key not in drawings]
    signs = [facts["sign"] for facts in scenes if "sign" in facts]
    parents = [facts["parents"] for facts in scenes if "parents" in facts]
    assert len(signs) + len(parents) == 40 and 2 <= len(signs) <= 16
    assert {len(keys) for keys in parents} == {1, 2, 3} and {key for keys in parents for key in keys} <= set(drawings)
    several = {key for keys in parents if len(keys) > 1 for key in keys}
    names = {thing.key: thing.name["en"] for thing in read_things(sample, "train")}
    assert {names[key] for key in several} <= set(THINGS)
    assert (built / "manifest.jsonl").read_bytes() == (sample / "manifest.jsonl").read_bytes()
    assert json.loads((built / "data.json").read_text())["config"]["signs"] == 0.2


def test_an_image_tokenizer_reads_them_and_is_evaluated_on_unseen_ones(built: Path):
    loader = ImageLoader(built, 32, multiple=8, evaluate_on="unseen_scene")
    assert len(loader) == 260 and not loader.skipped
    batch = loader.batch(0, 16)
    assert batch.shape == (16, 3, 32, 32) and batch.std() > 0.1
    assert loader.held_out_images().shape == (4, 3, 32, 32)


def test_the_same_seed_makes_the_same_images_and_another_seed_others(built: Path, sample: Path, tmp_path: Path):
    def scenes(folder: Path) -> list[bytes]:
        return [png for key, png, _ in read_samples(folder / "unseen_scene") if key.startswith("scene")]

    few = ScenesConfig(images=0, held_out=4, signs=0.2, size=32, cells=4)
    build(sample, tmp_path / "again", few)
    assert scenes(tmp_path / "again") == scenes(built)
    build(sample, tmp_path / "other", ScenesConfig(**{**vars(few), "seed": 1}))
    assert scenes(tmp_path / "other") != scenes(built)


def test_no_scene_of_the_training_split_is_held_out(built: Path):
    trained = {png for _, png, _ in read_samples(built / "train")}
    assert not trained & {png for _, png, _ in read_samples(built / "unseen_scene")}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["size=30"], "size 30 is not a multiple of cells = 8"),
        (["images=many"], "images"),
    ],
)
def test_a_wrong_option_ends_the_script_with_one_line(arguments: list[str], match: str, sample: Path, tmp_path: Path):
    with pytest.raises(SystemExit, match=f"build_scenes: .*{match}") as error:
        build_scenes.main(sample, tmp_path, None, arguments)
    assert "\n" not in str(error.value.code) and not list(tmp_path.iterdir())


def test_the_data_set_itself_is_never_written_over(sample: Path, tmp_path: Path):
    with pytest.raises(SystemExit, match="is the data set itself"):
        build_scenes.main(sample, sample / "train" / "..", None, [])
    with pytest.raises(SystemExit, match="no shards in"):
        build_scenes.main(tmp_path / "none", tmp_path / "out", None, [])
