"""Contact sheets."""

import numpy as np
import pytest
from PIL import Image

from train.images.sheet import LABEL, _wrap, contact_sheet

RED, BLUE = (Image.new("RGB", (16, 8), colour) for colour in ("red", "blue"))


def test_images_stand_in_rows_behind_their_words():
    sheet = contact_sheet(["one", "two"], [[RED, BLUE], [BLUE]])
    assert sheet.size == (LABEL + 2 * 18, 2 * 10)
    centres = [(LABEL + 8, 4), (LABEL + 18 + 8, 4), (LABEL + 8, 14), (LABEL + 18 + 8, 14)]
    assert [sheet.getpixel(at) for at in centres] == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 255, 255)]


def test_words_are_written_left_of_the_images():
    pixels = np.asarray(contact_sheet(["تفاحة red apple"], [[Image.new("RGB", (40, 40), "white")]]).convert("L"))
    assert pixels[:, :LABEL].min() < 128 and pixels[:, LABEL:].min() == 255


def test_a_scale_enlarges_without_blur():
    sheet = contact_sheet(["one"], [[RED, BLUE]], scale=3)
    assert sheet.size == (LABEL + 2 * 50, 26)
    assert set(map(tuple, np.asarray(sheet)[:24, LABEL : LABEL + 48].reshape(-1, 3).tolist())) == {(255, 0, 0)}


def test_long_words_take_up_to_three_lines():
    text = _wrap("a very long prompt " * 10, 30)
    assert text.count("\n") == 2
    assert all(len(line) <= 30 for line in text.split("\n"))
    assert _wrap("short", 30) == "short"


def test_labels_and_rows_must_agree():
    with pytest.raises(AssertionError, match="2 labels for 1 rows"):
        contact_sheet(["one", "two"], [[RED]])
