"""Views of drawings: where they lie, on what ground, and clean edges."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.images.samples import read_split
from train.images.views import GROUNDS, PLAIN, Augmentation, View, bend, distort, place, recolour

SIZE = 32


@pytest.fixture(scope="module")
def noise() -> Image.Image:
    """An opaque drawing that no symmetry maps to itself."""
    pixels = np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    return Image.fromarray(pixels).convert("RGBa")


@pytest.fixture(scope="module")
def disc() -> Image.Image:
    """A red disc; the transparent pixels around it hold green."""
    y, x = np.mgrid[:128, :128] - 63.5
    pixels = np.zeros((128, 128, 4), np.uint8)
    pixels[:] = (0, 255, 0, 0)
    pixels[np.hypot(x, y) < 50] = (255, 0, 0, 255)
    return Image.fromarray(pixels).convert("RGBa")


def test_the_plain_view_of_an_opaque_drawing_is_the_drawing(noise: Image.Image):
    image = place(noise, PLAIN, SIZE)
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.asarray(noise)[..., :3])


@pytest.mark.parametrize("ground", GROUNDS)
def test_the_ground_has_its_colour_at_the_corners(disc: Image.Image, ground: str):
    image = place(disc, View(ground), SIZE)
    for corner in (image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]):
        assert tuple(corner) == GROUNDS[ground][2]
    assert tuple(image[SIZE // 2, SIZE // 2]) == (255, 0, 0)


def test_a_mirrored_view_is_the_plain_one_from_right_to_left(noise: Image.Image):
    np.testing.assert_array_equal(place(noise, View(mirror=True), SIZE), place(noise, PLAIN, SIZE)[:, ::-1])


@pytest.mark.parametrize(("right", "down"), [(3, 2), (-3, -2), (0, 5)])
def test_a_shift_moves_right_and_down_and_shows_the_ground_behind(noise: Image.Image, right: int, down: int):
    view = place(noise, View("pink", shift=(right, down)), SIZE)
    expected = np.full((SIZE + 10, SIZE + 10, 3), GROUNDS["pink"][2], np.uint8)  # with a border of 5
    expected[5 + down : 5 + down + SIZE, 5 + right : 5 + right + SIZE] = place(noise, PLAIN, SIZE)
    np.testing.assert_array_equal(view, expected[5:-5, 5:-5])


def test_a_smaller_scale_leaves_a_free_border(noise: Image.Image):
    image = place(noise, View("blue", scale=0.5), SIZE)
    inside = np.zeros((SIZE, SIZE), bool)
    inside[8:24, 8:24] = True
    assert (image[~inside] == GROUNDS["blue"][2]).all()
    assert (image[inside] != GROUNDS["blue"][2]).any(-1).mean() > 0.9


@pytest.mark.parametrize("scale", [0.85, 0.97, 1.0])
def test_the_colour_of_transparent_pixels_does_not_bleed(disc: Image.Image, scale: float):
    image = place(disc, View(scale=scale), SIZE).astype(int)
    assert (image[..., 0] >= 253).all()  # from red to white through pink alone
    assert (abs(image[..., 1] - image[..., 2]) <= 2).all()


def test_a_seed_gives_the_same_views(noise: Image.Image):
    views = [[Augmentation().sample(np.random.default_rng(3), 64) for _ in range(2)] for _ in range(2)]
    assert views[0] == views[1]


def test_samples_stay_within_their_limits():
    rng, augmentation = np.random.default_rng(0), Augmentation(white=0.6, scale=0.8, shift=3, mirror=0.25)
    views = [augmentation.sample(rng, 128) for _ in range(2000)]
    assert all(0.8 <= view.scale <= 1 for view in views)
    for view in views:
        free = 128 * (1 - view.scale) / 2
        assert max(map(abs, view.shift)) <= free + 3 * 128 / 64
    assert np.mean([view.ground == "white" for view in views]) == pytest.approx(0.6, abs=0.04)
    assert np.mean([view.mirror for view in views]) == pytest.approx(0.25, abs=0.04)
    assert {view.ground for view in views} == set(GROUNDS)


def test_text_is_never_mirrored_when_nothing_is():
    rng = np.random.default_rng(0)
    assert not any(Augmentation(mirror=0).sample(rng, 64).mirror for _ in range(200))


def test_a_split_is_read_in_order_with_premultiplied_alpha(sample: Path):
    rows = list(read_split(sample / "held_out_concepts"))
    assert len(rows) == 6
    assert [key for key, _, _ in rows] == [key for key, _, _ in read_split(sample / "held_out_concepts")]
    for key, drawing, facts in rows:
        assert drawing.mode == "RGBa" and drawing.size == (128, 128)
        assert key == f"{facts['style'].replace(' ', '-')}_{facts['code']}"


def test_a_split_without_shards_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no shards in .*: build the data set first"):
        list(read_split(tmp_path))


class TestDistortion:
    """A red disc of 100 of 128 pixels, whose form and colours change."""

    def seeds(self, count: int = 40):
        return (np.random.default_rng(seed) for seed in range(count))

    def test_the_same_seed_gives_the_same_image_and_another_one_another(self, disc: Image.Image):
        one, same, other = (place(disc, View(distortion=seed), SIZE) for seed in (3, 3, 4))
        np.testing.assert_array_equal(one, same)
        assert (one != other).any() and (one != place(disc, PLAIN, SIZE)).any()

    def test_it_keeps_mode_and_size_and_most_of_the_form(self, disc: Image.Image):
        solid = np.asarray(disc)[..., 3] > 127
        for rng in self.seeds():
            out = distort(disc, rng)
            assert (out.mode, out.size) == (disc.mode, disc.size)
            shape = np.asarray(out)[..., 3] > 127
            assert 0.6 < (shape & solid).sum() / (shape | solid).sum() < 1

    def test_bending_moves_things_about_the_centre_and_leaves_what_is_beyond_the_edge_clear(self, noise: Image.Image):
        flat = np.asarray(noise.convert("RGBA"))
        changed = [np.asarray(bend(noise.convert("RGBA"), rng)) for rng in self.seeds()]
        assert all((one != flat).mean() > 0.3 for one in changed)
        assert any((one[..., 3] < 128).any() for one in changed)

    def test_half_of_the_images_keep_nearly_their_colours_and_some_are_grey(self, disc: Image.Image):
        red = Image.new("RGB", (8, 8), (220, 40, 30))
        seen = [np.asarray(recolour(red, rng))[0, 0].astype(int) for rng in self.seeds(300)]
        reddish = [colour[0] > colour[1:].max() + 40 for colour in seen]
        grey = [np.ptp(colour) == 0 for colour in seen]
        assert 0.5 < np.mean(reddish) < 0.9 and 0.1 < np.mean(grey) < 0.25
        assert len({tuple(colour) for colour in seen}) > 100
