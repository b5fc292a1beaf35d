"""The page in two languages: the English one, and its mirror image in Arabic at /ar."""

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
from demo.tabs import ask, describe, draw, edit, fill, look, write
from demo.uploads import NOT_UPLOADED, Page, uploaded
from demo.words import Say

TITLE = "CM3leon"
KEPT_SECONDS = 3600  # files of finished images; drawn on the way, they leave none
LANES, WAITING = 8, 64  # pieces of work under way, and waiting
SAMPLE = Path(__file__).parents[1] / "data" / "sample" / "train" / "shard-00000.tar"
EXAMPLES = 8  # images
TABS = {
    **{"draw": draw, "edit": edit, "fill": fill, "describe": describe},
    **{"ask": ask, "write": write, "look": look},
}
PLACES = len(TABS) - 1  # where an image goes: all tabs but the first, to the editor by way of a state
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
    """Some of the sample data's; none in a checkout without it."""
    if not SAMPLE.is_file():
        return []
    with tarfile.open(SAMPLE) as shard:
        names = sorted(shard.getnames())
        stems = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        facts = {stem: json.loads(shard.extractfile(f"{stem}.json").read()) for stem in stems}  # pyright: ignore
        plain = [stem for stem in stems if facts[stem].get("group") in ("animals-nature", "food-drink")]
        taken = plain[:: max(1, len(plain) // EXAMPLES)][:EXAMPLES]
        return [Image.open(io.BytesIO(shard.extractfile(f"{stem}.png").read())).copy() for stem in taken]  # pyright: ignore


def build(model: CM3) -> gr.Blocks:
    """Both pages; nothing is served yet."""
    with Page(title=TITLE, delete_cache=(KEPT_SECONDS // 6, KEPT_SECONDS)) as page:
        Navbar(main_page_name="English")
        fill_page(model, Say("en"))
    with page.route("العربية", "ar"):
        Navbar(main_page_name="English")
        fill_page(model, Say("ar"))
    page.queue(max_size=WAITING, default_concurrency_limit=LANES)
    return page


def fill_page(model: CM3, say: Say) -> None:
    with gr.Column(elem_classes=["page", say.language]):
        taken = gr.State()  # an image that was clicked and is not yet in the editor
        gr.Markdown(say("about"))
        with gr.Tabs() as tabs:
            made: dict[str, parts.Tab] = {}
            items: dict[str, gr.Tab] = {}
            for name, room in TABS.items():
                with gr.Tab(say(name), id=name) as items[name]:
                    made[name] = room.build(model, say)
        places = [*(made[name].source for name in TABS if name not in ("draw", "fill")), taken]
        with gr.Row(elem_classes="use"):
            gr.Markdown(say("use"))
            buttons = {
                name: gr.Button(say(name), size="sm", elem_classes=f"use-{name}") for name in TABS if name != "draw"
            }
        shown = [*made["draw"].galleries]
        if images := example_images():
            with gr.Row(elem_classes="examples-row"):
                shown.append(
                    parts.gallery(
                        say("example_images"),
                        value=images,
                        columns=EXAMPLES,
                        height=130,
                        allow_preview=False,
                        elem_classes="example-images",
                    )
                )
        for one in shown:
            one.select(clicked, None, places, api_visibility="private", show_progress="hidden")
        for one in made.values():
            if one.use is not None:
                one.use.click(lambda image: (image,) * PLACES, one.result, places, api_visibility="private")
        for name, button in buttons.items():
            button.click(lambda name=name: gr.Tabs(selected=name), None, tabs, api_visibility="private")
        # The editor takes an image only while it is seen.
        items["fill"].select(handed_over, taken, [made["fill"].source, taken], api_visibility="private")


def clicked(event: gr.SelectData) -> tuple[str, ...]:
    """An image that was clicked goes to all tabs. What was clicked is what the request says: it is looked at."""
    try:
        path = event.value["image"]["path"]
    except (KeyError, TypeError):
        raise gr.Error(NOT_UPLOADED, print_exception=False) from None
    return (str(uploaded(path)),) * PLACES


def handed_over(image: Any) -> Any:
    """A clicked image goes to the editor once, and what was painted there stays else."""
    return gr.skip() if image is None else (image, None)
