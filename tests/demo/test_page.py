"""The page: what it holds in both languages, and what its buttons do."""

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Formatter
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from cm3 import CM3
from cm3.engine.options import GenerateOptions
from cm3.tasks.known_words import KnownWords
from cm3.tokens.document import Document, Text
from demo import parts
from demo.boxes import MAX_BOXES, Boxes
from demo.page import build, clicked, example_images, hand_over
from demo.tabs.write import document_of
from demo.words import INSTRUCTIONS, PROMPTS, QUESTIONS, STARTS, WORDS, Say

BLANK = Image.new("RGBA", (20, 20))
TABS = ["draw", "edit", "fill", "describe", "ask", "write", "look"]


@pytest.fixture(scope="module")
def handlers(page: gr.Blocks) -> dict[str, Callable]:
    """Of the English page."""
    return {str(one.api_name): one.fn for one in page.fns.values() if one.fn is not None and one.api_name in TABS}


@pytest.fixture(scope="module")
def arabic(page: gr.Blocks) -> dict[str, Callable]:
    found = [one for one in page.fns.values() if one.fn is not None and one.fn.__name__ in TABS]
    return {one.fn.__name__: one.fn for one in found if one.api_name not in TABS}  # pyright: ignore


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGBA", (20, 20), "red")


def last(results: Iterator[Any]) -> Any:
    return list(results)[-1]


def data(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_both_pages_have_all_tabs_in_their_language(page: gr.Blocks):
    tabs = [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)]
    assert tabs == [Say(language)(name) for language in ("en", "ar") for name in TABS]
    assert [path for path, *_ in page.pages] == ["", "ar"]


def test_every_message_is_there_in_both_languages_with_the_same_gaps():
    for key, both in WORDS.items():
        english, arabic = ([name for _, name, _, _ in Formatter().parse(words) if name] for words in both)
        assert sorted(english) == sorted(arabic), key
        assert all(words.strip() for words in both), key
    for texts in (PROMPTS, INSTRUCTIONS, QUESTIONS, STARTS):
        assert texts.keys() == {"en", "ar"}


def test_endpoints_have_names_on_the_english_page_alone(page: gr.Blocks):
    public = [one.api_name for one in page.fns.values() if one.api_visibility == "public"]
    assert sorted(map(str, public)) == sorted(TABS)


def test_draw_shows_rows_as_they_come_and_keeps_what_was_drawn(handlers: dict[str, Callable], tiny: CM3):
    drawn = list(handlers["draw"]("a red apple", 2, "", 1, 3, False, 1, 0.95, False, 7))
    expected = tiny.generate("a red apple", n=2, guidance=3, temperature=1, top_p=0.95, seed=7)
    *frames, (preview, images, status, kept, earlier, seed) = drawn
    assert len(frames) == tiny.grid[0]
    assert all(frame[0]["value"].count("<img") == 2 and frame[0]["visible"] for frame in frames)
    assert len({frame[0]["value"] for frame in frames}) == len(frames)
    assert preview == gr.update(visible=False)
    assert data(images["value"]) == data(kept) == data(earlier) == data(expected)
    assert seed == 7
    assert "seed 7" in status
    again = last(handlers["draw"]("a cat", 1, "", 1, 3, False, 1, 0.95, False, 8, [], None, "edges", kept))
    assert data(again[3])[1:] == data(expected)


def test_all_that_draw_offers_reaches_the_pipeline(handlers: dict[str, Callable], tiny: CM3, image: Image.Image):
    boxes = [("a cat", (0.1, 0.2, 0.5, 0.6))]
    values = ("", 1, "blue", 1, 3, True, 1, 0.95, False, 7, boxes, image, "segments")
    options: dict[str, Any] = {"boxes": boxes, "structure": image, "kind": "segments", "negative_prompt": "blue"}
    expected = tiny.generate(
        "", n=1, guidance=3, temperature=1, top_p=0.95, seed=7, guidance_schedule="falling", **options
    )
    assert data(last(handlers["draw"](*values))[3]) == data(expected)


def test_the_best_of_several_is_drawn(handlers: dict[str, Callable], tiny: CM3):
    expected = tiny.generate("a red apple", n=2, guidance=3, temperature=1, top_p=0.95, seed=7, best_of=3)
    drawn = last(handlers["draw"]("a red apple", 2, "", 3, 3, False, 1, 0.95, False, 7))
    assert data(drawn[3]) == data(expected)


def test_as_many_candidates_are_drawn_as_on_every_other_face(page: gr.Blocks):
    sliders = [block for block in page.blocks.values() if getattr(block, "label", None) == WORDS["best_of"][0]]
    assert [slider.value for slider in sliders] == [GenerateOptions.best_of]  # pyright: ignore
    draw = next(one.fn for one in page.fns.values() if one.api_name == "draw")
    assert draw is not None and inspect.signature(draw).parameters["best_of"].default == GenerateOptions.best_of


def test_dice_draw_another_seed_each_time(handlers: dict[str, Callable]):
    seeds = {last(handlers["draw"]("a cat", 1, dice=True, seed=7))[5] for _ in range(3)}
    assert len(seeds) == 3
    assert last(handlers["draw"]("a cat", 1, dice=False, seed=7))[5] == 7


