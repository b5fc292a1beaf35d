"""The page as people use it, in Chromium: `make test-browser`. CHROMIUM names one that is not /usr/bin/chromium."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio.utils import get_upload_folder
from PIL import Image, ImageStat

from chromium import WAIT, Visitor, chromium, expect
from cm3 import CM3
from demo.app import serve
from demo.page import build
from planner import ALONE, BLUE, CAT, DOG
from serving import until
from tests.tokenizer_image.test_pixels import png_that_claims

pytestmark = pytest.mark.browser
pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def model() -> CM3:
    return CM3.from_pretrained("emoji")


@pytest.fixture(scope="module")
def url(model: CM3) -> Iterator[str]:
    page = build(model)
    _, url, _ = serve(page, prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(params=[("en", "desktop"), ("en", "phone"), ("ar", "desktop"), ("ar", "phone")], ids="-".join)
def visitor(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    visitor = Visitor(browser, url, *request.param)
    yield visitor
    visitor.leave()


@pytest.fixture
def reader(browser: Any, url: str) -> Iterator[Visitor]:
    """Of the English page on a desktop."""
    visitor = Visitor(browser, url)
    yield visitor
    visitor.leave()


def test_four_drawings_appear_and_fit_on_the_screen(visitor: Visitor):
    visitor.send(".draw-words")
    expect(visitor.find(".drawings img")).to_have_count(4)
    expect(visitor.find(".status").first).to_contain_text(visitor.say("seed").split()[0], ignore_case=True)
    boxes = [visitor.find(".drawings img").nth(i).bounding_box() for i in range(4)]
    tall, wide = max(box["y"] + box["height"] for box in boxes), max(box["x"] + box["width"] for box in boxes)
    assert tall - min(box["y"] for box in boxes) < visitor.page.viewport_size["height"]
    assert min(box["x"] for box in boxes) >= 0
    assert wide <= visitor.page.viewport_size["width"]
    if visitor.page.viewport_size["width"] > 1000:
        assert tall <= visitor.page.viewport_size["height"]  # without scrolling


def test_the_arabic_page_is_a_mirror_image(browser: Any, url: str):
    centres = {}
    for language in ("en", "ar"):
        visitor = Visitor(browser, url, language)
        box = visitor.find(".drawings").bounding_box()
        centres[language] = box["x"] + box["width"] / 2
        assert visitor.find(f".page.{language}").evaluate("node => getComputedStyle(node).direction") == (
            "ltr" if language == "en" else "rtl"
        )
        visitor.leave()
    assert abs(centres["en"] + centres["ar"] - 1280) < 20
    assert centres["en"] < 640 < centres["ar"]


def test_every_tab_works_as_a_person_would_use_it(visitor: Visitor, model: CM3):
    visitor.take_example(2)
    visitor.find(".use-edit").click()
    visitor.send(".edit-words")
    done = visitor.say("done", seconds=0, seed=0).split("0")[0].strip()
    expect(visitor.find(".status:visible").first).to_contain_text(done)
    assert visitor.find(".page img:visible").count() >= 3  # the image, before, after

    visitor.find(".use-describe").click()
    visitor.find(".describe-button").click()
    expect(visitor.find(".described img")).to_have_count(1)
    expect(visitor.find(".descriptions td").nth(1)).not_to_be_empty()

    visitor.find(".use-ask").click()
    for turn in (1, 2):
        visitor.send(".ask-words", "What is this?")
        expect(visitor.find(".chat .bot")).to_have_count(turn)

    visitor.find(".use-write").click()
    visitor.send(".write-words", "a red ___")
    expect(visitor.find(".written .document")).to_be_visible()

    visitor.find(".use-look").click()
    visitor.send(".look-words", "a cat")
    expect(visitor.find(".codes td")).to_have_count(model.grid[0] * model.grid[1])
    box = visitor.find("table.codes").bounding_box()
    assert 0 <= box["x"]
    assert box["x"] + box["width"] <= visitor.page.viewport_size["width"]
    assert all(
        visitor.find(".codes td").evaluate_all("cells => cells.map(cell => cell.scrollWidth <= cell.offsetWidth)")
    )


def wait_for_editor(canvas: Any) -> None:
    """Until it shows the image, and nothing in it moves any more."""
    shots: list[bytes] = []

    def ready() -> bool:
        shots.append(canvas.screenshot())
        shot = Image.open(io.BytesIO(shots[-1])).convert("HSV")
        colourful = ImageStat.Stat(shot.getchannel("S")).mean[0] > 20  # an empty canvas is grey
        return colourful and len(shots) > 1 and shots[-1] == shots[-2]

    canvas.wait_for(state="visible")
    until(ready, WAIT / 1000)


def test_what_is_painted_over_is_drawn_anew(reader: Visitor):
    reader.take_example(2)
    reader.find(".use-fill").click()
    canvas = reader.find("canvas").last
    wait_for_editor(canvas)
    box, blank = canvas.bounding_box(), canvas.screenshot()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    reader.page.mouse.move(x - 20, y)
    reader.page.mouse.down()
    reader.page.mouse.move(x + 20, y, steps=8)
    reader.page.mouse.up()
    until(lambda: canvas.screenshot() != blank, WAIT / 1000)
    reader.send(".fill-words", "a cat")
    expect(reader.find(".status:visible").first).to_contain_text("Done")


def test_boxes_are_drawn_with_the_mouse(reader: Visitor):
    reader.find(
        "button",
    ).filter(has_text=reader.say("boxes")).click()
    area = reader.find(".area")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    reader.page.mouse.move(box["x"] + 25, box["y"] + 25)
    reader.page.mouse.down()
    reader.page.mouse.move(box["x"] + 128, box["y"] + 128, steps=5)
    reader.page.mouse.up()
    reader.find(".names input").fill("a cat")
    expect(reader.find(".area .box")).to_have_count(1)
    reader.send(".draw-words")
    expect(reader.find(".drawings img")).to_have_count(4)
    reader.find("button.clear").click()
    expect(reader.find(".area .box")).to_have_count(0)


def test_a_word_that_is_not_known_is_named(reader: Visitor):
    reader.send(".draw-words", "zzzz")
    expect(reader.find(".status").first).to_contain_text("was not trained on: zzzz")


def test_a_mistake_is_a_toast(visitor: Visitor):
    visitor.send(".draw-words", " ")
    expect(visitor.find(".toast-body")).to_contain_text(visitor.say("no_prompt"))
    visitor.errors.clear()


def test_stop_stops_the_work(reader: Visitor, model: CM3, monkeypatch: pytest.MonkeyPatch):
    height, width = model.grid
    advance, steps = model.engine.advance, threading.Semaphore(height * width // 2)  # enough for a preview

    def held() -> None:
        assert steps.acquire(timeout=WAIT / 1000)
        advance()

    monkeypatch.setattr(model.engine, "advance", held)
    reader.send(".draw-words")
    expect(reader.find(".preview img").first).to_be_visible()
    assert model.engine.active
    reader.find("button").filter(has_text=reader.say("stop")).first.click()
    expect(reader.find(".status").first).to_contain_text("Stopped")
    steps.release(width + 1)  # the row that is being drawn: it does not suffice for the drawings
    until(lambda: not model.engine.active, WAIT / 1000)
    monkeypatch.undo()
    reader.send(".draw-words")
    expect(reader.find(".drawings img")).to_have_count(4)


def test_after_a_reload_it_draws_again(reader: Visitor):
    reader.send(".draw-words")
    reader.page.reload()
    reader.page.wait_for_selector(".draw-words textarea")
    reader.send(".draw-words", "a cat")
    expect(reader.find(".drawings img")).to_have_count(4)
    reader.errors.clear()  # what was under way is broken off


def test_two_people_do_not_see_each_others_drawings(browser: Any, url: str):
    two = [Visitor(browser, url) for _ in range(2)]
    two[0].send(".draw-words", "a red apple")
    two[1].send(".draw-words", "a cat")
    shown = []
    for one in two:
        expect(one.find(".drawings img")).to_have_count(4)
        expect(one.find(".history img")).to_have_count(4)
        shown.append({one.find(".history img").nth(i).get_attribute("src") for i in range(4)})
    assert not shown[0] & shown[1]
    for one in two:
        one.leave()


def test_hostile_and_huge_files_are_told_about(reader: Visitor, tmp_path: Path):
    (tmp_path / "bomb.png").write_bytes(png_that_claims(13_000, 13_000))
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "huge.png").write_bytes(b"\x89PNG" + bytes(21_000_000))
    reader.find(".use-describe").click()
    for name in ("bomb.png", "text.png", "huge.png"):
        reader.find(".files input[type=file]").set_input_files(tmp_path / name)
        if name != "huge.png":
            expect(reader.find(".files a")).to_be_visible()  # it is uploaded
            reader.find(".describe-button").click()
        expect(reader.find(".toast-body").last).to_be_visible()
        reader.page.reload()
        reader.page.wait_for_selector(".draw-words textarea")
        reader.find(".use-describe").click()
    reader.take_example(0)
    expect(reader.find(".whole-image:visible img").first).to_be_visible()
    reader.find(".describe-button").click()
    expect(reader.find(".described img")).to_have_count(1)
    reader.errors.clear()  # the browser tells of refused requests


def test_drawing_on_the_way_leaves_no_files(reader: Visitor):
    folder = Path(get_upload_folder())
    before = set(folder.rglob("*.png"))
    reader.send(".draw-words")
    expect(reader.find(".drawings img")).to_have_count(4)
    new = set(folder.rglob("*.png")) - before
    sizes = [Image.open(path).size for path in new]
    assert len(sizes) <= 8  # the four drawings, and the same for the history


def test_a_plan_is_shown_changed_and_drawn_again(browser: Any, planning: CM3):
    page = build(planning)
    _, url, _ = serve(page, prevent_thread_lock=True, quiet=True)
    visitor = Visitor(browser, url)
    plan, captions = visitor.find(".draw-plan-words textarea"), visitor.find(".drawings .caption-label")
    visitor.send(".draw-words", "a cat")
    expect(visitor.find(".drawings img")).to_have_count(4)
    expect(plan).to_have_value(CAT)
    expect(captions.first).to_have_text(CAT)
    visitor.send(".draw-plan-words", ALONE)
    expect(captions.first).to_have_text(ALONE)
    expect(plan).to_have_value(ALONE)
    visitor.send(".draw-words", "a dog")  # the plan in the field is not drawn
    expect(captions.first).to_have_text(DOG)
    expect(plan).to_have_value(DOG)
    visitor.find(".history img").last.click()  # the first drawing
    expect(plan).to_have_value(CAT)
    visitor.find(".use-edit").click()
    visitor.send(".edit-words", "make the background blue")
    expect(visitor.find(".edit-plan-words textarea")).to_have_value(BLUE)
    visitor.leave()
    page.close()
