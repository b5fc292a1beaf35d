"""Filters: what the block list finds however it is spelled, and what it leaves alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from cm3.serving.safety import BlockList, NudityFilter, Refusal, Safety, plain_words

LIST = BlockList({"weapons": ["gun", "machine gun", "مسدس"], "drugs": ["cocaine"]})


@pytest.mark.parametrize(
    "text",
    [
        "a gun",
        "a GUN!",
        "a g u n on a table",
        "a g.u.n",
        "g-u-n",
        "a guuuun",
        "a gün",
        "a ｇｕｎ",
        "a g\u200bu\u200bn",
        "a g\u0301u\u0302n",
        "\u0261un",
        "المسدس",
        "مُسَدَّس",
        "مســدس",
        "gun.",
        "guns",
        "g-un",
        "gu.n",
        "(gun)",
    ],
)
def test_tricks_of_spelling_do_not_get_past_it(text: str):
    assert LIST.refuses(text) == "weapons"


@pytest.mark.parametrize("text", ["c0caine", "cocain€", "сосаine", "COCAINE", "coca1ne", "cocain3", "c o c a i n e"])
def test_letters_that_look_alike_are_those_they_look_like(text: str):
    assert LIST.refuses(text) == "drugs"


@pytest.mark.parametrize("text", ["", "a gunner", "begun", "a red apple", "a b", "1 2 3 4 5", "تفاحة", "🍎", "g un"])
def test_other_words_pass(text: str):
    assert LIST.refuses(text) is None


@given(st.text())
def test_any_text_can_be_looked_at(text: str):
    assert LIST.refuses(text) in (None, "weapons", "drugs")
    assert all(plain_words(text))


def test_a_list_is_read_from_a_file(tmp_path: Path):
    (tmp_path / "list.txt").write_text("# people read this\n\ndrugs: cocaine\nbad word\n", encoding="utf-8")
    blocked = BlockList.read(tmp_path / "list.txt")
    assert blocked.refuses("some cocaine") == "drugs"
    assert blocked.refuses("a bad, bad word") == "blocked"
    assert blocked.refuses("a bad day, word") is None
    with pytest.raises(ValueError, match="the block list's term '--' has no letters"):
        BlockList({"a": ["--"]})


def test_a_refusal_names_the_category_and_not_the_text():
    class Dark:
        def refuses(self, image: Image.Image) -> str | None:
            return "dark" if image.convert("L").getextrema() == (0, 0) else None

    safety = Safety([LIST], [Dark()])
    safety.check_prompt("an apple", "a pear")
    with pytest.raises(Refusal, match="^the prompt is refused: weapons$"):
        safety.check_prompt("an apple", "my gun")
    with pytest.raises(Refusal, match="weapons"):
        safety.check_prompt("a machine", "gun")
    safety.check_images([Image.new("RGB", (2, 2), "white")])
    with pytest.raises(Refusal, match="^the image is refused: dark$"):
        safety.check_images([Image.new("RGB", (2, 2), "white"), Image.new("RGB", (2, 2))])


class Detector:
    """Finds what it is told to, and remembers what it saw."""

    def __init__(self, *found: tuple[str, float]):
        self.found, self.seen = found, []

    def detect(self, image_path: np.ndarray) -> list[dict[str, Any]]:
        self.seen.append(image_path)
        return [{"class": name, "score": score, "box": [0, 0, 1, 1]} for name, score in self.found]


@pytest.mark.parametrize(
    ("found", "category"),
    [
        ((), None),
        ((("FEMALE_GENITALIA_EXPOSED", 0.9),), "nudity"),
        ((("FACE_MALE", 0.9), ("BUTTOCKS_EXPOSED", 0.4)), "nudity"),
        ((("BUTTOCKS_EXPOSED", 0.39),), None),
        ((("FEMALE_BREAST_COVERED", 0.9), ("BELLY_EXPOSED", 0.9), ("MALE_BREAST_EXPOSED", 0.9)), None),
    ],
)
def test_exposed_parts_that_are_seen_surely_are_refused(found: tuple, category: str | None):
    assert NudityFilter(detector=Detector(*found)).refuses(Image.new("RGB", (8, 8))) == category


def test_the_detector_sees_the_image_as_opencv_has_it():
    detector = Detector()
    NudityFilter(detector=detector).refuses(Image.new("RGBA", (6, 4), (10, 20, 30, 255)))
    assert detector.seen[0].shape == (4, 6, 3) and detector.seen[0][0, 0].tolist() == [30, 20, 10]


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 2])
def test_a_threshold_outside_its_limits_is_an_error(threshold: float):
    with pytest.raises(ValueError, match="threshold must be above 0"):
        NudityFilter(threshold, Detector())


@pytest.mark.slow
def test_nudenet_lets_a_photograph_of_a_dressed_person_and_a_drawing_pass():
    pytest.importorskip("nudenet")
    nudity, astronaut = NudityFilter(), Image.fromarray(data.astronaut())
    classes = {one["class"] for one in nudity.detector.detect(np.asarray(astronaut)[..., ::-1].copy())}
    assert classes and not any("EXPOSED" in name and "BREAST" in name for name in classes)  # it sees something
    assert nudity.refuses(astronaut) is None and nudity.refuses(Image.new("RGB", (64, 64), "pink")) is None