def test_a_word_that_the_model_never_read_is_named(tiny: CM3):
    model = CM3(tiny.model, tiny.text_tokenizer, tiny.image_tokenizer, known_words=KnownWords(["a red apple", "قطة"]))
    page = build(model)
    draw = next(one.fn for one in page.fns.values() if one.api_name == "draw")
    assert draw is not None
    assert "was not trained on: zzzz" in last(draw("a red zzzz", 1))[2]
    assert "was not trained on" not in last(draw("a red apple", 1))[2]


def test_words_are_put_as_the_model_reads_them_or_left(tiny: CM3):
    known = KnownWords(["mouse"], ["a mouse"])
    model = CM3(tiny.model, tiny.text_tokenizer, tiny.image_tokenizer, known_words=known)
    draw = next(one.fn for one in build(model).fns.values() if one.api_name == "draw")
    assert draw is not None
    drawn = last(draw("MICE!", 1, dice=False, seed=7))
    assert data(drawn[3]) == data(tiny.generate("a mouse", seed=7)) and "was not trained on: a" in drawn[2]
    drawn = last(draw("MICE!", 1, dice=False, seed=7, normalise=False))
    assert data(drawn[3]) == data(tiny.generate("MICE!", seed=7)) and "was not trained on: mice" in drawn[2]


def test_edit_and_fill_do_what_the_pipeline_does(
    handlers: dict[str, Callable], tiny: CM3, image: Image.Image, painting: dict
):
    edited = tiny.edit(image, "make it blue", image_guidance=2, text_guidance=4, temperature=1, seed=7)
    *frames, (preview, (before, after), result, status, seed) = handlers["edit"](
        image, "make it blue", 2, 4, 1, False, 7
    )
    assert len(frames) == tiny.grid[0]
    assert after.tobytes() == result.tobytes() == edited.tobytes()
    assert before.size == after.size
    assert "seed 7" in status
    mask = Image.new("L", (20, 20))
    mask.paste(255, (4, 4, 8, 8))
    for words in ("", "a cat"):
        filled = tiny.infill(image, mask, words, n=1, guidance=2, temperature=1, seed=7)[0]
        assert last(handlers["fill"](painting, words, 2, 1, False, 7))[1].tobytes() == filled.tobytes()


def test_describe_takes_several_images_and_both_languages(
    handlers: dict[str, Callable], tiny: CM3, image: Image.Image, uploads: Path
):
    blue = Image.new("RGB", (20, 20), "blue")
    blue.save(uploads / "blue.png")
    shown, rows = handlers["describe"](image, [str(uploads / "blue.png")], "both", True)
    assert shown.count("<img") == 2
    captions = [tiny.caption([image, blue], language=language, long=True) for language in ("en", "ar")]
    assert rows == [["1", captions[0][0], captions[1][0]], ["2", captions[0][1], captions[1][1]]]
    assert handlers["describe"](image, None, "ar")[1] == [["1", tiny.caption(image, language="ar")]]


def test_ask_keeps_the_conversation(handlers: dict[str, Callable], tiny: CM3, image: Image.Image):
    _, chat = handlers["ask"](image, "What is this?")
    empty, chat = handlers["ask"](image, "What colour?", chat)
    assert empty == ""
    assert [turn["role"] for turn in chat] == ["user", "assistant"] * 2
    first = tiny.answer(image, "What is this?")
    second = tiny.answer(image, "What colour?", history=[("What is this?", first)] if first else [])
    assert [turn["content"] for turn in chat[1::2]] == [first, second]
    parted = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in chat[:2]]
    assert handlers["ask"](image, "What colour?", parted)[1][-1] == chat[-1]  # as gradio hands it over


def test_a_document_is_gone_on_with(handlers: dict[str, Callable], tiny: CM3, image: Image.Image):
    assert document_of(tiny, "a ___ apple", None).to_json() == [{"text": "a "}, {"mask": True}, {"text": " apple"}]
    written = list(handlers["write"]("a <b> cat", image, 1, False, 7))
    assert all(seed == 7 for *_, seed in written)
    assert "a &lt;b&gt; cat" in written[-1][0]
    finished = tiny.complete(Document((Text("a <b> cat"), tiny.processor.encode(image))), temperature=1, seed=7)
    images = sum("image" in item for item in finished.to_json())
    assert written[-1][0].count("<img") == images


def test_looking_inside_shows_codes_and_how_likely_they_are(
    handlers: dict[str, Callable], tiny: CM3, image: Image.Image
):
    seen, tokens, codes = handlers["look"](image, "a cat")
    encoded = tiny.processor.encode(image)
    assert seen.tobytes() == tiny.image_tokenizer.decode(encoded.codes).tobytes()  # pyright: ignore
    for code in encoded.codes.flatten().tolist():
        assert f">{code}</td>" in codes
    score = tiny.score(Document((Text("a cat"), encoded)))
    text = [p for id, p in zip(score.ids.tolist(), score.log_probs.tolist(), strict=True) if tiny.vocab.is_text(id)]
    assert all(f"({log_prob:.2f} nats)" in tokens for log_prob in text)


