from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tokenizer_image import PRESETS, ImageTokenizer, VQModel


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ImageTokenizer(VQModel(PRESETS["tiny"]))


def test_one_image_gives_a_grid_and_a_list_gives_a_batch(tokenizer: ImageTokenizer) -> None:
    image = Image.new("RGB", (40, 30), "red")
    assert tokenizer.encode(image).shape == tokenizer.grid == (4, 4)
    codes = tokenizer.encode([image, Image.new("L", (9, 9))])
    assert codes.shape == (2, 4, 4)
    assert isinstance(tokenizer.decode(codes[0]), Image.Image)
    assert [image.size for image in tokenizer.decode(codes)] == [(16, 16)] * 2  # pyright: ignore


def test_an_image_can_keep_its_size_or_be_given_one(tokenizer: ImageTokenizer) -> None:
    image = Image.effect_noise((43, 30), 80).convert("RGB")  # 4 pixels a code
    codes = tokenizer.encode(image, size="keep")
    assert codes.shape == (7, 10)
    assert torch.equal(codes, tokenizer.encode(image.crop((1, 1, 41, 29)), size=(28, 40)))  # the middle, unscaled
    assert tokenizer.decode(codes).size == (40, 28)  # pyright: ignore[reportAttributeAccessIssue]
    assert tokenizer.encode([image, image], size=(8, 12)).shape == (2, 2, 3)


def test_sizes_that_make_no_codes_are_refused(tokenizer: ImageTokenizer) -> None:
    image = Image.new("RGB", (40, 30))
    for size in ((10, 8), (8, 0), (-4, 8)):
        with pytest.raises(ValueError, match="multiples of 4"):
            tokenizer.encode(image, size=size)
    with pytest.raises(ValueError, match="smaller than one code, 4 x 4"):
        tokenizer.encode(Image.new("RGB", (40, 3)), size="keep")
    with pytest.raises(ValueError, match=r"unequal sizes 28 x 40, 32 x 40"):
        tokenizer.encode([image, Image.new("RGB", (41, 33))], size="keep")
    for tile in (0, 2, 30):
        with pytest.raises(ValueError, match="multiple of 4"):
            tokenizer.encode(image, tile=tile)
        with pytest.raises(ValueError, match="multiple of 4"):
            tokenizer.decode(torch.zeros(4, 4).long(), tile=tile)


def test_many_or_large_images_go_through_the_model_a_part_at_a_time(tokenizer: ImageTokenizer) -> None:
    shapes = []
    hook = tokenizer.model.encoder.register_forward_hook(lambda module, inputs, out: shapes.append(inputs[0].shape))
    images = [Image.effect_noise((16, 16), 80).convert("RGB") for _ in range(5)]
    codes = tokenizer.encode(images, tile=32)
    assert [shape[0] for shape in shapes] == [4, 1]  # as many pixels as a tile has
    shapes.clear()
    hook.remove()
    assert torch.equal(codes, torch.stack([tokenizer.encode(image) for image in images]))
    assert len(tokenizer.decode(codes, tile=16)) == 5  # pyright: ignore[reportArgumentType]
    large = tokenizer.encode(Image.effect_noise((64, 48), 80), size="keep", tile=16)
    assert large.shape == (12, 16) and tokenizer.decode(large, tile=16).size == (64, 48)  # pyright: ignore


def test_weights_in_16_bits_stay_a_tokenizer(tokenizer: ImageTokenizer) -> None:
    half = ImageTokenizer(VQModel(PRESETS["tiny"])).to("cpu", torch.bfloat16)
    half.model.load_state_dict(tokenizer.model.state_dict())
    image = Image.effect_noise((16, 16), 80)
    assert (half.encode(image) == tokenizer.encode(image)).float().mean() > 0.7
    assert half.decode(half.encode(image)).size == (16, 16)  # pyright: ignore[reportAttributeAccessIssue]


def test_saved_and_loaded_it_gives_the_same_codes(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    tokenizer.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(image), tokenizer.encode(image))
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_the_fingerprint_changes_with_the_weights(tokenizer: ImageTokenizer) -> None:
    assert ImageTokenizer(VQModel(PRESETS["tiny"])).fingerprint() != tokenizer.fingerprint()


@pytest.mark.parametrize("codes", [torch.zeros(3), torch.full((4, 4), -1), torch.full((4, 4), 32)])
def test_bad_codes_give_one_clear_error(tokenizer: ImageTokenizer, codes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="codes"):
        tokenizer.decode(codes.long())


def test_an_empty_list_is_refused(tokenizer: ImageTokenizer) -> None:
    with pytest.raises(ValueError, match="empty"):
        tokenizer.encode([])


@pytest.mark.parametrize("name", ["no-such-tokenizer", "", "../models", "a/b/c"])
def test_a_name_that_is_nothing_gives_one_clear_error(name: str) -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        ImageTokenizer.from_pretrained(name)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files_are_named(tokenizer: ImageTokenizer, tmp_path: Path, file: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        ImageTokenizer.from_pretrained(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=file):
        ImageTokenizer.from_pretrained(tmp_path)


def test_codes_are_ordered_tile_by_tile_and_the_image_is_the_same() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VQModel(PRESETS["tiny"])
        pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    rows = ImageTokenizer(model)
    tiled = ImageTokenizer(VQModel(replace(PRESETS["tiny"], tile=2)))
    tiled.model.load_state_dict(model.state_dict())
    plain, codes = rows.encode_pixels(pixels), tiled.encode_pixels(pixels)  # [2, 4, 6]
    for at, (top, left) in enumerate((top, left) for top in (0, 2) for left in (0, 2, 4)):
        tile = plain[:, top : top + 2, left : left + 2].flatten(1)
        assert torch.equal(codes.flatten(1)[:, 4 * at : 4 * at + 4], tile)
    for one, other in zip(codes, plain, strict=True):
        drawn = [tiled.decode(one), rows.decode(other)]
        assert isinstance(drawn[0], Image.Image) and drawn[0] == drawn[1]
    assert torch.equal(tiled.from_tile_order(codes), plain) and torch.equal(tiled.to_tile_order(plain), codes)
    assert torch.equal(tiled.to_tile_order(plain[:, :3]), plain[:, :3])  # no whole tiles: row by row
    assert tiled.fingerprint() != rows.fingerprint()  # shards of one are not for the other
