"""What README, docs, notebook and page offer to draw comes out: each prompt is in a list of those that were looked at,
and its drawing with a fixed seed is called by its name."""

import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from checkout import ROOT
from cm3 import CM3
from demo.words import INSTRUCTIONS, PROMPTS

# Prompt -> a word of the caption of its drawing; all eight of seeds 0 to 7 were looked at, or the four of the best of
# four with seed 7.
DRAWN = {
    "a red apple": "red apple",
    "a tulip": "tulip",
    "a sunflower": "sunflower",
    "a banana": "banana",
    "a yellow taxi": "taxi",
    "a dolphin": "dolphin",
    "a tulip in the noto style": "tulip",
    "broccoli, noto style": "broccoli",
    "قطة": "cat",
    "موز": "banana",
    "سيارة إسعاف": "ambulance",
    "دوار الشمس": "sunflower",
}
# Instruction -> the ground that it makes, red, green, blue.
EDITED = {
    "make the background blue": (191, 222, 250),
    "make the background pink": (255, 209, 226),
    "make the background yellow": (255, 240, 172),
    "اجعل الخلفية زرقاء": (191, 222, 250),
}
OTHERS = {"a cat", "a lighthouse at dusk"}  # of models that people train or convert
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "tour.ipynb"]
WORDS = r"[^\"\\\n]+"
CALLS = r"(?:generate\(|generate\", |cm3 generate |cm3 tour |PROMPT=|images\.generate\(prompt=)"
GENERATE = rf'{CALLS}\[?"({WORDS})"(?:, "({WORDS})"\])?'
EDIT = rf'(?:\.edit\([^,()]+(?:\[0\])?, (?:prompt=)?|cm3 edit [\w./]+ )"({WORDS})"'


def shown(pattern: str) -> set[str]:
    """What the pages show, of each match all that it has in brackets."""
    found = set[str]()
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace(r"\"", '"')
        found |= {words for match in re.finditer(pattern, text) for words in match.groups() if words}
    return found


@pytest.fixture(scope="module")
def emoji() -> CM3:
    return CM3.from_pretrained("emoji", device="cpu")


@pytest.fixture(scope="module")
def apple(emoji: CM3) -> Image.Image:
    return emoji.generate("a red apple", best_of=4, seed=7)[0]


def test_all_that_is_shown_was_looked_at(emoji: CM3):
    prompts, instructions = shown(GENERATE), shown(EDIT)
    assert {"a red apple", "a yellow taxi", "a tulip", "A DOLPHIN!"} <= prompts
    assert {"make the background blue", "make the background pink"} <= instructions
    read = {emoji.normal_prompt(prompt) for prompt in (*prompts, *PROMPTS["en"], *PROMPTS["ar"])}
    assert read - OTHERS <= DRAWN.keys()
    assert {*instructions, *INSTRUCTIONS["en"], *INSTRUCTIONS["ar"]} <= EDITED.keys()


@pytest.mark.parametrize("prompt", DRAWN)
def test_what_is_shown_is_drawn(emoji: CM3, prompt: str):
    [image] = emoji.generate(prompt, best_of=4, seed=7)
    assert DRAWN[prompt] in emoji.caption(image)


@pytest.mark.parametrize("instruction", EDITED)
def test_an_edit_that_is_shown_does_what_it_says_and_leaves_the_thing(emoji: CM3, apple: Image.Image, instruction: str):
    edited = emoji.edit(apple, instruction)
    before, after = (np.asarray(one.convert("RGB")).astype(float) for one in (apple, edited))
    corner = after[:16].reshape(-1, 3).mean(0)
    assert np.abs(corner - EDITED[instruction]).max() < 25, corner
    assert np.abs(after[48:80, 48:80] - before[48:80, 48:80]).mean() < 25


def test_a_hole_that_is_shown_is_filled(emoji: CM3, apple: Image.Image):
    mask = Image.new("L", apple.size)
    ImageDraw.Draw(mask).rectangle((apple.width // 2, 0, *apple.size), fill=255)
    [filled] = emoji.infill(apple, mask, "a red apple")
    assert "red apple" in emoji.caption(filled)


def test_what_is_asked_is_answered(emoji: CM3, apple: Image.Image):
    assert emoji.caption(apple, language="ar") == "تفاح أحمر"
    assert emoji.answer(apple, "What colour is it?") == "red"
    assert emoji.answer(apple, "What kind of thing is it?", history=[("What colour is it?", "red")]) == "fruit"
