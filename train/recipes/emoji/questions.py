"""What can be asked of an image whose plan is known, with the answer: exact truth, in English and Arabic."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cm3.tasks.plan_words import COLOURS_AR, PLACES_AR
from cm3.tasks.wording import plural
from cm3.tokens.plan import PLACES, Plan
from train.images.views import GROUNDS
from train.recipes.emoji.requests import one_of
from train.recipes.emoji.world import Named, World

KINDS: dict[str, tuple[str, str]] = {
    "animal-mammal": ("mammal", "حيوان ثديي"),
    "animal-bird": ("bird", "طائر"),
    "animal-amphibian": ("amphibian", "برمائي"),
    "animal-reptile": ("reptile", "زاحف"),
    "animal-marine": ("sea animal", "حيوان بحري"),
    "animal-bug": ("bug", "حشرة"),
    "plant-flower": ("flower", "زهرة"),
    "plant-other": ("plant", "نبات"),
    "food-fruit": ("fruit", "فاكهة"),
    "food-vegetable": ("vegetable", "خضار"),
    "food-prepared": ("dish", "طعام"),
    "food-asian": ("Asian dish", "طعام آسيوي"),
    "food-sweet": ("sweet", "حلوى"),
    "drink": ("drink", "مشروب"),
    "dishware": ("dishware", "أدوات مائدة"),
    "place-building": ("building", "مبنى"),
    "transport-ground": ("land transport", "نقل بري"),
    "transport-water": ("water transport", "نقل مائي"),
    "transport-air": ("air transport", "نقل جوي"),
    "sky-weather": ("sky and weather", "سماء وطقس"),
    "sport": ("sport", "رياضة"),
    "clothing": ("clothing", "ملابس"),
    "musical-instrument": ("musical instrument", "آلة موسيقية"),
    "computer": ("computer part", "حاسوب"),
    "light-video": ("light or film", "ضوء أو فيلم"),
    "tool": ("tool", "أداة"),
    "household": ("household item", "غرض منزلي"),
}
YES, NO = ("yes", "نعم"), ("no", "لا")
SIDES_AR = {"left": "يسار", "right": "يمين", "above": "فوق", "below": "تحت"}


class Question(NamedTuple):
    """task: for evaluation. words, answer: in one language."""

    task: str
    words: str
    answer: str


class Shown(NamedTuple):
    """What a question may need to know.

    Attributes:
        plan: of the image.
        named: the concept of each thing; None for a sign.
        colours: the measured main colour of each thing, or None.
        world: other concepts, for questions with the answer "no".
        language: of question and answer, "en" or "ar".
        rng: chooses.
    """

    plan: Plan
    named: list[Named | None]
    colours: list[str | None]
    world: World
    language: str
    rng: np.random.Generator

    def says(self, task: str, english: str, arabic: str, answer: tuple[str, str]) -> Question:
        said = self.language == "en"
        return Question(task, english if said else arabic, answer[0 if said else 1])

    def single(self) -> int | None:
        """A thing that the image has once, and that is no sign."""
        names = [thing.name for thing in self.plan.things]
        once = [i for i, name in enumerate(names) if names.count(name) == 1 and self.named[i]]
        return once[self.rng.integers(len(once))] if once else None

    def other(self) -> Named:
        """A concept that the image does not show, half the time of a shown thing's subgroup."""
        names = [thing.name for thing in self.plan.things]
        shown = [one for one in self.named if one]
        group = self.world.by_subgroup[shown[0].subgroup] if shown and self.rng.random() < 0.5 else []
        rest = [one for one in group if one.a not in names]
        everything = list(self.world.concepts.values())
        while not rest:
            one = everything[self.rng.integers(len(everything))]
            rest = [one] if one.a not in names else []
        return rest[self.rng.integers(len(rest))]


def what(shown: Shown) -> Question | None:
    if len(shown.plan.things) != 1 or (one := shown.named[0]) is None:
        return None
    words = one_of(shown.rng, "What is this?", "What is it?", "What do you see?", "What does the image show?")
    return shown.says("what", words, one_of(shown.rng, "ما هذا؟", "ماذا ترى؟"), (one.a, one.names["ar"]))


def kind(shown: Shown) -> Question | None:
    if len(shown.plan.things) != 1 or (one := shown.named[0]) is None or one.subgroup not in KINDS:
        return None
    words = one_of(
        shown.rng, "What kind of thing is it?", "Which category does it belong to?", "What type of thing is it?"
    )
    return shown.says("kind", words, "ما نوعه؟", KINDS[one.subgroup])


def colour(shown: Shown) -> Question | None:
    i = shown.single()
    if i is None or not (name := shown.plan.things[i].paint or shown.colours[i]):
        return None
    one = shown.named[i]
    assert one is not None
    alone = len(shown.plan.things) == 1
    english = one_of(shown.rng, "What colour is {}?", "What color is {}?").format("it" if alone else f"the {one.name}")
    arabic = "ما لونه؟" if alone else f"ما لون {one.names['ar']}؟"
    return shown.says("colour", english, arabic, (name, COLOURS_AR[name]))


