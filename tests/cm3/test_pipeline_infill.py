"""Filling in and editing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.engine.options import EditOptions, InfillOptions
from pipelines import HOLE_MASK, bytes_of, mask_of, prompts_of

APPLE = "a red apple"


def test_an_edit_keeps_the_pixels_where_codes_stay(
    tiny: CM3, images: list[PIL_Image.Image], monkeypatch: pytest.MonkeyPatch
):
    small = images[0].resize((16, 16))
    codes = tiny.image_tokenizer.encode(small)
    changed = codes.clone()
    changed[0, 1] = (changed[0, 1] + 1) % tiny.image_tokenizer.num_codes
    monkeypatch.setattr(tiny, "run_requests", lambda *_: [tiny.vocab.code_to_id(changed.flatten().tolist())])
    out, side = np.asarray(tiny.edit(small, "make it blue")), small.width // codes.shape[1]
    redrawn = np.zeros(out.shape[:2], bool)
    redrawn[: 2 * side, : 3 * side] = True  # the cell and its neighbours
    assert (out[~redrawn] == np.asarray(small)[~redrawn]).all()
    assert (out[redrawn] == np.asarray(tiny.processor.decode(changed))[redrawn]).all()


def test_infill_keeps_every_code_that_the_mask_does_not_touch(tiny: CM3, images: list[PIL_Image.Image]):
    codes = tiny.image_tokenizer.encode(images[0].crop((4, 0, 28, 24)))  # the middle square: cells of 6 pixels
    touched = torch.zeros(4, 4, dtype=torch.bool)
    touched[1, 0:2] = True  # x 9..13 is 5..9 of the square
    for words in (None, "a cat"):
        requests = tiny.jobs.infill(
            images[0], HOLE_MASK, words, InfillOptions(n=4, temperature=2.0, top_p=1.0)
        ).requests
        given = torch.tensor([-1 if id is None else tiny.vocab.id_to_code(id) for id in requests[0].given or ()])
        assert torch.equal(given.view(4, 4), codes.masked_fill(touched, -1))
        new = tiny.draw_codes(requests)
        assert all(torch.equal(one[~touched], codes[~touched]) for one in new)
        assert len({tuple(one[touched].tolist()) for one in new}) > 1


def test_infill_changes_pixels_under_the_mask_only(tiny: CM3, images: list[PIL_Image.Image]):
    own = np.asarray(images[0])
    for image in tiny.infill(images[0], HOLE_MASK, n=2, seed=3):
        changed = (np.asarray(image) != own).any(-1)
        rows, columns = changed.nonzero()
        assert image.size == images[0].size
        assert rows.min() >= 6 and rows.max() < 12 and columns.min() >= 4 and columns.max() < 16  # the two cells
        assert changed[7:11, 9:14].mean() > 0.9


def test_infill_is_the_same_alone_in_a_batch_and_streamed(tiny: CM3, images: list[PIL_Image.Image]):
    for words in (None, APPLE):
        three = tiny.infill(images[0], HOLE_MASK, words, n=3, seed=7)
        assert bytes_of(three[2:]) == bytes_of(tiny.infill(images[0], HOLE_MASK, words, seed=9))
        streamed = list(tiny.stream(tiny.jobs.infill(images[0], HOLE_MASK, words, InfillOptions(n=3, seed=7))))
        assert sorted(piece.index for piece in streamed) == [0] * 4 + [1] * 4 + [2] * 4
        last = dict(streamed)
        assert bytes_of([last[0], last[1], last[2]]) == bytes_of(three)
    assert bytes_of(three) != bytes_of(tiny.infill(images[0], HOLE_MASK, n=3, seed=7))
    assert bytes_of(three) != bytes_of(tiny.infill(images[0], HOLE_MASK, APPLE, n=3, guidance=3.0, seed=7))


def test_an_infill_without_words_has_no_second_lane(tiny: CM3, images: list[PIL_Image.Image]):
    for words, sequences in ((None, 0), (" ", 0), ("a cat", 1)):
        assert [len(one.extra_prompts) for one in tiny.jobs.infill(images[0], HOLE_MASK, words).requests] == [sequences]
    assert bytes_of(tiny.infill(images[0], HOLE_MASK)) == bytes_of(tiny.infill(images[0], HOLE_MASK, guidance=9.0))


def test_infill_gives_back_large_and_oblong_images_at_their_size(tiny: CM3, images: list[PIL_Image.Image]):
    large = images[0].resize((300, 512))
    mask = mask_of((20, 400, 40, 500), large.size)
    [filled] = tiny.infill(large, mask)
    assert filled.size == large.size
    for kept in ((0, 0, 300, 350), (75, 0, 300, 512), (0, 500, 300, 512)):  # cells of 75 pixels, from y = 200 on
        assert filled.crop(kept).tobytes() == large.crop(kept).tobytes()
    square = images[0].resize((24, 24))
    assert tiny.infill(square, PIL_Image.new("1", (24, 24), 1))[0].size == (24, 24)  # all of it


def test_infill_keeps_transparency_outside_and_is_opaque_under_the_mask(tiny: CM3, images: list[PIL_Image.Image]):
    image = images[0].copy()
    image.putalpha(images[1].convert("L"))
    [filled] = tiny.infill(image, HOLE_MASK, seed=3)
    own, out = np.asarray(image), np.asarray(filled)
    assert (filled.mode, filled.size) == ("RGBA", image.size)
    touched = np.zeros(own.shape[:2], bool)
    touched[6:12, 4:16] = True  # two cells
    assert (out[~touched] == own[~touched]).all()
    assert (out[7:11, 9:14, 3] == 255).all()
    flat = tiny.infill(image.convert("RGBa").convert("RGB"), HOLE_MASK, seed=3)[0]
    assert flat.mode == "RGB"


@pytest.mark.parametrize("mode", ["L", "P", "LA", "PA", "1", "CMYK", "I;16"])
def test_infill_and_edit_of_any_mode_are_colour_with_transparency_where_there_was_some(
    tiny: CM3, images: list[PIL_Image.Image], mode: str
):
    grey = np.asarray(images[0].convert("L"))
    image = PIL_Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else images[0].convert(mode)
    for one in (tiny.infill(image, HOLE_MASK)[0], tiny.edit(image, "make it blue")):
        assert (one.size, one.mode) == (image.size, "RGBA" if mode in ("LA", "PA") else "RGB")


def test_infill_of_everything_is_a_drawing_of_its_own(tiny: CM3, images: list[PIL_Image.Image]):
    square = images[0].resize((16, 16))
    white = PIL_Image.new("L", (16, 16), 255)
    [request] = tiny.jobs.infill(square, white).requests
    assert request.given == [None] * 16
    assert bytes_of(tiny.infill(square, white)) == bytes_of([tiny.processor.decode(tiny.draw_codes([request])[0])])


def test_image_and_mask_of_infill_are_turned_upright(tiny: CM3, images: list[PIL_Image.Image], tmp_path: Path):
    exif = PIL_Image.Exif()
    exif[274] = 6  # turn right by a quarter
    for name, image in (("image", images[0]), ("mask", HOLE_MASK)):
        image.transpose(PIL_Image.Transpose.ROTATE_90).save(tmp_path / f"{name}.png", exif=exif)
    turned = tiny.infill(tmp_path / "image.png", tmp_path / "mask.png")
    assert bytes_of(turned) == bytes_of(tiny.infill(images[0], HOLE_MASK))


def test_an_edit_is_guided_by_the_image_and_by_nothing(tiny: CM3, images: list[PIL_Image.Image]):
    [one] = tiny.jobs.edit(images[0], "make it blue", EditOptions(image_guidance=1.5, text_guidance=4.0)).requests
    codes = tiny.vocab.code_to_id(tiny.image_tokenizer.encode(images[0]).flatten().tolist())
    sequences = [[id for id in sequence if tiny.vocab.is_code(id)] for sequence in (one.prompt, *one.extra_prompts)]
    assert sequences == [codes, codes, []]
    assert prompts_of(tiny, [one]) == ["Edit: make it blue"]
    edits = [
        tiny.edit(images[0], "make it blue", image_guidance=one, text_guidance=other)
        for one, other in ((1.5, 4.0), (3.0, 4.0), (1.5, 1.0))
    ]
    assert len(set(bytes_of(edits))) == 3
    assert edits[0].size == images[0].size


def test_what_an_edit_is_to_keep_stays(tiny: CM3, images: list[PIL_Image.Image]):
    source = tiny.image_tokenizer.encode(images[0])

    def kept(keep: float) -> int:
        [one] = tiny.jobs.edit(images[0], "make it blue", EditOptions(temperature=1.0, top_p=1.0, keep=keep)).requests
        return int((tiny.draw_codes([one])[0] == source).sum())

    assert kept(0) < kept(5) < kept(100) == source.numel()
    assert tiny.edit(images[0], "make it blue", keep=100).tobytes() == images[0].tobytes()


@pytest.mark.parametrize("size", [(16, 16), (300, 100), (100, 300), (301, 100), (256, 256), (7, 5), (1, 1)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_edit_gives_back_the_image_with_its_middle_changed(
    tiny: CM3, images: list[PIL_Image.Image], size: tuple[int, int], mode: str
):
    image = images[0].resize(size)
    if mode == "RGBA":
        image.putalpha(images[1].resize(size).convert("L"))
    own, (width, height), side = np.asarray(image), size, min(size)
    edited = tiny.edit(image, "make it blue", temperature=2.0, top_p=1.0)
    out = np.asarray(edited)
    assert (edited.size, edited.mode) == (size, mode)
    changed = (out != own).any(-1)
    rows, columns = changed.nonzero()
    assert changed.sum() > side * side / 2  # random weights change most codes
    assert rows.min() >= (height - side) // 2 and rows.max() < (height - side) // 2 + side
    assert columns.min() >= (width - side) // 2 and columns.max() < (width - side) // 2 + side
    if mode == "RGBA":
        assert (out[changed, 3] == 255).all()
    *_, last = tiny.stream(tiny.jobs.edit(image, "make it blue", EditOptions(temperature=2.0, top_p=1.0)))
    assert bytes_of([last.content]) == bytes_of([edited])


def test_an_edit_of_an_image_of_another_size_keeps_the_pixels_where_codes_stay(
    tiny: CM3, images: list[PIL_Image.Image], monkeypatch: pytest.MonkeyPatch
):
    wide = images[0].resize((140, 80))  # its middle square: from x = 30 on, cells of 20 pixels
    changed = tiny.image_tokenizer.encode(wide)
    changed[3, 0] = (changed[3, 0] + 1) % tiny.image_tokenizer.num_codes
    monkeypatch.setattr(tiny, "run_requests", lambda *_: [tiny.vocab.code_to_id(changed.flatten().tolist())])
    out, redrawn = np.asarray(tiny.edit(wide, "make it blue")), np.zeros((80, 140), bool)
    redrawn[40:, 30:70] = True  # the cell and its neighbours
    assert (out[~redrawn] == np.asarray(wide)[~redrawn]).all()
    drawn = np.zeros_like(out)
    drawn[:, 30:110] = tiny.processor.decode(changed).resize((80, 80), PIL_Image.Resampling.BICUBIC)
    assert (out[redrawn] == drawn[redrawn]).all()


def test_edits_of_a_list_are_those_of_its_images(tiny: CM3, images: list[PIL_Image.Image]):
    words = ["make it blue", "احذف القطة", "add a dog"]
    each = [tiny.edit(*pair, seed=3) for pair in zip(images, words, strict=True)]
    assert bytes_of(tiny.edit(images, words, seed=3)) == bytes_of(each)
    assert bytes_of(tiny.edit(tuple(images[:2]), words[0], seed=3)) == bytes_of(
        [tiny.edit(image, words[0], seed=3) for image in images[:2]]
    )
    assert each[0].tobytes() != tiny.edit(images[0], words[0], seed=4).tobytes()


def test_streamed_edits_grow_to_the_whole(tiny: CM3, images: list[PIL_Image.Image]):
    streamed = list(tiny.stream(tiny.jobs.edit(images, "make it blue", EditOptions(seed=3))))
    assert [piece.index for piece in streamed] == [0, 1, 2] * 4
    assert bytes_of([piece.content for piece in streamed[-3:]]) == bytes_of(tiny.edit(images, "make it blue", seed=3))
