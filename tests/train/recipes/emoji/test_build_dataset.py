"""The data set: splits without leaks, shards that are the same byte for byte, and the whole build on tiny packages."""

import io
import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset.compat import WebDataset

import fake_packages
from train.images import samples as image_samples
from train.images.samples import read_samples, write_shards
from train.recipes.emoji import build_dataset
from train.recipes.emoji.build_dataset import SIZE, build, chance, drop_leaks, render, split_of
from train.recipes.emoji.concepts import Concept
from train.recipes.emoji.dataset import EXTRA, SPLITS, cut_sample
from train.recipes.emoji.packages import EXTRA_STYLES, STYLES

WORDS = [style.word for style in STYLES]
DESIGN = {style.word: style.design for style in STYLES}
SUBGROUPS, FAMILIES, SKINS = 20, 60, 3


def concept(subgroup: int, family: int, skin: int) -> Concept:
    name = f"{subgroup}-{family}"
    return Concept(f"{name}-{skin}", name, {"en": name}, {"en": ()}, "group", f"subgroup {subgroup}")


CONCEPTS = [concept(s, f, k) for s in range(SUBGROUPS) for f in range(FAMILIES) for k in range(SKINS)]
EVERYWHERE = {word: {c.code for c in CONCEPTS} for word in WORDS}