def test_a_clicked_drawing_goes_to_the_other_tabs(uploads: Path):
    path = str(uploads / "a.png")
    Image.new("RGB", (4, 4)).save(path)
    assert clicked(SimpleNamespace(value={"image": {"path": path}})) == (path,) * 6  # pyright: ignore
    assert hand_over("a.png") == ("a.png", None)
    assert hand_over(None) == gr.skip()


@pytest.mark.parametrize("value", [{"image": {"path": "/etc/hostname"}}, {"image": {"path": None}}, {}, None, "a.png"])
def test_what_was_clicked_is_not_taken_from_the_disk(value: Any):
    with pytest.raises(gr.Error, match="not uploaded here"):
        clicked(SimpleNamespace(value=value))  # pyright: ignore


def test_files_to_describe_are_not_taken_from_the_disk(handlers: dict[str, Callable]):
    with pytest.raises(gr.Error, match="not uploaded here"):
        handlers["describe"](None, ["/etc/hostname"])


MISTAKES = [
    ("draw", (" ", 1), "no_prompt"),
    ("draw", ("a" * 501, 1), "too_long"),
    ("draw", ("a cat", 17), "too_many"),
    ("draw", ("a cat", 0), "too_many"),
    ("draw", ("a cat", 4, "", 5), "too_many"),
    ("draw", ("a cat", 4, "a" * 501), "too_long"),
    ("edit", (None, "make it blue"), "no_image"),
    ("edit", (BLANK, " "), "no_instruction"),
    ("fill", (None, ""), "no_image"),
    ("fill", ({"background": None, "layers": []}, ""), "no_image"),
    ("fill", ({"background": BLANK, "layers": []}, ""), "no_paint"),
    ("fill", ({"background": BLANK, "layers": [BLANK]}, ""), "no_paint"),
    ("describe", (None, None), "no_image"),
    ("describe", (None, ["a.png"] * 33), "too_many"),
    ("ask", (None, "What?"), "no_image"),
    ("ask", (BLANK, ""), "no_question"),
    ("write", (" ", None), "no_start"),
    ("look", (None, ""), "no_image"),
]


@pytest.mark.parametrize(("button", "values", "key"), MISTAKES)
@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_mistake_is_a_message_in_the_language_of_the_page(
    handlers: dict[str, Callable], arabic: dict[str, Callable], language: str, button: str, values: tuple, key: str
):
    press = (handlers if language == "en" else arabic)[button]
    with pytest.raises(gr.Error) as error:
        list(press(*values))
    words = Say(language)(key, n="{n}")
    start, _, end = words.partition("{n}")
    assert str(error.value.message).startswith(start)
    assert str(error.value.message).endswith(end)


def test_what_the_pipeline_refuses_is_told(handlers: dict[str, Callable], arabic: dict[str, Callable]):
    crowded = "apple " * 80
    with pytest.raises(gr.Error, match="leaves no room"):
        list(handlers["draw"](crowded, 1))
    with pytest.raises(gr.Error, match="تعذّر ذلك: .*leaves no room"):
        list(arabic["draw"](crowded, 1))


def test_work_that_takes_too_long_is_stopped(handlers: dict[str, Callable], tiny: CM3, monkeypatch):
    monkeypatch.setattr(parts, "MAX_SECONDS", -1.0)
    with pytest.raises(gr.Error, match="longer than"):
        list(handlers["draw"]("a cat", 1))
    assert not tiny.engine.active


def test_who_stops_reading_stops_the_work(handlers: dict[str, Callable], tiny: CM3):
    drawing = handlers["draw"]("a cat", 4)
    next(drawing)
    assert tiny.engine.active
    drawing.close()
    assert not tiny.engine.active


@pytest.mark.parametrize("payload", ["", None, "[]"])
def test_no_boxes_are_none(payload: Any):
    assert Boxes(Say("en")).preprocess(payload) == []


def test_boxes_come_as_names_and_shares():
    payload = json.dumps([{"name": "a cat", "box": [0.1, 0.2, 0.5, 0.6]}])
    assert Boxes(Say("en")).preprocess(payload) == [("a cat", (0.1, 0.2, 0.5, 0.6))]


@pytest.mark.parametrize(
    "payload",
    [
        "nothing",
        "{}}",
        "3",
        '["a"]',
        '[{"name": "a"}]',
        '[{"name": " ", "box": [0, 0, 1, 1]}]',
        '[{"name": "a", "box": [0, 0, 2, 1]}]',
        '[{"name": "a", "box": 3}]',
        json.dumps([{"name": "a" * 101, "box": [0, 0, 1, 1]}]),
        json.dumps([{"name": "a", "box": [0, 0, 1, 1]}] * (MAX_BOXES + 1)),
        "[" * 100_000,
    ],
)
def test_boxes_that_are_none_are_refused(payload: str):
    with pytest.raises(gr.Error, match="each box"):
        Boxes(Say("en")).preprocess(payload)


def test_example_images_are_drawings():
    images = example_images()
    assert len(images) >= 4
    assert all(image.size == (128, 128) for image in images)
