"""What people type, and the plan that it means: text documents that teach the model to plan (cm3/tokens/plan.py).

Everything is drawn from a seed. A request leaves most things open (which style, which corner): the plan decides them,
so that sampling a plan gives variety and drawing it does not have to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from cm3.tasks.plan_words import AND, COLOURS_AR, NUMBERS, PLACES_AR
from cm3.tasks.wording import article, plural
from cm3.tokens.plan import PLACES, Plan, Thing
from train.images.views import GROUNDS
from train.recipes.emoji.art import PAINTS
from train.recipes.emoji.english import with_article
from train.recipes.emoji.packages import LANGUAGES
from train.recipes.emoji.world import Named, World, held_out

NUMBERS_AR = {2: "اثنان", 3: "ثلاثة", 4: "أربعة"}
POLITE = (
    "draw {}",
    "draw me {}",
    "please draw {}",
    "please draw me {}",
    "please draw me a picture of {}",
    "can you draw {}?",
    "could you draw {} for me?",
    "can you please draw {}?",
    "I want {}",
    "I'd like {}",
    "I would like a picture of {}, please",
    "give me {}",
    "show me {}",
    "make {}",
    "make me an image of {}",
    "create an image of {}",
    "generate an image of {}",
    "generate a picture of {}",
    "a picture of {}",
    "a drawing of {}",
    "an image of {}",
    "an emoji of {}",
    "an icon of {}",
    "a picture with {}",
    "a picture showing {}",
    "there is {}",
    "{}, please",
    "{} please",
)
POLITE_AR = ("ارسم {}", "ارسم لي {}", "من فضلك ارسم {}", "صورة {}", "أريد {}", "أريد صورة {}", "رسم {}", "أرني {}")
STYLED = ("{} in the {} style", "{}, {} style", "{} in {} style", "{} ({} style)", "{}, in the {} style", "{} {}")
GROUNDED = ("{} on a {} background", "{} on {}", "{} with a {} background", "{}, {} background")
LONGEST = 4  # things in a scene
ORDER_COLUMNS = (("top left", "top right"), ("bottom left", "bottom right"))
ORDER_ROWS = (("top left", "bottom left"), ("top right", "bottom right"))


class Request(NamedTuple):
    """What is asked for, the plan that answers it, and the form of the words (for evaluation)."""

    words: str
    plan: Plan
    form: str
    language: str


@dataclass(frozen=True)
class Mix:
    """Shares of what requests ask for.

    Attributes:
        languages: share of requests in other languages than English and Arabic.
        arabic: share in Arabic.
        counts: how often one, two, three and four things are asked for.
        paint: share of things with a colour.
        ground: share with a background.
        style: share that names the style.
        where: share of scenes that say where things stand.
        sign: share of signs.
    """

    languages: float = 0.3
    arabic: float = 0.15
    counts: tuple[float, ...] = (0.55, 0.25, 0.1, 0.1)
    paint: float = 0.12
    ground: float = 0.12
    style: float = 0.3
    where: float = 0.25
    sign: float = 0.02


def misspelt(word: str, rng: np.random.Generator) -> str:
    """One typing mistake in a word of five letters or more: a letter left out, doubled, swapped or hit wrongly."""
    if len(word) < 5:
        return word
    i, kind = int(rng.integers(1, len(word) - 2)), rng.integers(4)
    if kind == 0:
        return word[:i] + word[i + 1 :]
    if kind == 1:
        return word[:i] + word[i] + word[i:]
    if kind == 2:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word[:i] + "abcdefghijklmnopqrstuvwxyz"[rng.integers(26)] + word[i + 1 :]


def in_case(words: str, rng: np.random.Generator) -> str:
    """The words in the case that people type: mostly as they are."""
    kind = rng.random()
    if kind < 0.06:
        return words.upper()
    if kind < 0.14:
        return words.title()
    return words[:1].upper() + words[1:] if kind < 0.3 else words


def one_of(rng: np.random.Generator, *choices: str) -> str:
    return choices[rng.integers(len(choices))]


class Planner:
    """Draws requests.

    Args:
        world: the concepts.
        styles: code of a concept -> styles that have drawn it and that training may see.
        mix: shares.
        novel: ask for held-out combinations only, in place of all others.
    """

    def __init__(
        self,
        world: World,
        styles: Mapping[str, Sequence[str]],
        mix: Mix = Mix(),  # noqa: B008 - frozen
        novel: bool = False,
    ):
        self.world, self.styles, self.mix, self.novel = world, styles, mix, novel
        self.codes = [code for code in world.concepts if styles.get(code)]
        self.by_style: dict[str, list[str]] = {}
        for code in self.codes:
            for style in styles[code]:
                self.by_style.setdefault(style, []).append(code)

    def things(self, count: int, rng: np.random.Generator) -> tuple[list[Named], str]:
        """Concepts (with repetitions) for a scene of so many things, and a style that has all of them."""
        if count == 1:
            code = self.codes[rng.integers(len(self.codes))]
            return [self.world.concepts[code]], one_of(rng, *self.styles[code])
        style = one_of(rng, *self.by_style)
        members = self.by_style[style]
        kinds = 1 if rng.random() < 0.25 else int(rng.integers(1, count + 1))
        chosen = [members[i] for i in rng.choice(len(members), kinds, replace=False)]
        chosen += [chosen[rng.integers(kinds)] for _ in range(count - kinds)]
        return [self.world.concepts[code] for code in sorted(chosen, key=chosen.index)], style

    def request(self, rng: np.random.Generator, form: str = "") -> Request:
        """A request in one of the languages. form: of FORMS, "" = any."""
        kind = rng.random()
        language = "en"
        if not form and kind < self.mix.languages:
            language = one_of(rng, *(one for one in LANGUAGES if one not in ("en", "ar")))
        elif not form and kind < self.mix.languages + self.mix.arabic:
            language = "ar"
        if not form and language in ("en", "ar") and rng.random() < self.mix.sign:
            return self._sign(language, rng)
        while True:
            request = self._asked(language, form, rng)
            if self.allowed(request.plan, language):
                return request

    def allowed(self, plan: Plan, language: str = "en") -> bool:
        """Whether the plan has a held-out combination just where `novel` wants one."""
        names = [thing.name for thing in plan.things]
        pairs = combinations(sorted(set(names)), 2)
        found = any(held_out(*pair) for pair in pairs) or any(
            held_out(thing.name, thing.paint) for thing in plan.things if thing.paint
        )
        if language not in ("en", "ar"):
            found = found or any(held_out(language, name) for name in names)
        return found == self.novel

    def _sign(self, language: str, rng: np.random.Generator) -> Request:
        word = "".join(chr(65 + i) for i in rng.integers(26, size=rng.integers(3, 6)))
        if language == "ar":
            words = one_of(rng, 'لافتة مكتوب عليها "{}"', 'ارسم لافتة مكتوب عليها "{}"').format(word)
        else:
            words = one_of(
                rng, 'a sign that says "{}"', 'draw a sign that says "{}"', 'sign "{}"', "a sign with the word {}"
            )
            words = words.format(word)
        return Request(words, Plan((Thing(f'a sign that says "{word}"', "top left"),)), "sign", language)

    def _asked(self, language: str, form: str, rng: np.random.Generator) -> Request:
        count = 1 + int(rng.choice(len(self.mix.counts), p=self.mix.counts))
        concepts, style = self.things(count, rng)
        coloured = language in ("en", "ar")
        paints = ["" for _ in concepts]
        ground = "white"
        if coloured and rng.random() < self.mix.paint:
            paint = one_of(rng, *PAINTS)
            first = concepts[0]
            paints = [paint if one is first else "" for one in concepts]
        if coloured and rng.random() < self.mix.ground:
            ground = one_of(rng, *[name for name in GROUNDS if name != "white"])
        spoken = Spoken(language, form, rng)
        where = count == 2 and concepts[0] is not concepts[1] and coloured and rng.random() < self.mix.where
        if where:
            words, places = spoken.related(concepts, paints)
        elif count == 1 and coloured and rng.random() < 0.06:
            place = one_of(rng, *PLACES)
            words, places = spoken.at(concepts[0], paints[0], place), [place]
        else:
            words = spoken.listing(concepts, paints)
            places = [""] if count == 1 else [PLACES[i] for i in rng.permutation(4)[:count]]
        things = [Thing(one.a, place, paint) for one, place, paint in zip(concepts, places, paints, strict=True)]
        things.sort(key=lambda thing: PLACES.index(thing.place) if thing.place else 0)
        plan = Plan(tuple(things), style, ground)
        return Request(spoken.whole(words, plan, rng.random() < self.mix.style), plan, spoken.form, language)


FORMS = ("plain", "bare", "the", "polite", "upper", "title", "typo", "synonym", "plural", "end")


class Spoken:
    """Puts concepts into words of one language."""

    def __init__(self, language: str, form: str, rng: np.random.Generator):
        shares = (0.3, 0.2, 0.04, 0.18, 0.03, 0.03, 0.1, 0.08, 0.02, 0.02)
        self.language, self.rng = language, rng
        self.form = form or FORMS[rng.choice(len(FORMS), p=shares)]

    def name(self, one: Named) -> str:
        name = one.names.get(self.language, one.name).split(", ")[0]
        if self.language == "en" and one.others and (self.form == "synonym" or self.rng.random() < 0.35):
            return one_of(self.rng, *one.others)
        return name

    def noun(self, one: Named, paint: str, count: int) -> str:
        """ "a purple cat", "two cats" """
        name, rng = self.name(one), self.rng
        if self.language != "en":
            many = (f"{name} × {count}", f"{count} {name}", f"{count} × {name}")
            if self.language == "ar":
                name = f"{name} {COLOURS_AR[paint]}" if paint else name
                many = (f"{name} × {count}", f"{count} {name}", f"{NUMBERS_AR.get(count, '')} {name}")
            return name if count == 1 else one_of(rng, *many)
        if count > 1:
            several = plural(name)
            several = f"{paint} {several}" if paint else several
            return f"{one_of(rng, NUMBERS[count], NUMBERS[count], str(count))} {several}"
        if self.form == "typo":
            at = rng.integers(len(parts := name.split(" ")))
            name = " ".join([*parts[:at], misspelt(parts[at], rng), *parts[at + 1 :]])
        if self.form == "plural" and not paint:
            return plural(name)
        if paint:
            name = f"{paint} {name}"
        if self.form == "bare":
            return name
        if self.form == "the":
            return f"the {name}"
        return f"{article(name)} {name}" if paint else with_article(name)

    def listing(self, concepts: Sequence[Named], paints: Sequence[str]) -> str:
        """ "two cats and a dog", in any order."""
        kinds = list(dict.fromkeys(one.code for one in concepts))
        parts = []
        for code in (kinds[i] for i in self.rng.permutation(len(kinds))):
            mine = [i for i, one in enumerate(concepts) if one.code == code]
            parts.append(self.noun(concepts[mine[0]], paints[mine[0]], len(mine)))
        joint = AND[self.language]
        if len(parts) > 2:
            comma = "، " if self.language == "ar" else ", "
            return comma.join(parts[:-1]) + (joint if self.rng.random() < 0.7 else comma) + parts[-1]
        return joint.join(parts)

    def at(self, one: Named, paint: str, place: str) -> str:
        """ "a cat at the top left" """
        noun = self.noun(one, paint, 1)
        if self.language == "ar":
            return f"{noun} في {PLACES_AR[place]}"
        return f"{noun} {one_of(self.rng, 'at', 'in')} the {place}"

    def related(self, concepts: Sequence[Named], paints: Sequence[str]) -> tuple[str, list[str]]:
        """Two things with words that say where; and their places."""
        rng, (a, b) = self.rng, [self.noun(one, paint, 1) for one, paint in zip(concepts, paints, strict=True)]
        arabic, kind = self.language == "ar", rng.integers(4)
        if kind == 3:
            places = [PLACES[i] for i in rng.permutation(4)[:2]]
            said = [self.at(one, paint, place) for one, paint, place in zip(concepts, paints, places, strict=True)]
            return ("، " if arabic else one_of(rng, ", ", " and ")).join(said), places
        sideways = kind < 2
        lines = ORDER_COLUMNS if sideways else ORDER_ROWS
        first, second = lines[rng.integers(2)]
        if sideways:
            left = rng.random() < 0.5
            if arabic:
                words = f"{a} {'يسار' if left else 'يمين'} {b}"
            else:
                side, other = ("left", "right") if left else ("right", "left")
                words = one_of(
                    rng,
                    f"{a} {side} of {b}",
                    f"{a} to the {side} of {b}",
                    f"{a} on the {side} and {b} on the {other}",
                    f"{a} on the {side}, {b} on the {other}",
                )
            return words, [first, second] if left else [second, first]
        above = rng.random() < 0.5
        if arabic:
            words = f"{a} {'فوق' if above else 'تحت'} {b}"
        else:
            over = one_of(rng, "above", "over") if above else one_of(rng, "below", "under")
            words = f"{a} {over} {b}"
        return words, [first, second] if above else [second, first]

    def whole(self, words: str, plan: Plan, styled: bool) -> str:
        """The words with style and ground, in the form that people use."""
        rng = self.rng
        if self.language == "ar":
            if plan.ground != "white":
                words = f"{words} على خلفية {GROUNDS[plan.ground][1]}"
            if styled:
                words = one_of(rng, "{} بأسلوب {}", "{}، أسلوب {}").format(words, plan.style)
            return one_of(rng, *POLITE_AR).format(words) if self.form == "polite" else words
        if self.language != "en":
            words = f"{words}, {plan.style}" if styled else words
            return in_case(words, rng)
        if plan.ground != "white":
            words = one_of(rng, *GROUNDED).format(words, plan.ground)
        if styled:
            words = one_of(rng, *STYLED).format(words, plan.style)
        if self.form == "polite":
            words = one_of(rng, *POLITE).format(words)
        if self.form == "upper":
            return words.upper()
        if self.form == "title":
            return words.title()
        if self.form == "end":
            words += one_of(rng, "!", ".", "...", "?", " !", "!!")
        return in_case(words, rng)
