"""The page of a model that plans: plans are shown, changed and drawn again."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from cm3 import CM3
from cm3.engine.options import GenerateOptions
from demo.app import serve
from demo.page import build
from demo.parts import selected_plan
from demo.words import Say
from planner import ALONE, BLUE, CAT, DOG, PAIR, SMALL

CALM = {"temperature": 0, "variety": 0, "dice": False, "seed": 7}


@pytest.fixture(scope="module")
def planning_page(planning: CM3) -> gr.Blocks:
    return build(planning)


@pytest.fixture(scope="module")
def draw(planning_page: gr.Blocks) -> Callable[..., list[Any]]:
    return handler(planning_page, "draw")


@pytest.fixture(scope="module")
def edit(planning_page: gr.Blocks) -> Callable[..., list[Any]]:
    return handler(planning_page, "edit")


def handler(page: gr.Blocks, name: str) -> Callable[..., list[Any]]:
    """All that a public endpoint shows, in a list."""
    work = next(one.fn for one in page.fns.values() if one.api_name == name and one.api_visibility == "public")
    assert work is not None
    return lambda *args, **more: list(work(*args, **more))


def drawn(model: CM3, plan: str, **options: Any) -> bytes:
    return model.generate("", plan=plan, temperature=0.0, **options)[0].tobytes()


def labels(page: gr.Blocks, *, visible: bool = True) -> list[str]:
    return [str(block.label) for block in page.blocks.values() if hasattr(block, "label") and block.visible == visible]  # pyright: ignore


def test_only_models_that_plan_have_fields_for_plans(planning_page: gr.Blocks, page: gr.Blocks):
    for language in ("en", "ar"):
        say = Say(language)
        for name, of_both_tabs in (("plan", 2), ("size", 1), ("variety", 1)):
            assert labels(planning_page).count(say(name)) == of_both_tabs
            assert say(name) not in labels(page)
        for name in ("structure", "kind"):  # models that plan draw no image after others
            assert say(name) in labels(page) and say(name) in labels(planning_page, visible=False)


def test_controls_have_the_defaults_and_choices_of_the_options(planning_page: gr.Blocks):
    size, variety = (
        next(block for block in planning_page.blocks.values() if getattr(block, "label", None) == Say("en")(name))
        for name in ("size", "variety")
    )
    assert (size.value, variety.value) == (GenerateOptions.size, GenerateOptions.variety)  # pyright: ignore
    assert [value for _, value in size.choices] == ["usual", "small", "large"]  # pyright: ignore


def test_the_plan_is_shown_before_the_image_and_as_its_caption(draw: Callable[..., list[Any]], planning: CM3):
    first, *frames, last = draw("a cat", 2, **CALM)
    assert first[-1] == CAT
    assert len(frames) == planning.grid[0] and all(frame[0]["value"].count("<img") == 2 for frame in frames)
    assert [(image.tobytes(), plan) for image, plan in last[1]["value"]] == [(drawn(planning, CAT), CAT)] * 2
    assert [plan for _, plan in last[4]] == [CAT, CAT] and last[-1] == gr.skip()


def test_an_image_that_gets_its_colours_is_shown_row_by_row_twice(draw: Callable[..., list[Any]], planning: CM3):
    _, *frames, last = draw("a cat on blue", 1, **CALM)
    assert len(frames) == 2 * planning.grid[0]
    [(image, plan)] = last[1]["value"]
    assert (image.tobytes(), plan) == (drawn(planning, BLUE), BLUE)


def test_a_changed_plan_is_drawn_and_an_empty_one_written_by_the_model(draw: Callable[..., list[Any]], planning: CM3):
    for prompt, plan, expected in (("a cat", f" {ALONE} ", ALONE), ("", DOG, DOG), ("a cat", " ", CAT)):
        first, *_, last = draw(prompt, 1, plan=plan, **CALM)
        assert first[-1] == expected
        assert [image.tobytes() for image, _ in last[1]["value"]] == [drawn(planning, expected)]


def test_a_plan_stands_in_place_of_boxes(draw: Callable[..., list[Any]]):
    boxes = [("a dog", (0.5, 0.6, 0.9, 1.0)), ("a cat", (0.0, 0.0, 0.4, 0.4))]
    assert draw("", 1, boxes=boxes, **CALM)[0][-1] == PAIR
    assert draw("", 1, boxes=boxes, plan=ALONE, **CALM)[0][-1] == ALONE


def test_size_reaches_the_pipeline(draw: Callable[..., list[Any]], planning: CM3):
    [(image, _)] = draw("a cat", 1, size="small", **CALM)[-1][1]["value"]
    assert image.size == planning.image_tokenizer.size_of(SMALL)[::-1]
    assert image.tobytes() == drawn(planning, CAT, size="small")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"plan": "a cat, a dog"}, "two things stand at one place"),
        ({"plan": "a" * 501}, "At most 500"),
        ({"variety": -1}, "variety is -1"),
        ({"size": "huge"}, "size is 'huge'"),
    ],
)
def test_what_cannot_be_drawn_is_told(draw: Callable[..., list[Any]], given: dict[str, Any], message: str):
    with pytest.raises(gr.Error, match=message):
        draw("a cat", 1, **CALM | given)


def test_an_edit_shows_its_plan_and_takes_another(edit: Callable[..., list[Any]], planning: CM3):
    [source] = planning.generate("", plan=PAIR, temperature=0.0)
    for plan, expected in (("", ALONE), (CAT, CAT)):
        first, *frames, last = edit(source, "remove the dog", temperature=0, dice=False, seed=7, plan=plan)
        assert first[-1] == expected and len(frames) == planning.grid[0]
        edited = planning.edit(source, "remove the dog", plan=plan or None, temperature=0, seed=7)
        assert last[2].tobytes() == last[1][1].tobytes() == edited.tobytes() and last[2].info["plan"] == expected


def test_the_prompt_s_button_lets_the_model_plan_and_the_plan_s_own_button_uses_it(planning_page: gr.Blocks):
    for name in ("draw", "edit"):
        own, prompts = [one for one in planning_page.fns.values() if one.fn and one.fn.__name__ == name][:2]
        field = own.outputs[-1]
        assert own.targets == [(field._id, "submit")] and own.inputs[-1] is field and prompts.outputs[-1] is field
        assert isinstance(prompts.inputs[-1], gr.State) and prompts.inputs[-1].value == ""
        assert own.inputs[:-1] == prompts.inputs[:-1]
        stop = [one for one in planning_page.fns.values() if set(one.cancels) >= {own._id, prompts._id}]
        assert len(stop) == 1


def test_a_click_on_an_image_shows_its_plan(planning_page: gr.Blocks):
    image = {"path": "a.png"}
    assert selected_plan(SimpleNamespace(value={"image": image, "caption": CAT})) == CAT  # pyright: ignore
    for value in ({"image": image, "caption": None}, {"image": image}, None, "a.png", {"caption": 3}):
        assert selected_plan(SimpleNamespace(value=value)) == gr.skip()  # pyright: ignore
    clicks = [one for one in planning_page.fns.values() if one.fn is selected_plan]
    assert len(clicks) == 4 and all(one.targets[0][1] == "select" for one in clicks)  # two galleries on both pages


@pytest.fixture
def url(planning: CM3) -> Iterator[str]:
    page = build(planning)
    _, url, _ = serve(page, prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


def test_plans_go_over_the_wire(url: str, planning: CM3, tmp_path: Any):
    client = Client(url, verbose=False)
    asked = {"prompt": "a dog", "n": 1, "temperature": 0, "variety": 0, "dice": False}
    for plan, expected in (("", DOG), (ALONE, ALONE)):
        job = client.submit(**asked, plan=plan, api_name="/draw")
        job.result()
        first, *_, last = job.outputs()
        assert first[-1] == expected
        [shown] = last[1]["value"]
        assert shown["caption"] == expected
        assert Image.open(shown["image"]).convert("RGB").tobytes() == drawn(planning, expected)
    planning.generate("", plan=PAIR, temperature=0.0)[0].save(tmp_path / "pair.png")
    job = client.submit(handle_file(str(tmp_path / "pair.png")), "remove the dog", temperature=0, api_name="/edit")
    job.result()
    assert job.outputs()[0][-1] == ALONE
