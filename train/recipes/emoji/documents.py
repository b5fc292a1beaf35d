"""Documents of the embedded language model, one maker a kind: see build_documents.py for what they look like."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image as PIL_Image

from cm3.tokens.document import Answer, Document, Image, Text
from cm3.tokens.encoding import encode, to_ids
from cm3.tokens.plan import PLACES, Plan, Thing
from cm3.tokens.templates import PLANS
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from train.documents.shards import StoredDocument, Target, questions
from train.images.views import GROUNDS, Augmentation, distort, place
from train.recipes.emoji.art import CANVAS, PAINTS, TILE, Drawing, takes
from train.recipes.emoji.edits import Editor
from train.recipes.emoji.packages import LANGUAGES
from train.recipes.emoji.questions import Shown, ask
from train.recipes.emoji.requests import Planner, one_of
from train.recipes.emoji.shelf import Codes, Shelf, laid
from train.recipes.emoji.world import Named, World, held_out


@dataclass(frozen=True)
class DocumentsConfig:
    """What is built.

    Attributes:
        documents: how many of each kind, over all shards.
        held_out: of each kind, to evaluate on.
        text_vocab: ids of the text tokenizer.
        shards: files.
        unstyled: share of the drawings whose plan names no style.
        white: share of white grounds where images are read.
        paint: share of painted things where images are read or changed.
        other_styles: share of single drawings to be read that are of styles which the model does not draw.
        distorted: share of single drawings that are read in another form and other colours.
        seed: of everything random.
    """

    documents: dict[str, int] = field(
        default_factory=lambda: {
            "draw large": 60_000,
            "draw small": 45_000,
            "draw scene": 24_000,
            "read small": 25_000,
            "read large": 10_000,
            "read scene": 14_000,
            "change small": 18_000,
            "change large": 8_000,
            "change scene": 10_000,
            "recall": 6_000,
            "request": 200_000,
            "instruct": 70_000,
            "translate": 40_000,
        }
    )
    held_out: int = 32
    text_vocab: int = 8192
    shards: int = 32
    unstyled: float = 0.1
    white: float = 0.6
    paint: float = 0.15
    other_styles: float = 0.3
    distorted: float = 0.35
    seed: int = 0


class Builder:
    """Makes documents of each kind.

    Args:
        world: the concepts.
        shelf: their drawings.
        codes: encodes them; None = text documents only.
        config: shares.
        novel: with held-out combinations, to evaluate on.
    """

    def __init__(self, world: World, shelf: Shelf, codes: Codes | None, config: DocumentsConfig, novel: bool = False):
        self.world, self.shelf, self.codes, self.config = world, shelf, codes, config
        self.everything = list(shelf.drawings.values())
        self.readable = [*shelf.others.values(), *shelf.extra]  # of styles that are only read
        self.planner = Planner(world, shelf.styles, novel=novel)
        self.editor = Editor(self.planner)
        self.makers: dict[str, Callable[[np.random.Generator, int], Document | list[Document]]] = {
            "draw large": lambda rng, i: self.draw(rng, i, CANVAS),
            "draw small": lambda rng, i: self.draw(rng, i, TILE),
            "draw scene": lambda rng, i: self.draw_scene(rng),
            "read small": lambda rng, i: self.read(rng, i, TILE),
            "read large": lambda rng, i: self.read(rng, i, CANVAS),
            "read scene": lambda rng, i: self.read_scene(rng),
            "change small": lambda rng, i: self.change(rng, TILE),
            "change large": lambda rng, i: self.change(rng, CANVAS),
            "change scene": lambda rng, i: self.change(rng, 0),
            "recall": lambda rng, i: self.recall(rng),
            "request": lambda rng, i: self.request(rng),
            "instruct": lambda rng, i: self.instruct(rng),
            "translate": lambda rng, i: self.translate(rng),
        }

    def named(self, drawing: Drawing) -> Named:
        return self.world.concepts.get(drawing.code) or self.world.held_out[drawing.code]

    def plan_of(self, drawing: Drawing, paint: str = "", on: str = "white", style: bool = True) -> Plan:
        """Of a drawing alone."""
        return Plan((Thing(self.named(drawing).a, "", paint),), drawing.style if style else "", on)

    # Images out.

    def draw(self, rng: np.random.Generator, i: int, side: int) -> Document:
        """Every drawing in turn, in its own colours on white: the others are changes of these."""
        drawing = self.everything[i % len(self.everything)]
        plan = self.plan_of(drawing, style=rng.random() >= self.config.unstyled)
        return Document((Text(str(plan)), _image(self._codes.single(drawing, side))))

    @property
    def _codes(self) -> Codes:
        assert self.codes is not None
        return self.codes

    def scene(self, rng: np.random.Generator, plain: bool = True) -> Plan:
        """A plan of one to four things at places, now and then with a sign. plain: nothing is painted, on white."""
        while True:
            count = 1 + int(rng.choice(4, p=(0.15, 0.35, 0.25, 0.25)))
            concepts, style = self.planner.things(count, rng) if count > 1 else self._one(rng)
            places = sorted(rng.permutation(4)[:count].tolist())
            things = [Thing(concepts[j].a, PLACES[at]) for j, at in zip(rng.permutation(count), places, strict=True)]
            if rng.random() < 0.12:
                word = "".join(chr(65 + c) for c in rng.integers(26, size=rng.integers(3, 6)))
                k = int(rng.integers(count))
                things[k] = replace(things[k], name=f'a sign that says "{word}"')
            plan = Plan(tuple(things), style)
            if not plain:
                plan = self.coloured(plan, rng)
            if self.planner.allowed(plan):
                return plan

    def _one(self, rng: np.random.Generator) -> tuple[list[Named], str]:
        drawing = self.everything[rng.integers(len(self.everything))]
        return [self.named(drawing)], drawing.style

    def coloured(self, plan: Plan, rng: np.random.Generator) -> Plan:
        """The plan with things painted and a ground, now and then."""
        things = list(plan.things)
        for i, thing in enumerate(things):
            if rng.random() < self.config.paint and (paint := self.paint(thing, plan.style, rng)):
                things[i] = replace(thing, paint=paint)
        on = "white" if rng.random() < self.config.white else one_of(rng, *GROUNDS)
        return replace(plan, things=tuple(things), ground=on)

    def paint(self, thing: Thing, style: str, rng: np.random.Generator) -> str:
        """A paint that shows on the thing, or ""."""
        one = self.editor.by_a.get(thing.name)
        drawing = self.shelf.drawings.get((one.code, style)) if one else None
        fit = [
            paint
            for paint in PAINTS
            if drawing and takes(drawing, paint) and held_out(thing.name, paint) == self.planner.novel
        ]
        return fit[rng.integers(len(fit))] if fit else ""

    def scene_codes(self, plan: Plan, boards: dict[str, int]) -> np.ndarray:  # -> [16, 16], as it is laid
        """boards: which board each sign has."""
        by_place = {thing.place: thing for thing in plan.things}
        return laid([self.tile(by_place.get(place), plan, boards) for place in PLACES])

    def tile(self, thing: Thing | None, plan: Plan, boards: dict[str, int]) -> np.ndarray:  # -> [8, 8]
        if thing is None:
            return self._codes.single(None, TILE, "", plan.ground)
        if '"' in thing.name:
            return self._codes.sign(thing.name.split('"')[1], boards.setdefault(thing.name, len(thing.name) % 6))
        drawing = self.shelf.drawings[self.editor.by_a[thing.name].code, plan.style]
        return self._codes.single(drawing, TILE, thing.paint, plan.ground)

    def draw_scene(self, rng: np.random.Generator) -> Document:
        plan = self.scene(rng)
        return Document((Text(str(plan)), _image(self.scene_codes(plan, {}))))

    # Text out of images.

    def read(self, rng: np.random.Generator, i: int, side: int) -> Document:
        """A single drawing as it is, elsewhere and smaller, or in another form; of further styles too."""
        pool = self.readable if self.readable and rng.random() < self.config.other_styles else self.everything
        drawing = pool[i % len(pool)]
        on = "white" if rng.random() < self.config.white else one_of(rng, *GROUNDS)
        paint, kind = "", rng.random()
        known = (drawing.code, drawing.style) in self.shelf.drawings
        if kind < 0.35:
            thing = Thing(self.named(drawing).a)
            paint = self.paint(thing, drawing.style, rng) if rng.random() < self.config.paint else ""
            codes = self._codes.single(drawing, side, paint, on)
        else:
            view = replace(Augmentation(0.0, 0.7, 3, 0.5).sample(rng, side), ground=on)
            shown = drawing.image.convert("RGBa")
            changed = kind > 1 - self.config.distorted
            shown = distort(shown, rng) if changed else shown
            codes = self._codes.encode([PIL_Image.fromarray(place(shown, view, side))])[0]
            known = known and not changed
        plan = self.plan_of(drawing, paint, on, style=known)
        return self.asked(plan, [drawing if known else None], _image(codes), rng)

    def read_scene(self, rng: np.random.Generator) -> Document:
        plan = self.scene(rng, plain=False)
        drawings = [
            self.shelf.drawings.get((one.code, plan.style)) if (one := self.editor.by_a.get(thing.name)) else None
            for thing in plan.things
        ]
        return self.asked(plan, drawings, _image(self.scene_codes(plan, {})), rng)

    def asked(self, plan: Plan, drawings: list[Drawing | None], image: Image, rng: np.random.Generator) -> Document:
        """The plan, and questions on it, to be given for the image."""
        language = "ar" if rng.random() < 0.3 else "en"
        named = [self.world.by_a.get(thing.name) for thing in plan.things]
        colours = [one.colour if one else None for one in drawings]
        found = ask(Shown(plan, named, colours, self.world, language, rng), int(rng.integers(1, 4)))
        template = {"en": "Question: {} Answer: ", "ar": "سؤال: {} جواب: "}[language]
        targets = [Target("plan", PLANS["read"], str(plan))]
        targets += [Target(one.task, template.format(one.words), one.answer) for one in found]
        return questions(targets, image)

    # Changes of images.

    def change(self, rng: np.random.Generator, side: int) -> Document:
        """side: of a single drawing; 0 = a scene."""
        boards: dict[str, int] = {}
        while True:
            if side:
                drawing = self.everything[rng.integers(len(self.everything))]
                before = self.plan_of(drawing)
            else:
                before = self.scene(rng)
            before = self.coloured(before, rng) if rng.random() < 0.4 else before
            if rng.random() < 0.35:  # several colours at once: how what is drawn in its own colours gets others
                before, after = before.plain, self.coloured(before.plain, rng)
            else:
                kind = (
                    one_of(rng, "recolour", "ground")
                    if side
                    else one_of(rng, *("add", "remove", "replace", "move", "recolour", "ground", "style"))
                )
                edit = self.editor.edit(before, "en", rng, kind)
                after = edit.plan if edit else before
            if after == before or not self.planner.allowed(after) or not self.shows(after):
                continue
            pair = [self.codes_of(plan, side, boards) for plan in (before, after)]
            return Document((Text(PLANS["change"].format(before=before, after=after)), *map(_image, pair)))

    def shows(self, plan: Plan) -> bool:
        """Whether every paint shows on its thing, in a style that has drawn it."""
        for thing in plan.things:
            one = self.editor.by_a.get(thing.name)
            drawing = self.shelf.drawings.get((one.code, plan.style)) if one else None
            if thing.paint and not (drawing and takes(drawing, thing.paint)) or (one and not drawing):
                return False
        return True

    def codes_of(self, plan: Plan, side: int, boards: dict[str, int]) -> np.ndarray:
        if not side:
            return self.scene_codes(plan, boards)
        (thing,) = plan.things
        drawing = self.shelf.drawings[self.editor.by_a[thing.name].code, plan.style]
        return self._codes.single(drawing, side, thing.paint, plan.ground)

    def recall(self, rng: np.random.Generator) -> list[Document]:
        """One or two documents of unknown images, then one of them again: what it shows stands only before it."""
        side = TILE if rng.random() < 0.85 else CANVAS
        count = 1 + int(side == TILE and rng.random() < 0.6)
        documents, pool = list[Document](), self.readable or self.everything
        for i in rng.permutation(len(pool))[:count]:
            view = replace(Augmentation(1.0, 0.75, 2, 0.5).sample(rng, side))
            shown = pool[i].image.convert("RGBa")
            shown = distort(shown, rng) if rng.random() < 0.7 else shown
            codes = self._codes.encode([PIL_Image.fromarray(place(shown, view, side))])[0]
            documents.append(Document((Text(str(self.plan_of(pool[i], style=False))), _image(codes))))
        return [*documents, documents[rng.integers(count)]]

    # Text.

    def request(self, rng: np.random.Generator) -> Document:
        request = self.planner.request(rng)
        return Document((Text(PLANS["draw"].format(words=request.words)), Answer(str(request.plan))))

    def instruct(self, rng: np.random.Generator) -> Document:
        while True:
            if rng.random() < 0.35:
                before = self.plan_of(self.everything[rng.integers(len(self.everything))])
            else:
                before = self.scene(rng)
            before = self.coloured(before, rng) if rng.random() < 0.3 else before
            edit = self.editor.edit(before, one_of(rng, "en", "en", "ar"), rng)
            if edit and self.planner.allowed(edit.plan):
                words = PLANS["edit"].format(plan=before, words=edit.words)
                return Document((Text(words), Answer(str(edit.plan))))

    def translate(self, rng: np.random.Generator) -> Document:
        """From an English name to another language's."""
        while True:
            one = self.world.concepts[self.planner.codes[rng.integers(len(self.planner.codes))]]
            language = one_of(rng, *LANGUAGES[1:])
            if language in one.names and (language == "ar" or not held_out(language, one.a)):
                words = PLANS["translate"].format(language=language, words=one.a)
                return Document((Text(words), Answer(one.names[language].split(", ")[0])))

    def stored(self, kind: str, rng: np.random.Generator, i: int, vocab: Vocab, text: TextTokenizer) -> StoredDocument:
        """The i-th document of a kind, as shards hold it; several documents stand one after the other."""
        made = self.makers[kind](rng, i)
        if isinstance(made, Document):
            return StoredDocument(*encode(made, vocab, text))
        first, *rest = [to_ids(one, vocab, text) for one in made]
        return StoredDocument([*first, *(id for ids in rest for id in ids[1:])], [])


def _image(codes: np.ndarray) -> Image:
    return Image(torch.from_numpy(np.ascontiguousarray(codes)))