def style(shown: Shown) -> Question | None:
    if not shown.plan.style:
        return None
    return shown.says("style", "What style is it drawn in?", "ما أسلوب الرسم؟", (shown.plan.style, shown.plan.style))


def ground(shown: Shown) -> Question | None:
    english, arabic, _ = GROUNDS[shown.plan.ground]
    return shown.says("ground", "What colour is the background?", "ما لون الخلفية؟", (english, arabic))


def is_it(shown: Shown) -> Question | None:
    if len(shown.plan.things) != 1 or (one := shown.named[0]) is None:
        return None
    yes = bool(shown.rng.random() < 0.5)
    asked = one if yes else shown.other()
    return shown.says("is it", f"Is it {asked.a}?", f"هل هذا {asked.names['ar']}؟", YES if yes else NO)


def present(shown: Shown) -> Question | None:
    i = shown.single()
    if i is None:
        return None
    yes = bool(shown.rng.random() < 0.5)
    one = shown.named[i] if yes else shown.other()
    assert one is not None
    return shown.says("presence", f"Is there {one.a}?", f"هل يوجد {one.names['ar']}؟", YES if yes else NO)


def count(shown: Shown) -> Question | None:
    named = [one for one in shown.named if one]
    if not named or len(shown.plan.things) < 2:
        return None
    one = named[shown.rng.integers(len(named))] if shown.rng.random() < 0.85 else shown.other()
    number = str([thing.name for thing in shown.plan.things].count(one.a))
    words = one_of(shown.rng, "How many {} are there?", "How many {} do you see?").format(plural(one.name))
    return shown.says("count", words, f"كم مرة يظهر {one.names['ar']}؟", (number, number))


def count_all(shown: Shown) -> Question | None:
    number = str(len(shown.plan.things))
    words = one_of(shown.rng, "How many things are there?", "How many things do you see?")
    return shown.says("count all", words, "كم عدد الأشياء؟", (number, number))


def where(shown: Shown) -> Question | None:
    i = shown.single()
    if i is None or not (place := shown.plan.things[i].place):
        return None
    one = shown.named[i]
    assert one is not None
    return shown.says(
        "where", f"Where is the {one.name}?", f"أين {one.names['ar']}؟", (f"at the {place}", PLACES_AR[place])
    )


def relation(a: str, b: str) -> str:
    """Where place `a` lies, seen from `b`: sideways where they share a row, else above or below."""
    (row_a, column_a), (row_b, column_b) = divmod(PLACES.index(a), 2), divmod(PLACES.index(b), 2)
    if row_a == row_b:
        return "left" if column_a < column_b else "right"
    return "above" if row_a < row_b else "below"


def _pair(shown: Shown) -> tuple[int, int] | None:
    names = [thing.name for thing in shown.plan.things]
    once = [
        i for i, name in enumerate(names) if names.count(name) == 1 and shown.named[i] and shown.plan.things[i].place
    ]
    if len(once) < 2:
        return None
    i, j = shown.rng.permutation(once)[:2].tolist()
    return i, j


def side(shown: Shown) -> Question | None:
    """Left or right, above or below."""
    if (pair := _pair(shown)) is None:
        return None
    (i, j), things = pair, shown.plan.things
    found = relation(things[i].place, things[j].place)
    a, b = shown.named[i], shown.named[j]
    assert a and b
    if found in ("left", "right"):
        english, arabic = (
            f"Is the {a.name} left or right of the {b.name}?",
            f"هل {a.names['ar']} يسار أم يمين {b.names['ar']}؟",
        )
    else:
        english, arabic = (
            f"Is the {a.name} above or below the {b.name}?",
            f"هل {a.names['ar']} فوق أم تحت {b.names['ar']}؟",
        )
    return shown.says("side", english, arabic, (found, SIDES_AR[found]))


def read_sign(shown: Shown) -> Question | None:
    signs = [thing.name for thing in shown.plan.things if '"' in thing.name]
    if not signs:
        return None
    word = signs[0].split('"')[1]
    return shown.says("sign", "What does the sign say?", "ماذا كتب على اللافتة؟", (word, word))


ASKS: tuple[Callable[[Shown], Question | None], ...] = (
    *(what, kind, colour, style, ground, is_it, present, count, count, count_all, where, where, side, side, read_sign),
)


def ask(shown: Shown, most: int) -> list[Question]:
    """Up to so many different questions."""
    found: dict[str, Question] = {}
    for i in shown.rng.permutation(len(ASKS)):
        if len(found) < most and (question := ASKS[i](shown)):
            found.setdefault(question.task, question)
    return list(found.values())