SELDOM = {"3-7", "12-0"}  # families held out by name


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory):
    held_out = tmp_path_factory.mktemp("held_out") / "concepts.txt"
    held_out.write_text("# families\n" + "".join(f"{family}  its name\n" for family in sorted(SELDOM)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(build_dataset, "HELD_OUT", held_out)
        monkeypatch.setattr(build_dataset, "family_of", lambda code: code)
        yield split_of(CONCEPTS, EVERYWHERE)


class TestSplits:
    """1,200 families of three members each, drawn in every style."""

    def by_family(self, splits: dict[tuple[str, str], str]) -> dict[str, dict[str, set[str]]]:
        """family -> style word -> its splits."""
        out: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for (code, word), split in splits.items():
            out[code.rpartition("-")[0]][word].add(split)
        return out

    def test_every_drawn_image_has_a_split(self, splits):
        assert set(splits) == {(c.code, word) for c in CONCEPTS for word in WORDS}
        assert set(splits.values()) == set(SPLITS)

    def test_an_image_that_no_style_has_drawn_has_no_split(self):
        drawn = EVERYWHERE | {"noto": set()}
        assert not any(word == "noto" for _, word in split_of(CONCEPTS, drawn))

    def test_the_listed_concepts_are_held_out_in_every_style(self, splits):
        for family, styles in self.by_family(splits).items():
            found = set().union(*styles.values())
            assert (found == {"held_out_concepts"}) == (family in SELDOM)
            assert family in SELDOM or "held_out_concepts" not in found

    def test_members_of_a_family_stay_together(self, splits):
        assert all(len(found) == 1 for styles in self.by_family(splits).values() for found in styles.values())

    def test_a_held_out_pair_is_one_design_with_both_fluent_styles_together(self, splits):
        held = set()
        for styles in self.by_family(splits).values():
            designs = {DESIGN[word] for word, found in styles.items() if found == {"held_out_pairs"}}
            assert len(designs) <= 1
            for design in designs:
                assert {word for word, found in styles.items() if found == {"held_out_pairs"}} == {
                    word for word in WORDS if DESIGN[word] == design
                }
            held |= designs
        assert held == set(DESIGN.values())

    def test_fifteen_percent_of_the_families_have_a_held_out_pair(self, splits):
        families = [set().union(*styles.values()) for styles in self.by_family(splits).values()]
        pairs = sum("held_out_pairs" in found for found in families)
        assert pairs / (len(families) - len(SELDOM)) == pytest.approx(0.15, abs=0.03)

    def test_the_order_of_the_concepts_does_not_matter(self):
        shuffled = random.Random(0).sample(CONCEPTS, len(CONCEPTS))
        assert split_of(shuffled, EVERYWHERE) == split_of(CONCEPTS, EVERYWHERE)

    def test_three_designs_are_too_few_to_hold_one_out(self):
        drawn = EVERYWHERE | {"noto": set(), "blob": set()}
        assert "held_out_pairs" not in split_of(CONCEPTS, drawn).values()

    def test_chance_depends_on_the_words_alone_and_is_even(self):
        assert chance("a", "b") == chance("a", "b") != chance("ab")
        draws = [chance("x", str(i)) for i in range(2000)]
        assert 0 <= min(draws) and max(draws) < 1
        assert np.mean(draws) == pytest.approx(0.5, abs=0.02)


class TestShards:
    samples = [(f"key{i}", bytes([i]) * 50, {"name": {"ar": "تفاحة"}, "b": i, "a": i}) for i in range(5)]

    def test_written_twice_they_are_the_same_byte_for_byte(self, tmp_path: Path):
        for folder in ("one", "two"):
            assert write_shards(tmp_path / folder, iter(self.samples)) == 5
        one, two = (tmp_path / folder / "shard-00000.tar" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()

    def test_full_shards_are_followed_by_the_rest(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(image_samples, "SHARD", 2)
        write_shards(tmp_path, self.samples)
        paths = sorted(tmp_path.iterdir())
        assert [path.name for path in paths] == [f"shard-0000{i}.tar" for i in range(3)]
        read = WebDataset([str(path) for path in paths], shardshuffle=False)
        assert [(s["__key__"], s["png"], json.loads(s["json"])) for s in read] == self.samples

    def test_old_shards_and_halves_of_them_go(self, tmp_path: Path):
        for name in ("shard-00007.tar", "shard-00000.tar.part"):
            (tmp_path / name).touch()
        write_shards(tmp_path, self.samples)
        assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.tar"]

    def test_no_samples_give_no_shards(self, tmp_path: Path):
        assert write_shards(tmp_path, []) == 0
        assert list(tmp_path.iterdir()) == []


def test_svg_and_raster_images_become_square_rgba():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><rect width="1" height="2" fill="red"/></svg>'
    raster = io.BytesIO()
    Image.new("RGB", (256, 128), "red").save(raster, "WEBP", lossless=True)
    left, middle = (Image.open(io.BytesIO(render(source))) for source in (svg, raster.getvalue()))
    assert left.size == middle.size == (SIZE, SIZE) and left.mode == middle.mode == "RGBA"
    assert left.getpixel((20, 128)) == middle.getpixel((128, 128)) == (255, 0, 0, 255)
    assert left.getpixel((200, 128))[3] == middle.getpixel((128, 20))[3] == middle.getpixel((128, 234))[3] == 0  # pyright: ignore


def test_near_duplicates_of_held_out_images_leave_training_and_nothing_else_does():
    splits = ("train", "train", "held_out_pairs", "held_out_concepts", "train")
    rows = [{"key": i, "split": split} for i, split in enumerate(splits)]
    thumbnails = np.zeros((5, 768), np.float32)
    thumbnails[0] += 0.005  # nearly row 2
    thumbnails[1] += 0.02  # not
    thumbnails[4] += 1
    thumbnails[3] += 1  # row 4 itself
    assert [row["key"] for row in drop_leaks(rows, thumbnails)] == [1, 2, 3]


def test_without_held_out_images_nothing_leaks():
    rows = [{"split": "train"}] * 2
    assert drop_leaks(rows, np.zeros((2, 768), np.float32)) == rows


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory):
    """Tiny packages; noto's lemon is drawn as the watermelon, a concept held out of training."""
    twins = {("noto", "1f34b"): ("twemoji", "1f349")}
    fakes = fake_packages.make(tmp_path_factory.mktemp("packages"), twins)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fakes.patch(monkeypatch)
        yield fakes


@pytest.fixture(scope="module")
def built(fakes: fake_packages.Fakes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    build(out, fakes.folder)
    return out


def content(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of everything but the cache."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


class TestBuild:
    def test_it_gives_shards_manifest_summary_and_attribution(self, built: Path):
        shards = {f"{split}/shard-00000.tar" for split in (*SPLITS, EXTRA)}
        names = {"manifest.jsonl", "data.json", "names.json", "ATTRIBUTION.md", *shards}
        assert set(content(built)) == names

    def test_two_folders_hold_the_same_bytes(self, fakes: fake_packages.Fakes, built: Path, tmp_path: Path):
        build(tmp_path, fakes.folder)
        assert content(tmp_path) == content(built)

    def test_an_interrupted_run_goes_on_and_renders_only_what_is_missing(self, fakes: fake_packages.Fakes, built: Path):
        before = content(built)
        renders = sorted((built / "cache").rglob("*.png"))
        assert len(renders) == len(WORDS) * len(fake_packages.NAMES) + 6
        renders[0].unlink()
        (built / "train" / "shard-00000.tar").unlink()
        times = {path: path.stat().st_mtime_ns for path in renders[1:]}
        build(built, fakes.folder)
        assert {path: path.stat().st_mtime_ns for path in renders[1:]} == times
        assert content(built) == before

    def test_shards_hold_what_the_manifest_says(self, built: Path):
        rows = manifest(built)
        for split in SPLITS:
            read = WebDataset(str(built / split / "shard-00000.tar"), shardshuffle=False)
            samples = {sample["__key__"]: sample for sample in read}
            assert list(samples) == [row["key"] for row in rows if row["split"] == split]
            for key, sample in samples.items():
                facts, image = json.loads(sample["json"]), Image.open(io.BytesIO(sample["png"]))
                assert key == f"{facts['style'].replace(' ', '-')}_{facts['code']}"
                assert facts["name"]["en"] == fake_packages.NAMES[facts["code"]][0]
                assert image.size == (SIZE, SIZE) and image.mode == "RGBA"
        counts = json.loads((built / "data.json").read_text())["counts"]
        assert counts == {split: sum(row["split"] == split for row in rows) for split in (*SPLITS, EXTRA)}

    def test_the_watermelon_is_seen_nowhere_in_training_not_even_as_a_lemon(self, built: Path):
        rows = manifest(built)
        assert {row["split"] for row in rows if row["code"] == "1f349"} == {"held_out_concepts"}
        lemons = {row["style"] for row in rows if row["code"] == "1f34b" and row["split"] != EXTRA}
        assert lemons == set(WORDS) - {"noto"}
        assert json.loads((built / "data.json").read_text())["near_duplicates_dropped"] == 1

    def test_extra_styles_show_everyday_things_and_nothing_that_is_held_out(self, built: Path):
        found = {key: facts["code"] for key, _, facts in read_samples(built / EXTRA)}
        assert found == {
            "fxemoji_redapple": "1f34e",
            "fxemoji_banana": "1f34c",
            "streamline_lemon-1": "1f34b",
            "streamline_lemon-2": "1f34b",
            "streamline_dog-face": "1f436",
            "icon-park_banana": "1f34c",
        }

    def test_the_attribution_names_every_style_with_its_author_and_licence(self, built: Path):
        text = (built / "ATTRIBUTION.md").read_text(encoding="utf-8")
        for style in (*STYLES, *EXTRA_STYLES):
            line = next(line for line in text.splitlines() if line.startswith(f"- {style.word}:"))
            assert style.author in line and f"licence {style.licence}" in line and style.package.name in line
        assert "Unicode-3.0" in text and "emojibase-data, licence MIT" in text

    def test_every_row_says_where_it_comes_from(self, built: Path):
        packages = {p["name"]: p for p in json.loads((built / "data.json").read_text())["packages"]}
        for row in manifest(built):
            assert row["integrity"] == packages[row["package"]]["integrity"]
            assert row["licence"] and row["licence_file"] and row["author"] and row["renderer"]
            assert len(row["pixels"]) == 64

    def test_a_limit_keeps_the_first_concepts(self, fakes: fake_packages.Fakes, tmp_path: Path):
        build(tmp_path, fakes.folder, limit=1)
        assert {row["code"] for row in manifest(tmp_path)} == {"1f34e"}

    def test_a_sample_cut_out_of_it_holds_the_chosen_concepts_in_their_splits(self, built: Path, tmp_path: Path):
        counts = cut_sample(built, tmp_path, ("1f34e", "1f349"))
        rows = manifest(tmp_path)
        found = {(row["code"], row["split"]) for row in rows}
        assert found == {("1f34e", "train"), ("1f34e", EXTRA), ("1f349", "held_out_concepts")}
        assert counts == {"train": len(WORDS), "held_out_pairs": 0, "held_out_concepts": len(WORDS), EXTRA: 1}
        assert all(style.word in (tmp_path / "ATTRIBUTION.md").read_text() for style in STYLES)


class TestErrors:
    """Each ends the script with one line."""

    def refused(self, out: Path, packages: Path | None, match: str) -> None:
        with pytest.raises(SystemExit, match=match) as error:
            build_dataset.main(out, packages)
        assert "\n" not in str(error.value.code)

    def test_npm_missing(self, fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        self.refused(tmp_path / "data", None, "build_dataset: npm was not found")

    def test_a_damaged_tarball(self, fakes: fake_packages.Fakes, tmp_path: Path):
        (tmp_path / fakes.packages[0].tarball).write_bytes(b"half")
        self.refused(tmp_path / "data", tmp_path, f"build_dataset: .*{fakes.packages[0].tarball} is not")

    def test_an_output_folder_that_cannot_be_made(self, fakes: fake_packages.Fakes, tmp_path: Path):
        (tmp_path / "file").touch()
        self.refused(tmp_path / "file" / "data", fakes.folder, "build_dataset: .*Not a directory")

    def test_a_full_disk(self, fakes: fake_packages.Fakes, built: Path, monkeypatch: pytest.MonkeyPatch):
        def write(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(build_dataset, "write_shards", write)
        self.refused(built, fakes.folder, "build_dataset: .*No space left on device")

    def test_a_sample_of_no_data_set(self, tmp_path: Path):
        with pytest.raises(SystemExit, match="build_dataset: .*No such file"):
            build_dataset.main(tmp_path / "nowhere", sample=tmp_path / "out")
