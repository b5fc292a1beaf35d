"""The page in two languages: English at /, Arabic from right to left at /ar."""

import io
import json
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Navbar
from PIL import Image

from cm3.pipeline import CM3
from demo import parts
from demo.stubs import remove_generated_stubs
from demo.tabs import ask, describe, draw, edit, fill, look, write
from demo.uploads import NOT_UPLOADED, Page, uploaded
from demo.words import Say

TITLE = "CM3leon"
KEPT_SECONDS = 3600  # for the files of finished images; partial images are never files
MAX_RUNNING, MAX_WAITING = 8, 64  # requests of one kind
SAMPLE = Path(__file__).parents[1] / "data" / "sample" / "train" / "shard-00000.tar"
MAX_EXAMPLES = 8  # images
TABS = {
    **{"draw": draw, "edit": edit, "fill": fill, "describe": describe},
    **{"ask": ask, "write": write, "look": look},
}
NUM_TARGETS = len(TABS) - 1  # where a chosen image goes: all tabs but the first, to "fill" through a state
CSS = """
.whole-image img, .preview img { width: 100%; height: 100%; object-fit: contain; }
.sheet { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 8px; }
.preview .sheet, .drawings .grid-container { max-width: 390px; margin: auto; grid-template-columns: 1fr 1fr; }
.preview .sheet:has(img:only-child) { grid-template-columns: 1fr; max-width: 340px; }
.described .sheet { grid-template-columns: repeat(auto-fill, 64px); }
.document img { width: 192px; display: block; margin: 8px 0; }
.examples-row .grid-wrap { max-height: 110px; }
.codes { width: 100%; max-width: 400px; table-layout: fixed; }
.codes td { height: 40px; padding: 0; text-align: center; font-size: 11px; border: 1px solid #ddd; }
.tokens span { padding: 2px; border-radius: 3px; white-space: pre; }
.ar { direction: rtl; text-align: right; }
.ar textarea, .ar input { text-align: start; }
"""


@cache
def example_images() -> list[Image.Image]:
    """Some images of the sample data set; none if the checkout has no sample."""
    if not SAMPLE.is_file():
        return []
    with tarfile.open(SAMPLE) as shard:
        names = sorted(shard.getnames())
        stems = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        facts = {stem: json.loads(shard.extractfile(f"{stem}.json").read()) for stem in stems}  # pyright: ignore
        plain = [stem for stem in stems if facts[stem].get("group") in ("animals-nature", "food-drink")]
        chosen = plain[:: max(1, len(plain) // MAX_EXAMPLES)][:MAX_EXAMPLES]
        return [Image.open(io.BytesIO(shard.extractfile(f"{stem}.png").read())).copy() for stem in chosen]  # pyright: ignore


def build(model: CM3) -> gr.Blocks:
    """Build both pages, without serving them."""
    remove_generated_stubs()
    with Page(title=TITLE, delete_cache=(KEPT_SECONDS // 6, KEPT_SECONDS)) as page:
        Navbar(main_page_name="English")
        fill_page(model, Say("en"))
    with page.route("العربية", "ar"):
        Navbar(main_page_name="English")
        fill_page(model, Say("ar"))
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=MAX_RUNNING)
    return page


def fill_page(model: CM3, say: Say) -> None:
    """Add the tabs, the example images and their connections to the page of one language."""
    with gr.Column(elem_classes=["page", say.language]):
        pending = gr.State()  # an image that was clicked and is not yet in the editor
        gr.Markdown(say("about"))
        with gr.Tabs() as tabs:
            tabs_by_name: dict[str, parts.Tab] = {}
            items: dict[str, gr.Tab] = {}
            for name, tab in TABS.items():
                with gr.Tab(say(name), id=name) as items[name]:
                    tabs_by_name[name] = tab.build(model, say)
        targets = [*(tabs_by_name[name].source for name in TABS if name not in ("draw", "fill")), pending]
        with gr.Row(elem_classes="use"):
            gr.Markdown(say("use"))
            buttons = {
                name: gr.Button(say(name), size="sm", elem_classes=f"use-{name}") for name in TABS if name != "draw"
            }
        galleries = [*tabs_by_name["draw"].galleries]
        if images := example_images():
            with gr.Row(elem_classes="examples-row"):
                galleries.append(
                    parts.gallery(
                        say("example_images"),
                        value=images,
                        columns=MAX_EXAMPLES,
                        height=130,
                        allow_preview=False,
                        elem_classes="example-images",
                    )
                )
        for one in galleries:
            one.select(clicked, None, targets, api_visibility="private", show_progress="hidden")
        for one in tabs_by_name.values():
            if one.use is not None:
                one.use.click(lambda image: (image,) * NUM_TARGETS, one.result, targets, api_visibility="private")
        for name, button in buttons.items():
            button.click(lambda name=name: gr.Tabs(selected=name), None, tabs, api_visibility="private")
        # The editor accepts an image only while it is visible.
        items["fill"].select(hand_over, pending, [tabs_by_name["fill"].source, pending], api_visibility="private")


def clicked(event: gr.SelectData) -> tuple[str, ...]:
    """The path of a clicked image, for every target. The request names the path, so that it has to be checked."""
    try:
        path = event.value["image"]["path"]
    except (KeyError, TypeError):
        raise gr.Error(NOT_UPLOADED, print_exception=False) from None
    return (str(uploaded(path)),) * NUM_TARGETS


def hand_over(image: Any) -> Any:
    """Give a clicked image to the editor once. Without one, the editor keeps its content."""
    return gr.skip() if image is None else (image, None)
