"""Plans: one line of English that says all that an image shows. The model writes it before it draws.

    a cat at the top left, a dog painted purple at the bottom right, in the noto style, on a blue background
    a red apple, in the fluent flat style
    a sign that says "CAT" at the top left

A plan stands between what people ask for and the image: what is left open (places, a style) is decided in it, once,
and can be read and changed before anything is drawn. It is also the long caption of an image, and what an edit changes.
Compare recaptioning (DALL-E 3, Betker et al. 2023) and semantic-level chain of thought (T2I-R1, Jiang et al. 2025).
"""

import re
from dataclasses import dataclass, replace

PLACES = ("top left", "top right", "bottom left", "bottom right")  # tiles of a canvas, in the order of their codes
PLAIN_GROUND = "white"

_THING = re.compile(
    r"(?P<name>.+?)(?: painted (?P<paint>[a-z]+))?(?: at the (?P<place>" + "|".join(PLACES) + r"))?"  # shortest name
)
_STYLE = re.compile(r"in the (?P<style>.+) style")
_GROUND = re.compile(r"on an? (?P<ground>[a-z]+) background")


@dataclass(frozen=True)
class Thing:
    """One thing of a plan.

    Attributes:
        name: with its article, such as "a cat".
        place: one of PLACES; "" = it fills the image.
        paint: the colour that it is painted in; "" = its own colours.
    """

    name: str
    place: str = ""
    paint: str = ""

    def __str__(self) -> str:
        paint = f" painted {self.paint}" if self.paint else ""
        return self.name + paint + (f" at the {self.place}" if self.place else "")


@dataclass(frozen=True)
class Plan:
    """What an image shows.

    Attributes:
        things: in the order of their places; none = an empty ground.
        style: of all things; "" where there is none, as for signs alone.
        ground: colour of the background.
    """

    things: tuple[Thing, ...]
    style: str = ""
    ground: str = PLAIN_GROUND

    def __str__(self) -> str:
        parts = [str(thing) for thing in self.things] or ["nothing"]
        parts += [f"in the {self.style} style"] if self.style else []
        article = "an" if self.ground[:1] in "aeiou" else "a"
        parts += [f"on {article} {self.ground} background"] if self.ground != PLAIN_GROUND else []
        return ", ".join(parts)

    @property
    def plain(self) -> "Plan":
        """The same in its own colours on the plain ground: what is drawn first, to be coloured then."""
        return Plan(tuple(replace(thing, paint="") for thing in self.things), self.style)

    @classmethod
    def parse(cls, text: str) -> "Plan":
        """The plan that a line says.

        Raises:
            ValueError: the line is no plan, or two things stand at one place.
        """
        *_, line = text.strip().splitlines() or [""]
        parts = line.split(", ")
        ground, style = PLAIN_GROUND, ""
        if found := _GROUND.fullmatch(parts[-1]):
            ground, parts = found["ground"], parts[:-1]
        if parts and (found := _STYLE.fullmatch(parts[-1])):
            style, parts = found["style"], parts[:-1]
        if not parts or not all(parts):
            raise ValueError(f"no plan: {text!r:.200}; a plan is like: a cat at the top left, in the noto style")
        things = [] if parts == ["nothing"] else [_thing(part) for part in parts]
        places = [thing.place for thing in things]
        if len(set(places)) < len(places) or (len(places) > 1 and "" in places):
            raise ValueError(f"in the plan {line!r:.200} two things stand at one place: give each one of {PLACES}")
        things.sort(key=lambda thing: PLACES.index(thing.place) if thing.place else 0)
        return cls(tuple(things), style, ground)


def _thing(text: str) -> Thing:
    found = _THING.fullmatch(text)
    assert found is not None, text  # whatever is not empty is a name
    return Thing(found["name"], found["place"] or "", found["paint"] or "")
