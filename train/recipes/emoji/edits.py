"""What people ask to change in an image, and what the plan of the image becomes: text documents, as requests.py.

a cat at the top left, a dog at the bottom right, in the noto style
remove the dog
a cat at the top left, in the noto style
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cm3.tasks.plan_words import COLOURS_AR, PLACES_AR
from cm3.tokens.plan import PLACES, Plan, Thing
from train.images.views import GROUNDS
from train.recipes.emoji.art import PAINTS
from train.recipes.emoji.requests import Planner, in_case, one_of
from train.recipes.emoji.world import Named


class Edit(NamedTuple):
    """The words, the plan after them, what kind of change it is, and the language."""

    words: str
    plan: Plan
    kind: str
    language: str


class Editor:
    """Draws edits of plans.

    Args:
        planner: knows the concepts and which style has drawn them.
    """

    def __init__(self, planner: Planner):
        self.planner = planner
        self.by_a: dict[str, Named] = {
            planner.world.concepts[code].a: planner.world.concepts[code] for code in planner.codes
        }

    def edit(self, plan: Plan, language: str, rng: np.random.Generator, kind: str = "") -> Edit | None:
        """An edit of the plan; None where this kind has none. kind: of KINDS, "" = any."""
        kind = kind or one_of(rng, *KINDS)
        made = KINDS[kind](self, plan, language, rng)
        if made is None or made[1] == plan:
            return None
        words, after = made
        words = in_case(words, rng) if language == "en" else words
        if language == "en" and words[:2] not in ("in", "In", "IN") and rng.random() < 0.1:
            words = one_of(rng, "please {}", "{}, please", "can you {}?", "{}!", "{}.").format(words)
        return Edit(words, after, kind, language)

    def spoken(self, name: str, language: str, rng: np.random.Generator) -> str:
        """The thing without its article, in the language; in English now and then by another word."""
        if (one := self.by_a.get(name)) is None:
            return name.removeprefix("a ").removeprefix("an ") if language == "en" else "اللافتة"
        if language == "ar":
            return one.names["ar"]
        return one_of(rng, *one.others) if one.others and rng.random() < 0.3 else one.name

    def the(self, plan: Plan, i: int, language: str, rng: np.random.Generator) -> str:
        """ "the cat"; "the one at the top left" where several are alike."""
        thing = plan.things[i]
        name = self.spoken(thing.name, language, rng)
        if [one.name for one in plan.things].count(thing.name) > 1:
            return f"the {name} at the {thing.place}" if language == "en" else f"{name} في {PLACES_AR[thing.place]}"
        return f"the {name}" if language == "en" else name

    def new(self, plan: Plan, rng: np.random.Generator) -> Named | None:
        """A concept that the plan's style has drawn and that the plan does not have."""
        members = self.planner.by_style.get(plan.style, [])
        for _ in range(8):
            if not members:
                return None
            one = self.planner.world.concepts[members[rng.integers(len(members))]]
            if one.a not in [thing.name for thing in plan.things]:
                return one
        return None

    def add(self, plan: Plan, language: str, rng: np.random.Generator) -> tuple[str, Plan] | None:
        if len(plan.things) == 1 and not plan.things[0].place:  # what filled the image makes room
            plan = _with(plan, 0, place=one_of(rng, *PLACES))
        free = [place for place in PLACES if place not in [one.place for one in plan.things]]
        if (one := self.new(plan, rng)) is None or not free:
            return None
        place = one_of(rng, *free)
        said = self.spoken(one.a, language, rng)
        if language == "en":
            said = ("an " if said[:1] in "aeiou" else "a ") + said if said == one.name and one.a != said else said
            words = one_of(rng, "add {}", "put {}", "draw {}", "add {} too").format(said)
            words += f" {one_of(rng, 'at', 'in')} the {place}" if rng.random() < 0.6 else ""
        else:
            words = one_of(rng, "أضف {}", "ضع {}").format(said)
            words += f" في {PLACES_AR[place]}" if rng.random() < 0.6 else ""
        return words, _sorted(replace(plan, things=(*plan.things, Thing(one.a, place))))

    def remove(self, plan: Plan, language: str, rng: np.random.Generator) -> tuple[str, Plan] | None:
        if len(plan.things) < 2:
            return None
        i = int(rng.integers(len(plan.things)))
        verbs = ("remove {}", "delete {}", "take away {}", "erase {}") if language == "en" else ("احذف {}", "أزل {}")
        words = one_of(rng, *verbs).format(self.the(plan, i, language, rng))
        return words, replace(plan, things=tuple(one for j, one in enumerate(plan.things) if j != i))

    def swap(self, plan: Plan, language: str, rng: np.random.Generator) -> tuple[str, Plan] | None:
        if not plan.things or (one := self.new(plan, rng)) is None:
            return None
        i = int(rng.integers(len(plan.things)))
        said, the = self.spoken(one.a, language, rng), self.the(plan, i, language, rng)
        if language == "en":
            said = one.a if said == one.name else ("an " if said[:1] in "aeiou" else "a ") + said
            words = one_of(rng, "replace {} with {}", "change {} into {}", "turn {} into {}", "swap {} for {}")
        else:
            words = one_of(rng, "استبدل {} بـ {}", "غيّر {} إلى {}")
        return words.format(the, said), _with(plan, i, name=one.a, paint="")

    def recolour(self, plan: Plan, language: str, rng: np.random.Generator) -> tuple[str, Plan] | None:
        if not plan.things:
            return None
        i, paint = int(rng.integers(len(plan.things))), one_of(rng, *PAINTS)
        alone = len(plan.things) == 1 and rng.random() < 0.5
        if language == "en":
            the = "it" if alone else self.the(plan, i, language, rng)
            words = one_of(rng, "make {} {}", "paint {} {}", "turn {} {}", "colour {} {}", "color {} {}").format(
                the, paint
            )
        else:
            the = self.the(plan, i, language, rng)
            words = one_of(rng, "غيّر لون {} إلى {}", "اجعل لون {} {}").format(the, COLOURS_AR[paint])
        return words, _with(plan, i, paint=paint)

    def move(self, plan: Plan, language: str, rng: np.random.Generator) -> tuple[str, Plan] | None:
        free = [place for place in PLACES if place not in [one.place for one in plan.things]]
        if not free or not plan.things or any(not thing.place for thing in plan.things):
            return None
        i, place = int(rng.integers(len(plan.things))), one_of(rng, *free)
        the = self.the(plan, i, language, rng)
        if language == "en":
            words = one_of(rng, "move {} to the {}", "put {} at the {}", "shift {} to the {}").format(the, place)
        else:
            words = one_of(rng, "انقل {} إلى {}", "حرّك {} إلى {}").format(the, PLACES_AR[place])
        return words, _sorted(_with(plan, i, place=place))

    def ground(self, plan: Plan, language: str, rng: np.random.Generator) -> tuple[str, Plan] | None:
        name = one_of(rng, *GROUNDS)
        if language == "en":
            words = one_of(
                rng,
                "make the background {}",
                "change the background to {}",
                "put it on a {} background",
                "{} background",
            ).format(name)
        else:
            words = one_of(rng, "اجعل الخلفية {}", "غيّر الخلفية إلى {}").format(GROUNDS[name][1])
        return words, replace(plan, ground=name)

    def restyle(self, plan: Plan, language: str, rng: np.random.Generator) -> tuple[str, Plan] | None:
        if not plan.things or not plan.style:
            return None
        ones = [self.by_a.get(thing.name) for thing in plan.things]
        if any(one is None for one in ones):
            return None
        shared = set.intersection(*(set(self.planner.styles[one.code]) for one in ones if one)) - {plan.style}
        if not shared:
            return None
        style = one_of(rng, *sorted(shared))
        if language == "en":
            words = one_of(
                rng, "change the style to {}", "in the {} style", "draw it in the {} style", "make it {} style"
            )
        else:
            words = one_of(rng, "غيّر الأسلوب إلى {}", "بأسلوب {}")
        return words.format(style), replace(plan, style=style)


Make = Callable[[Editor, Plan, str, np.random.Generator], tuple[str, Plan] | None]
KINDS: dict[str, Make] = {
    "add": Editor.add,
    "remove": Editor.remove,
    "replace": Editor.swap,
    "recolour": Editor.recolour,
    "move": Editor.move,
    "ground": Editor.ground,
    "style": Editor.restyle,
}


def _with(plan: Plan, i: int, **changes: str) -> Plan:
    return replace(plan, things=tuple(replace(one, **changes) if j == i else one for j, one in enumerate(plan.things)))


def _sorted(plan: Plan) -> Plan:
    return replace(plan, things=tuple(sorted(plan.things, key=lambda one: PLACES.index(one.place) if one.place else 0)))
