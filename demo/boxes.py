"""A component in which a visitor draws boxes with the mouse or a finger, and names the object in each."""

import html
import json
from typing import Any

import gradio as gr

from cm3.tokens.templates import Box, is_box
from demo.parts import mistake
from demo.words import Say

MAX_BOXES = 8
CSS = """
.area { position: relative; width: 256px; height: 256px; border: 1px solid var(--border-color-primary);
        background: white; touch-action: none; direction: ltr; cursor: crosshair; }
.box { position: absolute; border: 2px solid #ff2d95; background: #ff2d9522; pointer-events: none; }
.names { display: flex; flex-direction: column; gap: 4px; margin-top: 6px; max-width: 256px; }
.names input { border: 1px solid #ff2d95; padding: 2px 6px; background: var(--input-background-fill); }
"""
# The elements are looked up each time, because a new value may have replaced them.
JS = """
let objects = [], drag = null;
const area = () => element.querySelector('.area'), names = () => element.querySelector('.names');
const place = (node, [l, t, r, b]) => Object.assign(node.style,
  {left: l * 100 + '%', top: t * 100 + '%', width: (r - l) * 100 + '%', height: (b - t) * 100 + '%'});
function show() {
  area().replaceChildren(...objects.map(object => {
    const node = document.createElement('div'); node.className = 'box'; place(node, object.box); return node; }));
  names().replaceChildren(...objects.map(object => {
    const node = document.createElement('input'); node.value = object.name; node.dir = 'auto';
    node.placeholder = area().dataset.name; node.maxLength = 100;
    node.oninput = () => { object.name = node.value; props.value = JSON.stringify(objects); };
    return node; }));
}
function set(next) { objects = next; props.value = JSON.stringify(objects); show(); }
const at = event => { const r = area().getBoundingClientRect();
  const share = (x, start, size) => Math.min(1, Math.max(0, (x - start) / size));
  return [share(event.clientX, r.left, r.width), share(event.clientY, r.top, r.height)]; };
const box = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
element.addEventListener('pointerdown', event => {
  if (event.target.closest('.area') && objects.length < MAX) { drag = at(event); event.preventDefault(); } });
element.addEventListener('pointermove', event => { if (drag) {
  show(); const node = document.createElement('div'); node.className = 'box'; place(node, box(drag, at(event)));
  area().append(node); } });
window.addEventListener('pointerup', event => { if (drag) {
  const made = box(drag, at(event)); drag = null;
  if (made[2] - made[0] > 0.03 && made[3] - made[1] > 0.03) {
    set([...objects, {name: '', box: made.map(x => Math.round(x * 100) / 100)}]); names().lastChild.focus(); }
  else show(); } });
element.addEventListener('click', event => { if (event.target.closest('.clear')) set([]); });
""".replace("MAX", str(MAX_BOXES))


class Boxes(gr.HTML):
    """Boxes with names.

    The value in the browser is JSON, [{"name": "a cat", "box": [left, top, right, bottom]}], in shares of the sides.

    Args:
        say: the texts of the page.
    """

    def __init__(self, say: Say) -> None:
        self.say = say
        super().__init__(
            "",
            html_template=f"<p>{html.escape(say('boxes_info'))}</p>"
            f'<div class="area" data-name="{html.escape(say("box_name"))}"></div><div class="names"></div>'
            f'<button type="button" class="clear">{html.escape(say("clear"))}</button>',
            css_template=CSS,
            js_on_load=JS,
        )

    def get_block_name(self) -> str:
        return "html"  # the browser shows it as gradio's own component

    def preprocess(self, payload: Any) -> list[tuple[str, Box]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Names and boxes.

        Raises:
            gr.Error: a value is not of the form above, or there are too many boxes.
        """
        if not payload:
            return []
        try:
            objects = [(str(one["name"]), tuple(one["box"])) for one in json.loads(payload)]
        except (ValueError, TypeError, KeyError, RecursionError):
            mistake(self.say, "box_unnamed")
        if len(objects) > MAX_BOXES or not all(
            name.strip() and len(name) <= 100 and is_box(box) for name, box in objects
        ):
            mistake(self.say, "box_unnamed")
        return objects

    def api_info(self) -> dict[str, Any]:
        return {"type": "string", "description": 'JSON: [{"name": "a cat", "box": [0.1, 0.2, 0.5, 0.6]}], or ""'}
