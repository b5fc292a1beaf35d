"""What a user may get wrong: each gives one clear ValueError, or the obvious right thing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.document import HOLE, Document, Image, Mask, Text
from cm3.files import find_model
from tokenizer_image import PRESETS, ImageTokenizer, VQModel

APPLE = "a red apple"


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_empty_prompt(tiny: CM3, prompt: str):
    with pytest.raises(ValueError, match="prompt is empty: say what to draw"):
        tiny.generate(prompt)


@pytest.mark.parametrize("words", [200, 100_000])
def test_prompt_longer_than_the_context(tiny: CM3, pictures: list[PIL_Image.Image], words: int):
    with pytest.raises(ValueError, match=r"a prompt of \d+ tokens leaves no room .* the limit is 128 tokens"):
        tiny.generate("apple " * words)
    with pytest.raises(ValueError, match="leaves no room"):
        tiny.answer(pictures[0], "apple " * words)
    with pytest.raises(ValueError, match="too long"):
        tiny.score(Document((Text("apple " * words),)))


SPELLED = ["<break>", "<image>", "</image>", "<eos>", "<pad>", "<mask:0>", "<infill:0>", "code 5"]


@pytest.mark.parametrize("word", SPELLED)
def test_words_that_spell_special_tokens_are_plain_text(tiny: CM3, pictures: list[PIL_Image.Image], word: str):
    ids = tiny.score(Document((Text(word),))).ids.tolist()
    assert ids.pop() == tiny.vocab.eos
    assert all(tiny.vocab.is_text(id) for id in ids)
    assert tiny.generate(f"a {word} b")[0].size == (16, 16)
    assert isinstance(tiny.answer(pictures[0], f"{word}?"), str)


STRANGE = ["\ud800", "a \udfff apple", "\udc80\ud800", "تفاحة", "\u202eelppa\u202c", "\0", "🍎"]


@pytest.mark.parametrize("prompt", STRANGE)
def test_lone_surrogates_and_right_to_left_text_draw(tiny: CM3, pictures: list[PIL_Image.Image], prompt: str):
    assert len(tiny.generate(prompt, n=2)) == 2
    assert isinstance(tiny.answer(pictures[0], prompt), str)


@pytest.mark.parametrize("n", [0, -1, 65, 10_000])
def test_number_of_pictures(tiny: CM3, n: int):
    with pytest.raises(ValueError, match=f"n is {n}, but 1 to 64 pictures"):
        tiny.generate(APPLE, n=n)


WRONG_NUMBERS = [
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("top_p", 0.0),
    ("top_p", 1.5),
    ("top_p", float("nan")),
    ("top_k", -1),
    ("guidance", -1.0),
    ("guidance", float("nan")),
    ("guidance", float("inf")),
    ("seed", -1),
    ("seed", 2**70),
]


@pytest.mark.parametrize(("name", "value"), WRONG_NUMBERS)
def test_numbers_out_of_range_are_named(tiny: CM3, name: str, value: Any):
    with pytest.raises(ValueError, match=f"{name}.*{str(value)[:6]}"):
        tiny.generate(APPLE, **{name: value})


def test_numbers_of_infills_and_edits_out_of_range(tiny: CM3, pictures: list[PIL_Image.Image]):
    white = PIL_Image.new("L", (32, 24))
    white.paste(255, (8, 8, 12, 12))
    for name, value, named in [
        ("n", 0, "n is 0, but 1 to 64 pictures"),
        ("n", 65, "n is 65"),
        ("guidance", -1.0, "guidance .* -1.0"),
        ("guidance", float("nan"), "guidance .* nan"),
        ("temperature", -1, "temperature .* -1"),
        ("top_p", 0, "top_p .* 0"),
        ("top_k", -1, "top_k .* -1"),
        ("seed", -1, "seed is -1"),
    ]:
        for words in (None, APPLE):
            with pytest.raises(ValueError, match=named):
                tiny.infill(pictures[0], white, words, **{name: value})
        if name not in ("n", "guidance"):
            with pytest.raises(ValueError, match=named):
                tiny.edit(pictures[0], "make it blue", **{name: value})
    for scales in ((-0.5, 1.0), (1.0, -0.5)):
        with pytest.raises(ValueError, match="scale of guidance must be 0 or more .* -0.5"):
            tiny.edit(pictures[0], "make it blue", *scales)
        with pytest.raises(ValueError, match="scale of guidance must be 0 or more .* -0.5"):
            tiny.complete(Document((Text("a"),)), guidance=scales[0], text_guidance=scales[1])


WRONG_DRAWINGS: list[tuple[dict, str]] = [
    ({"boxes": []}, "list of boxes is empty"),
    ({"boxes": [("a cat", (0.1, 0.2, 1.5, 0.9))]}, r"box of 'a cat' is \(0.1, 0.2, 1.5, 0.9\), but must be .* 0 to 1"),
    ({"boxes": [("a cat", (-0.1, 0.2, 0.5, 0.9))]}, "box of 'a cat'"),
    ({"boxes": [("a cat", (10, 20, 50, 90))]}, "shares of the picture's sides"),
    ({"boxes": [("a cat", (0.5, 0.2, 0.1, 0.9))]}, "left before right"),
    ({"boxes": [("a cat", (0.1, 0.9, 0.5, 0.9))]}, "top before bottom"),
    ({"boxes": [("a cat", (0.1, float("nan"), 0.5, 0.9))]}, "box of 'a cat'"),
    ({"boxes": [("a cat", (0.1, 0.2, 0.5))]}, "must be left, top, right, bottom"),
    ({"boxes": [(" ", (0.1, 0.2, 0.5, 0.9))]}, "has no name"),
    ({"kind": "depth"}, "kind is 'depth', but must be one of segments, edges"),
    ({"structure": "none.png"}, "none.png: cannot be read"),
    ({"decoding": "beam"}, "decoding is 'beam', but must be one of top-p, cd-k, both"),
    ({"decoding": "cd-k", "contrast": (417, 0.5)}, "k of contrastive guidance is 417, but there are 416 ids"),
    ({"decoding": "both", "contrast": (0, 0.5)}, "k of contrastive guidance must be at least 1, but is 0"),
    ({"decoding": "cd-k", "contrast": (4, 1.5)}, "alpha .* at most 1, but is 1.5"),
    ({"decoding": "cd-k", "guidance": -1.0}, "guidance .* -1.0"),
    ({"best_of": 0}, "best_of is 0, but 1 to 64"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_DRAWINGS, ids=str)
def test_drawings_that_cannot_be(tiny: CM3, options: dict, message: str):
    wanted: dict[str, Any] = {"n": 2, "seed": 1, **options}
    with pytest.raises(ValueError, match=message):
        tiny.generate(APPLE, **wanted)


def test_more_candidates_than_can_be_drawn(tiny: CM3):
    with pytest.raises(ValueError, match="n x best_of is 128, but 1 to 64"):
        tiny.generate(APPLE, n=16, best_of=8)
    with pytest.raises(ValueError, match="best_of .* cannot be streamed"):
        tiny.stream("generate", APPLE, best_of=2)


def test_masks_of_pictures(tiny: CM3, pictures: list[PIL_Image.Image], tmp_path: Path):
    black, whole = PIL_Image.new("L", (32, 24)), PIL_Image.new("L", (32, 24), 255)
    for mask, message in [
        (black, "black everywhere: paint white"),
        (PIL_Image.new("RGBA", (32, 24), (255, 255, 255, 0)), "black everywhere"),
        (PIL_Image.new("L", (24, 32), 255), "mask has 24 x 32 pixels, but the picture 32 x 24"),
        (whole, "mask reaches over 32 pixels, but the model sees a square of 24"),
        (tmp_path / "none.png", "none.png: cannot be read"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny.infill(pictures[0], mask)


def test_edits_without_words_or_pictures(tiny: CM3, pictures: list[PIL_Image.Image]):
    with pytest.raises(ValueError, match="3 pictures and 2 instructions"):
        tiny.edit(pictures, ["a", "b"])
    with pytest.raises(ValueError, match="instruction is empty"):
        tiny.edit(pictures[0], " ")
    with pytest.raises(ValueError, match="list of pictures is empty"):
        tiny.edit([], "make it blue")
    with pytest.raises(ValueError, match="leaves no room"):
        tiny.edit(pictures[0], "apple " * 200)


def test_negative_temperature_of_text(tiny: CM3, pictures: list[PIL_Image.Image]):
    with pytest.raises(ValueError, match="temperature"):
        tiny.caption(pictures[0], temperature=-1)


def test_pictures_and_questions(tiny: CM3, pictures: list[PIL_Image.Image]):
    with pytest.raises(ValueError, match="3 pictures and 2 questions"):
        tiny.answer(pictures, ["a?", "b?"])
    with pytest.raises(ValueError, match="question is empty"):
        tiny.answer(pictures[0], " ")
    with pytest.raises(ValueError, match="list of pictures is empty"):
        tiny.caption([])
    with pytest.raises(ValueError, match="language is 'xx', but must be one of en, ar"):
        tiny.caption(pictures[0], language="xx")


def test_broken_pictures_are_named(tiny: CM3, tmp_path: Path):
    (tmp_path / "notes.png").write_text("no picture")
    for task in (tiny.caption, lambda path: tiny.answer(path, "What?")):
        with pytest.raises(ValueError, match=r"notes\.png: not a picture"):
            task(tmp_path / "notes.png")


def test_documents_that_do_not_fit(tiny: CM3):
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(4, 4\)"):
        tiny.score(Document((Image([[1, 2], [3, 4]]),)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Mask"):
        tiny.score(Document((Mask(),)))
    for items in (([[1, 2], [3, 4]],), ([[1, HOLE], [3, 4]],)):
        for more in ((), (Mask(),)):
            with pytest.raises(ValueError, match=r"a picture of \(2, 2\) codes: the model's pictures have \(4, 4\)"):
                tiny.complete(Document((Text("a cat"), *map(Image, items), *more)))  # pyright: ignore
    with pytest.raises(ValueError, match="image code 99 is out of range"):
        tiny.complete(Document((Image([[99] * 4] * 4),)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="holes in a picture is not finished"):
        tiny.score(Document((Image([[HOLE] * 4] * 4),)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="has masks, fill them without"):
        tiny.complete(Document((Text("a"), Mask())), guidance=2.0)
    with pytest.raises(ValueError, match="leaves no room"):
        tiny.complete(Document((Text("apple " * 60), Mask(), Image([[1] * 4] * 4))))  # pyright: ignore


def test_unknown_task_to_stream(tiny: CM3):
    with pytest.raises(ValueError, match="cannot stream 'draw': choose one of generate, infill, edit, caption, answer"):
        tiny.stream("draw", APPLE)


@pytest.mark.parametrize("name", ["nothing", "no/such/folder", "../..nothing", "", "someone/nothing", "a\0b"])
def test_unknown_model(name: str):
    with pytest.raises(ValueError, match="there is no model"):
        CM3.from_pretrained(name)


def test_a_folder_that_is_no_model(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        CM3.from_pretrained(tmp_path)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "image_tokenizer/config.json",
    "image_tokenizer/model.safetensors",
]


def test_missing_image_tokenizer_is_named(folder: Path):
    shutil.rmtree(folder / "image_tokenizer")
    (folder / "checksums.json").unlink()
    with pytest.raises(ValueError, match="image_tokenizer"):
        CM3.from_pretrained(folder)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("checked", [True, False])
def test_missing_file_is_named(folder: Path, file: str, checked: bool):
    (folder / file).unlink()
    if not checked:
        (folder / "checksums.json").unlink()
    with pytest.raises(ValueError, match=Path(file).name):
        CM3.from_pretrained(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [flip_a_bit, cut, empty])
def test_tampered_file_is_named(folder: Path, file: str, harm: Callable[[Path], None]):
    harm(folder / file)
    with pytest.raises(ValueError, match=f"{file} was changed or damaged"):
        CM3.from_pretrained(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [cut, empty])
def test_damaged_file_is_refused_without_checksums_too(folder: Path, file: str, harm: Callable[[Path], None]):
    (folder / "checksums.json").unlink()
    harm(folder / file)
    with pytest.raises(ValueError, match=str(folder)):
        CM3.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "7", ""])
def test_damaged_checksums(folder: Path, text: str):
    (folder / "checksums.json").write_text(text)
    with pytest.raises(ValueError, match=r"checksums\.json is damaged"):
        CM3.from_pretrained(folder)


def edit_config(folder: Path, **changes: object) -> None:
    (folder / "checksums.json").unlink()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


WRONG_CONFIGS = [
    {"num_hidden_layers": 3},
    {"hidden_size": 64},
    {"image_vocab_size": 16, "vocab_size": None},
    {"text_vocab_size": 9},
    {"image_grid": [2, 2]},
    {"hidden_size": "wide"},
    {"activation": "magic"},
]


@pytest.mark.parametrize("changes", WRONG_CONFIGS)
def test_config_and_weights_that_do_not_belong_together(folder: Path, changes: dict):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match="."):
        CM3.from_pretrained(folder)


def test_image_tokenizer_of_another_model(tiny: CM3):
    larger = VQModel(replace(PRESETS["tiny"], n_embed=64))
    with pytest.raises(ValueError, match="codes are 64, but the model knows 32"):
        CM3(tiny.model, tiny.text_tokenizer, ImageTokenizer(larger))
    wider = VQModel(replace(PRESETS["tiny"], resolution=32))
    with pytest.raises(ValueError, match=r"grid is \(8, 8\), but the model's \(4, 4\)"):
        CM3(tiny.model, tiny.text_tokenizer, ImageTokenizer(wider))


def test_a_local_folder_is_found_by_its_path(folder: Path):
    assert find_model(str(folder)) == folder


def test_another_image_tokenizer_than_the_model_was_trained_with(folder: Path):
    (folder / "checksums.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    right = ImageTokenizer.from_pretrained(folder / "image_tokenizer").fingerprint()
    (folder / "config.json").write_text(json.dumps(config | {"image_tokenizer_fingerprint": right}))
    CM3.from_pretrained(folder, device="cpu")
    ImageTokenizer(VQModel(PRESETS["tiny"])).save_pretrained(folder / "image_tokenizer")
    with pytest.raises(ValueError, match="not the one"):
        CM3.from_pretrained(folder, device="cpu")
