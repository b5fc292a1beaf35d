"""The model inside the package: whole, small, credited, and able to do what it is for."""

import json
import re
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

import cm3
import tokenizer_image
from cm3 import CM3
from train.images.samples import read_split
from train.images.views import PLAIN, place

FOLDERS = [Path(package.__path__[0]) / "pretrained" / "emoji" for package in (cm3, tokenizer_image)]


@pytest.fixture(scope="module")
def emoji() -> CM3:
    return CM3.from_pretrained("emoji", device="cpu")


def test_its_weights_take_less_than_48_megabytes():
    sizes = [path.stat().st_size for folder in FOLDERS for path in folder.iterdir()]
    assert 10e6 < sum(sizes) < 48e6


def test_it_has_8_to_25_million_parameters(emoji: CM3):
    assert 8.0 <= round(emoji.model.num_parameters() / 1e6, 1) <= 25


def test_its_card_and_credits_are_there():
    card = (FOLDERS[0] / "README.md").read_text(encoding="utf-8")
    result = json.loads((FOLDERS[0] / "evaluation.json").read_text())
    psnr = result["splits"]["held_out_pairs"]["reconstruction"]["psnr"]
    assert f"{psnr:.2f} dB" in card and "seed" in card and "hours" in card
    for folder in FOLDERS:
        credits = (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
        licences = set(re.findall(r"licence ([\w.-]+\w)", credits))
        assert {"Apache-2.0", "CC-BY-4.0", "MIT", "Unicode-3.0"} == licences  # nothing that shares alike


def test_it_names_what_it_was_shown(emoji: CM3, sample: Path):
    rows, side = list(islice(read_split(sample / "train"), 40)), emoji.image_tokenizer.size[0]
    images = [Image.fromarray(place(drawing, PLAIN, side)) for _, drawing, _ in rows]
    for language in ("en", "ar"):
        said = [text.lower().rstrip(".") for text in emoji.caption(images, language=language)]
        right = [one.endswith(facts["name"][language].lower()) for one, (*_, facts) in zip(said, rows, strict=True)]
        assert sum(right) >= len(rows) / 2, said


def test_the_same_seed_draws_the_same_image_alone_and_in_a_batch(emoji: CM3):
    many = emoji.generate("a red apple", n=3, seed=5)
    alone = emoji.generate("a red apple", n=1, seed=7)
    assert many[2].tobytes() == alone[0].tobytes()
    assert len({one.tobytes() for one in emoji.generate("a cat", n=8, seed=5)}) > 1


def test_it_draws_the_colour_that_it_is_asked_for(emoji: CM3):
    red = emoji.generate("a red apple", n=4, seed=0) + emoji.generate("a strawberry", n=4, seed=0)
    green = emoji.generate("a green apple", n=4, seed=0) + emoji.generate("broccoli", n=4, seed=0)

    def redness(image: Image.Image) -> float:
        r, g, _ = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # pyright: ignore
        return r - g

    assert sum(map(redness, red)) / 8 > sum(map(redness, green)) / 8 + 20


def test_the_ground_that_is_asked_for_is_in_the_corners(emoji: CM3):
    for word, colour in (("pink", (252, 208, 224)), ("blue", (190, 222, 250))):
        images = emoji.generate(f"a cat on a {word} background", n=4, seed=1)
        near = sum(max(abs(a - b) for a, b in zip(p.getpixel((2, 2)), colour, strict=True)) < 40 for p in images)  # pyright: ignore
        assert near >= 3, word


def test_it_reads_the_ground_of_an_image(emoji: CM3):
    ground = Image.new("RGB", emoji.image_tokenizer.size, (190, 222, 250))
    assert emoji.answer(ground, "What colour is the background?") == "blue"
