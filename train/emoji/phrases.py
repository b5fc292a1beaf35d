"""What people say of an image: captions to draw from, and questions with answers, in English and Arabic.

Everything is made from facts: CLDR names and keywords, Unicode groups, the style's name, measured colours. A question's
answer never needs more than the image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cm3.tokens.templates import TEMPLATES
from train.documents.shards import Target
from train.emoji.english import with_article
from train.images.views import GROUNDS

Facts = dict[str, Any]

# Subgroup -> what people call its members; only subgroups whose members share such a word.
KINDS: dict[str, dict[str, str]] = {
    "animal-mammal": {"en": "mammal", "ar": "حيوان ثديي"},
    "animal-bird": {"en": "bird", "ar": "طائر"},
    "animal-amphibian": {"en": "amphibian", "ar": "برمائي"},
    "animal-reptile": {"en": "reptile", "ar": "زاحف"},
    "animal-marine": {"en": "sea animal", "ar": "حيوان بحري"},
    "animal-bug": {"en": "bug", "ar": "حشرة"},
    "plant-flower": {"en": "flower", "ar": "زهرة"},
    "plant-other": {"en": "plant", "ar": "نبات"},
    "food-fruit": {"en": "fruit", "ar": "فاكهة"},
    "food-vegetable": {"en": "vegetable", "ar": "خضار"},
    "food-prepared": {"en": "dish", "ar": "طعام"},
    "food-asian": {"en": "Asian dish", "ar": "طعام آسيوي"},
    "food-sweet": {"en": "sweet", "ar": "حلوى"},
    "drink": {"en": "drink", "ar": "مشروب"},
    "dishware": {"en": "dishware", "ar": "أدوات مائدة"},
    "place-building": {"en": "building", "ar": "مبنى"},
    "transport-ground": {"en": "land transport", "ar": "نقل بري"},
    "transport-water": {"en": "water transport", "ar": "نقل مائي"},
    "transport-air": {"en": "air transport", "ar": "نقل جوي"},
    "sky-weather": {"en": "sky and weather", "ar": "سماء وطقس"},
    "sport": {"en": "sport", "ar": "رياضة"},
    "clothing": {"en": "clothing", "ar": "ملابس"},
    "musical-instrument": {"en": "musical instrument", "ar": "آلة موسيقية"},
    "computer": {"en": "computer part", "ar": "حاسوب"},
    "light-video": {"en": "light or film", "ar": "ضوء أو فيلم"},
    "tool": {"en": "tool", "ar": "أداة"},
    "household": {"en": "household item", "ar": "غرض منزلي"},
}

COLOURS_AR = {
    "black": "أسود",
    "white": "أبيض",
    "grey": "رمادي",
    "red": "أحمر",
    "orange": "برتقالي",
    "yellow": "أصفر",
    "green": "أخضر",
    "blue": "أزرق",
    "purple": "بنفسجي",
    "pink": "وردي",
    "brown": "بني",
}

WRAPPERS = {
    "en": ("{}", "{}", "{}", "a picture of {}", "draw {}", "an emoji of {}", "an image of {}"),
    "ar": ("{}", "{}", "{}", "صورة {}", "ارسم {}", "رسم {}"),
}
STYLED = {
    "en": ("{} in the {} style", "{}, {} style", "{} {}"),
    "ar": ("{} بأسلوب {}", "{}، أسلوب {}"),
}


def caption(
    facts: Facts, ground: str, language: str, aliases: Sequence[str], rng: np.random.Generator, styled: float = 0.3
) -> str:
    """One way to ask for this image.

    Args:
        facts: of the image.
        ground: key of GROUNDS.
        language: "en" or "ar".
        aliases: keywords that name this concept and few others.
        rng: chooses among the phrasings.
        styled: share of the captions that name the style.
    """
    name, colour = facts["name"][language], facts["colour"]
    if len(aliases) and rng.random() < 0.2:
        name = str(rng.choice(list(aliases)))
    if language == "en":
        if colour and colour not in name and rng.random() < 0.25:
            name = f"{colour} {name}"
        if rng.random() < 0.5:
            name = with_article(name)
        text = f"{name} on a {GROUNDS[ground][0]} background"
    else:
        if colour and rng.random() < 0.15:
            name = f"{name}، اللون {COLOURS_AR[colour]}"
        text = f"{name} على خلفية {GROUNDS[ground][1]}"
    if ground == "white" and rng.random() < 0.85:
        text = name
    if rng.random() < styled:
        text = str(rng.choice(STYLED[language])).format(text, facts["style"])
    text = str(rng.choice(WRAPPERS[language])).format(text)
    return text[:1].upper() + text[1:] if rng.random() < 0.2 else text


def _ask(question: str, language: str) -> str:
    return TEMPLATES["answer"][language].format(words=question)


def _one(rng: np.random.Generator, *choices: str) -> str:
    return choices[rng.integers(len(choices))]


def ask_caption(facts: Facts, language: str, rng: np.random.Generator) -> Target:
    return Target("caption", TEMPLATES["caption"][language], facts["name"][language])


def ask_what(facts: Facts, language: str, rng: np.random.Generator) -> Target:
    question = (
        _one(rng, "What is this?", "What is it?", "What do you see?", "What does the picture show?")
        if language == "en"
        else _one(rng, "ما هذا؟", "ماذا ترى؟", "ماذا في الصورة؟")
    )
    return Target("what", _ask(question, language), facts["name"][language])


def ask_kind(facts: Facts, language: str, rng: np.random.Generator) -> Target:
    kinds = "What kind of thing is it?", "Which category does it belong to?", "What type of thing is this?"
    question = _one(rng, *kinds) if language == "en" else _one(rng, "ما نوعه؟", "إلى أي فئة ينتمي؟")
    return Target("kind", _ask(question, language), KINDS[facts["subgroup"]][language])


def ask_colour(facts: Facts, language: str, rng: np.random.Generator) -> Target:
    question = (
        _one(rng, "What colour is it?", "What color is it?", "Which colour does it have?")
        if language == "en"
        else _one(rng, "ما لونه؟", "ما اللون؟")
    )
    return Target(
        "colour", _ask(question, language), facts["colour"] if language == "en" else COLOURS_AR[facts["colour"]]
    )


def ask_style(facts: Facts, language: str, rng: np.random.Generator) -> Target:
    question = (
        _one(rng, "What style is it?", "Which style is it drawn in?")
        if language == "en"
        else _one(rng, "ما أسلوب الرسم؟", "بأي أسلوب رسم؟")
    )
    return Target("style", _ask(question, language), facts["style"])


def ask_ground(ground: str, language: str, rng: np.random.Generator) -> Target:
    question = (
        _one(rng, "What colour is the background?", "What color is the background?")
        if language == "en"
        else "ما لون الخلفية؟"
    )
    english, arabic, _ = GROUNDS[ground]
    return Target("ground", _ask(question, language), english if language == "en" else arabic)


def ask_is(facts: Facts, other: Facts, language: str, rng: np.random.Generator) -> Target:
    """Yes or no, as often one as the other; `other` is a different thing of the same subgroup."""
    yes = bool(rng.random() < 0.5)
    name = (facts if yes else other)["name"][language]
    if language == "en":
        return Target("is", _ask(f"Is it {with_article(name)}?", language), "yes" if yes else "no")
    return Target("is", _ask(f"هل هذه صورة {name}؟", language), "نعم" if yes else "لا")


def name_targets(facts: Facts, language: str, others: Sequence[Facts], rng: np.random.Generator) -> list[Target]:
    """One question about the name, and in a quarter of the documents one about the kind: what does not change where an
    image is distorted. The arguments are those of `targets`."""
    asked = [_ask_name(facts, language, others, rng)]
    if facts["subgroup"] in KINDS and asked[0].task != "is" and rng.random() < 0.3:
        asked.append(ask_kind(facts, language, rng))
    return [asked[i] for i in rng.permutation(len(asked))]


def _ask_name(facts: Facts, language: str, others: Sequence[Facts], rng: np.random.Generator) -> Target:
    named: list[Callable[[], Target]] = [lambda: ask_caption(facts, language, rng)] * 3
    named += [lambda: ask_what(facts, language, rng)]
    if others:
        named += [lambda: ask_is(facts, others[int(rng.integers(len(others)))], language, rng)]
    return named[rng.integers(len(named))]()


def targets(
    facts: Facts, ground: str, language: str, others: Sequence[Facts], rng: np.random.Generator
) -> list[Target]:
    """What one document asks: one question about the name, and up to two that do not give it away, in any order.

    Args:
        facts: of the image.
        ground: key of GROUNDS.
        language: of every question.
        others: different things of the same subgroup, for questions with the answer "no".
        rng: chooses.
    """
    side: list[Callable[[], Target]] = [
        lambda: ask_style(facts, language, rng),
        lambda: ask_ground(ground, language, rng),
    ]
    if facts["colour"]:
        side.append(lambda: ask_colour(facts, language, rng))
    first = _ask_name(facts, language, others, rng)
    if facts["subgroup"] in KINDS and first.task != "is":  # who is asked "Is it a cat?" knows what kind of thing it is
        side.append(lambda: ask_kind(facts, language, rng))
    extra = rng.permutation(len(side))[: rng.integers(3)]
    chosen: list[Callable[[], Target]] = [lambda: first, *(side[i] for i in extra)]
    return [chosen[i]() for i in rng.permutation(len(chosen))]
