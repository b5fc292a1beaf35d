"""The tasks of instruction tuning, one entry of TASKS each: from a scene to a document's words and images.

Text out: what is asked of an image. Image out: drawn from words, from boxes, from another image (an edit, a map of
segments or of edges). All of it is exact truth of the scene, in English and Arabic. Source: CM3leon, section 4.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from cm3.tokens.templates import TEMPLATES, boxed, prompt
from train.documents.shards import Target
from train.emoji.english import with_article
from train.images.views import GROUNDS
from train.scenes.scene import PAINTS, Rendered, Scene, relation, settle, with_placed
from train.scenes.signs import pick, sign
from train.scenes.view import PLACES, SceneView, TaskDocument, listing, place, plural

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
RELATED_AR = {"left": "يسار", "right": "يمين", "above": "فوق", "below": "تحت"}
SEGMENTS = ((230, 40, 40), (40, 180, 60), (50, 90, 230))  # colours of the first, second and third thing


# Text out: each gives one question and its answer, or None where the scene does not let it be asked.


def caption(view: SceneView) -> Target | None:
    return Target("caption", TEMPLATES["caption"][view.language], listing(view))


def standing(view: SceneView, name: str, where: str) -> str:
    """ "a cat at the top left"; where: key of PLACES."""
    if view.language == "ar":
        return f"{name} في {PLACES[where]}"
    return f"{name} in the middle" if where == "middle" else f"{name} at the {where}"


def long_caption(view: SceneView) -> Target | None:
    parts = []
    for i, one in enumerate(view.scene.placed):
        where, colour = place(one, view.stage.size), one.colour
        if view.language == "en":
            named = with_article(f"{colour} {view.name(i)}" if colour and colour not in view.name(i) else view.name(i))
        else:
            named = view.name(i)
        parts.append(standing(view, named, where))
    english, arabic, _ = GROUNDS[view.scene.ground]
    end = f"on a {english} background" if view.language == "en" else f"على خلفية {arabic}"
    return Target("long caption", TEMPLATES["describe"][view.language], f"{', '.join(parts)}, {end}")


def count(view: SceneView) -> Target | None:
    i = view.any()
    name = view.scene.placed[i].thing.name
    if view.rng.random() < 0.2:  # nothing of it there
        name = view.stage.pick(
            view.scene.placed[0].thing.style, view.rng, [one.thing.name["en"] for one in view.scene.placed]
        ).name
    number = sum(one.thing.name["en"] == name["en"] for one in view.scene.placed)
    english = view.one("How many {} are there?", "How many {} do you see?").format(plural(name["en"]))
    return view.answer("count", english, f"كم مرة يظهر {name['ar']}؟", str(number))


def count_all(view: SceneView) -> Target | None:
    english = view.one("How many things are there?", "How many things do you see?")
    return view.answer("count all", english, "كم عدد الأشياء؟", str(len(view.scene.placed)))


def where(view: SceneView) -> Target | None:
    i = view.single()
    if i is None:
        return None
    key = place(view.scene.placed[i], view.stage.size)
    return view.answer(
        "where", f"Where is {view.the(i)}?", f"أين {view.name(i)}؟", key if view.language == "en" else PLACES[key]
    )


def side(view: SceneView) -> Target | None:
    """Left or right, above or below: of two things, along the axis on which they are further apart."""
    names = [one.thing.name["en"] for one in view.scene.placed]
    once = [i for i, name in enumerate(names) if names.count(name) == 1]
    if len(once) < 2:
        return None
    i, j = view.rng.permutation(once)[:2].tolist()
    found = relation(view.scene.placed[i], view.scene.placed[j])
    sideways = found in ("left", "right")
    english = (
        f"Is {view.the(i)} left or right of {view.the(j)}?"
        if sideways
        else f"Is {view.the(i)} above or below {view.the(j)}?"
    )
    arabic = (
        f"هل {view.name(i)} يسار أم يمين {view.name(j)}؟"
        if sideways
        else f"هل {view.name(i)} فوق أم تحت {view.name(j)}؟"
    )
    return view.answer("side", english, arabic, found if view.language == "en" else RELATED_AR[found])


def present(view: SceneView) -> Target | None:
    """Yes as often as no."""
    yes = bool(view.rng.random() < 0.5)
    shown = [one.thing.name["en"] for one in view.scene.placed]
    other = view.stage.pick(view.scene.placed[0].thing.style, view.rng, shown)
    name = view.scene.placed[view.any()].thing.name if yes else other.name
    word = {"en": ("no", "yes"), "ar": ("لا", "نعم")}[view.language][yes]
    return view.answer("presence", f"Is there {with_article(name['en'])}?", f"هل يوجد {name['ar']}؟", word)


def largest(view: SceneView) -> Target | None:
    """What covers most of the image, where it covers a third more than any other thing."""
    sizes = view.shown.outlines.sum((1, 2))
    order = np.argsort(-sizes)
    if len(sizes) < 2 or sizes[order[0]] < 1.33 * sizes[order[1]]:
        return None
    return view.answer("largest", "What is the largest thing?", "ما أكبر شيء؟", view.name(int(order[0])))


def colour_of(view: SceneView) -> Target | None:
    i = view.single()
    if i is None or not (colour := view.scene.placed[i].colour):
        return None
    return view.answer("colour of", f"What colour is {view.the(i)}?", f"ما لون {view.name(i)}؟", view.colour(colour))


def relation_holds(view: SceneView) -> Target | None:
    """Yes or no, as often the one as the other."""
    names = [one.thing.name["en"] for one in view.scene.placed]
    once = [i for i, name in enumerate(names) if names.count(name) == 1]
    if len(once) < 2:
        return None
    i, j = view.rng.permutation(once)[:2].tolist()
    found, yes = relation(view.scene.placed[i], view.scene.placed[j]), bool(view.rng.random() < 0.5)
    said = found if yes else OPPOSITE[found]
    of = f"{said} of" if said in ("left", "right") else said
    word = {"en": ("no", "yes"), "ar": ("لا", "نعم")}[view.language][yes]
    return view.answer(
        "relation",
        f"Is {view.the(i)} {of} {view.the(j)}?",
        f"هل {view.name(i)} {RELATED_AR[said]} {view.name(j)}؟",
        word,
    )


def ground(view: SceneView) -> Target | None:
    english, arabic, _ = GROUNDS[view.scene.ground]
    return view.answer(
        "ground", "What colour is the background?", "ما لون الخلفية؟", english if view.language == "en" else arabic
    )


Ask = Callable[[SceneView], Target | None]
# Questions in one document see each other: those that name what is there do not stand beside those that ask for it, and
# a count stands alone, since whatever else is asked of a thing says how often it is there.
ASKING: tuple[Ask, ...] = (caption, caption, long_caption, present, largest, count_all, ground)
NAMING: tuple[Ask, ...] = (where, side, side, colour_of, relation_holds)


def ask(view: SceneView, asks: Sequence[Ask]) -> TaskDocument | None:
    """Two or three questions on one image, or as many as there are."""
    found: dict[str, Target] = {}
    wanted = 2 + (view.rng.random() < 0.5)
    for i in view.rng.permutation(len(asks)):
        if len(found) < wanted and (target := asks[i](view)):
            found.setdefault(target.task, target)
    return TaskDocument("", tuple(found.values()), (view.shown.image,)) if found else None


# An image out.


def on_ground(view: SceneView, words: str) -> str:
    english, arabic, _ = GROUNDS[view.scene.ground]
    if view.scene.ground == "white":
        return words
    return f"{words} on a {english} background" if view.language == "en" else f"{words} على خلفية {arabic}"


def related(view: SceneView) -> str:
    """ "a cat left of a dog", or the listing where that does not say it."""
    placed = view.scene.placed
    if len(placed) != 2 or placed[0].thing.name == placed[1].thing.name:
        return listing(view)
    found = relation(placed[0], placed[1])
    if view.language == "ar":
        return f"{view.name(0)} {RELATED_AR[found]} {view.name(1)}"
    return f"{view.a(0)} {found}{' of' if found in ('left', 'right') else ''} {view.a(1)}"


def draw(view: SceneView) -> TaskDocument | None:
    if len(view.scene.placed) == 1:  # its name alone asks for an image that it fills
        words = standing(view, view.a(0), place(view.scene.placed[0], view.stage.size))
    else:
        words = related(view) if view.rng.random() < 0.5 else listing(view)
    return TaskDocument(on_ground(view, words), (), (view.shown.image,))


def grounded(view: SceneView) -> TaskDocument | None:
    size = view.stage.size
    boxes = [view.shown.box(i) for i in range(len(view.scene.placed))]
    things = [(view.a(i), (x0 / size, y0 / size, x1 / size, y1 / size)) for i, (x0, y0, x1, y1) in enumerate(boxes)]
    return TaskDocument(on_ground(view, boxed(things)), (), (view.shown.image,))


def segment_map(shown: Rendered) -> np.ndarray:
    """[S, S, 3]: each outline in the colour of its place in the list, on black."""
    out = np.zeros_like(shown.image)
    for outline, colour in zip(shown.outlines, SEGMENTS, strict=False):
        out[outline] = colour
    return out


def edge_map(image: np.ndarray) -> np.ndarray:
    """[S, S, 3]: white where the brightness changes fast, on black (Sobel)."""
    grey = np.asarray(Image.fromarray(image).convert("L").filter(ImageFilter.GaussianBlur(0.6))).astype(np.float32)
    padded = np.pad(grey, 1, mode="edge")
    across = padded[:, 2:] - padded[:, :-2]
    down = padded[2:] - padded[:-2]
    dx = across[:-2] + 2 * across[1:-1] + across[2:]
    dy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    strength = np.clip(np.hypot(dx, dy), 0, 255).astype(np.uint8)
    return np.repeat(np.where(strength > 90, 255, 0).astype(np.uint8)[..., None], 3, -1)


def from_segments(view: SceneView) -> TaskDocument | None:
    """The listing names things in the order of their colours."""
    words = (", ".join if view.language == "en" else "، ".join)([view.a(i) for i in range(len(view.scene.placed))])
    return TaskDocument(prompt("segments", on_ground(view, words)), (), (segment_map(view.shown), view.shown.image))


def from_edges(view: SceneView) -> TaskDocument | None:
    words = on_ground(view, listing(view))
    return TaskDocument(prompt("edges", words), (), (edge_map(view.shown.image), view.shown.image))


# Edits: another scene, and the words that lead to it. `novel` stages show held-out combinations, others never do.


def edited(view: SceneView, scene: Scene, words: str) -> TaskDocument | None:
    if scene == view.scene or not (view.stage.novel or view.stage.allowed(scene)):
        return None
    return TaskDocument(prompt("edit", words), (), (view.shown.image, view.render(scene)), kept=True)


def add(view: SceneView) -> TaskDocument | None:
    names = [one.thing.name["en"] for one in view.scene.placed]
    if len(names) == 3:
        return None
    thing = view.stage.pick(view.scene.placed[0].thing.style, view.rng, names)
    one = settle(
        thing,
        view.scene.placed,
        view.stage.size,
        view.stage.sides(3, view.scene.step),
        view.rng,
        aligned=view.scene.raster,
    )
    if one is None:
        return None
    name = thing.name[view.language]
    there = standing(view, with_article(name) if view.language == "en" else name, place(one, view.stage.size))
    verbs = ("add {}", "put {}", "draw {}") if view.language == "en" else ("أضف {}", "ضع {}")
    return edited(view, replace(view.scene, placed=(*view.scene.placed, one)), view.one(*verbs).format(there))


def remove(view: SceneView) -> TaskDocument | None:
    i = view.single()
    if i is None or len(view.scene.placed) < 2:
        return None
    rest = tuple(one for j, one in enumerate(view.scene.placed) if j != i)
    words = (
        view.one("remove {}", "delete {}", "take away {}").format(view.the(i))
        if view.language == "en"
        else view.one("احذف {}", "أزل {}").format(view.name(i))
    )
    return edited(view, replace(view.scene, placed=rest), words)


def swap(view: SceneView) -> TaskDocument | None:
    i = view.single()
    if i is None:
        return None
    names = [one.thing.name["en"] for one in view.scene.placed]
    thing = view.stage.pick(view.scene.placed[i].thing.style, view.rng, names)
    new = thing.name[view.language]
    if view.language == "en":
        words = view.one("replace {} with {}", "change {} into {}", "turn {} into {}")
        words = words.format(view.the(i), with_article(new))
    else:
        words = view.one("استبدل {} بـ {}", "غيّر {} إلى {}").format(view.name(i), new)
    return edited(view, with_placed(view.scene, i, thing=thing, paint=""), words)


def recolour(view: SceneView) -> TaskDocument | None:
    i = view.single()
    if i is None or not (paint := view.stage.paint(view.scene.placed[i].thing, view.rng)):
        return None
    if paint == view.scene.placed[i].colour:
        return None
    alone = len(view.scene.placed) == 1 and view.rng.random() < 0.5
    if view.language == "en":
        words = view.one("make {} {}", "paint {} {}", "turn {} {}").format("it" if alone else view.the(i), paint)
    else:
        words = view.one("غيّر لون {} إلى {}", "اجعل لون {} {}").format(view.name(i), PAINTS[paint][0])
    return edited(view, with_placed(view.scene, i, paint=paint), words)


def move(view: SceneView) -> TaskDocument | None:
    i = view.single()
    if i is None:
        return None
    one = view.scene.placed[i]
    others = [other for j, other in enumerate(view.scene.placed) if j != i]
    new = settle(one.thing, others, view.stage.size, (one.side, one.side), view.rng, aligned=view.scene.raster)
    if new is None or place(new, view.stage.size) == place(one, view.stage.size):
        return None
    there = place(new, view.stage.size)
    if view.language == "en":
        words = view.one("move {} to the {}", "put {} at the {}", "shift {} to the {}").format(view.the(i), there)
    else:
        words = view.one("انقل {} إلى {}", "حرّك {} إلى {}").format(view.name(i), PLACES[there])
    return edited(view, with_placed(view.scene, i, left=new.left, top=new.top), words)


def reground(view: SceneView) -> TaskDocument | None:
    other = [key for key in GROUNDS if key != view.scene.ground][view.rng.integers(len(GROUNDS) - 1)]
    english, arabic, _ = GROUNDS[other]
    words = (
        view.one("make the background {}", "change the background to {}").format(english)
        if view.language == "en"
        else f"اجعل الخلفية {arabic}"
    )
    return edited(view, replace(view.scene, ground=other), words)


# Signs.


def signed(view: SceneView) -> tuple[str, np.ndarray]:
    word, board = pick(view.words, view.rng)
    return word, sign(word, board, view.stage.size, view.scene.step)


def write_sign(view: SceneView) -> TaskDocument | None:
    word, image = signed(view)
    words = f'a sign that says "{word}"' if view.language == "en" else f'لافتة مكتوب عليها "{word}"'
    return TaskDocument(words, (), (image,))


def read_sign(view: SceneView) -> TaskDocument | None:
    word, image = signed(view)
    return TaskDocument("", (view.answer("read", "What does the sign say?", "ماذا كتب على اللافتة؟", word),), (image,))


class Task(NamedTuple):
    """make: the document, or None where the scene does not let it be made. share: of all new documents. solo: share of
    its scenes that show one thing of any kind, as large as the known images."""

    make: Callable[[SceneView], TaskDocument | None]
    share: float
    solo: float = 0.0


TASKS: dict[str, Task] = {
    "ask": Task(lambda view: ask(view, ASKING), 0.08),
    "ask about": Task(lambda view: ask(view, NAMING), 0.09),
    "count": Task(lambda view: ask(view, (count,)), 0.05),
    "draw": Task(draw, 0.13),
    "grounded": Task(grounded, 0.12),
    "segments": Task(from_segments, 0.03, solo=0.4),
    "edges": Task(from_edges, 0.03, solo=0.4),
    "add": Task(add, 0.09),
    "remove": Task(remove, 0.05),
    "replace": Task(swap, 0.07),
    "recolour": Task(recolour, 0.08, solo=0.4),
    "move": Task(move, 0.06),
    "reground": Task(reground, 0.03, solo=0.4),
    "write sign": Task(write_sign, 0.05),
    "read sign": Task(read_sign, 0.04),
}
EDITS = ("add", "remove", "replace", "recolour", "move", "reground")
