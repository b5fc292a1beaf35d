"""What a model is taught to write on from: the words of each task, in every language that it knows.

The pipeline asks with these words, and training teaches them. Where text comes out, a mask and the image follow;
where an image comes out, it stands last, behind the image that it is made from (CM3leon, section 4).
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

from cm3.checks import check_text, is_many, is_number

LANGUAGES = ("en", "ar")

TEMPLATES: dict[str, dict[str, str]] = {
    # Text out: words <mask:0> <break> image.
    "caption": {"en": "Caption: ", "ar": "الوصف: "},
    "describe": {"en": "Describe: ", "ar": "صف الصورة: "},
    "answer": {"en": "Question: {words} Answer: ", "ar": "سؤال: {words} جواب: "},
    # An image out of another: words <break> source image.
    "edit": {"en": "Edit: {words}", "ar": "عدّل: {words}"},
    "segments": {"en": "From segments: {words}", "ar": "من القطع: {words}"},
    "edges": {"en": "From edges: {words}", "ar": "من الحواف: {words}"},
}
# Of models that plan before they draw (cm3/tokens/plan.py): what stands before a plan, or what an image is made from.
PLANS = {
    "draw": "Draw: {words}\n",
    "edit": "Edit: {plan}\n{words}\n",
    "change": "From: {before}\nTo: {after}",
    "read": "Plan: ",
    "translate": "In {language}: {words}\n",
}
# Of models that were taught in turns (config.FORMS): what people say to them.
SAID: dict[str, dict[str, str]] = {
    "caption": {
        "en": "Say in one short sentence what this picture shows.",
        "ar": "قل في جملة قصيرة ما الذي تظهره هذه الصورة.",
    },
    "describe": {"en": "Describe this picture in detail.", "ar": "صف هذه الصورة بالتفصيل."},
    "answer": {"en": "{words}", "ar": "{words}"},
    "edit": {"en": "{words}", "ar": "{words}"},
    "segments": {"en": "Draw this, with these areas: {words}", "ar": "ارسم هذا بهذه المساحات: {words}"},
    "edges": {"en": "Draw this, with these edges: {words}", "ar": "ارسم هذا بهذه الحواف: {words}"},
}
# Of models that plan: a caption is the plan, and an edit is asked for through plans (cm3/tasks/planning.py).
PLANNED = {"caption": {"en": PLANS["read"]}, "describe": {"en": PLANS["read"]}, "answer": TEMPLATES["answer"]}
WORDS = {"cm3": TEMPLATES, "plan": PLANNED, "chameleon": SAID}

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the image's sides


def language_of(words: str) -> str:
    """ "ar" for words with an Arabic letter, else "en"."""
    return "ar" if re.search("[\u0600-\u06ff]", words) else "en"


def caption_language(words: str, form: str) -> str | None:
    """The language of the caption that these words ask for; None where they ask for none."""
    asks = ((text, language) for task in ("caption", "describe") for language, text in WORDS[form][task].items())
    return next((language for text, language in asks if text == words), None)


def prompt(task: str, words: str, form: str = "cm3") -> str:
    """The text of a task in the language of its words. form: of the model's documents, one of config.FORMS."""
    return WORDS[form][task][language_of(words)].format(words=words.strip())


def is_box(box: Any) -> bool:
    """Whether it is left, top, right, bottom as shares of an image's sides, with something between them."""
    sides = list(cast(Iterable[Any], box)) if isinstance(box, Iterable) else []
    if len(sides) != 4 or not all(is_number(side) and 0 <= side <= 1 for side in sides):
        return False
    left, top, right, bottom = sides
    return left < right and top < bottom


def boxed(things: Sequence[tuple[str, Box]]) -> str:
    """Things and where each stands, in hundredths of the image: "a cat [10 20 55 90], a dog [60 30 95 80]".

    Errors: ValueError for no thing, one without a name, or a box that is empty or leaves the image; TypeError for
    what is no list of names and boxes."""
    if not is_many(things) or not all(is_many(thing) and len(thing) == 2 for thing in things):
        raise TypeError(
            f"boxes must be a list of names and boxes, such as [('a cat', (0.1, 0.2, 0.5, 0.6))], but is {things!r:.60}"
        )
    if not things:
        raise ValueError("the list of boxes is empty: give at least one thing and its box")
    parts: list[str] = []
    for name, box in things:
        check_text("the name of a box", name)
        if not name.strip():
            raise ValueError(f"the box {box!r:.60} has no name: say what stands in it")
        if not is_box(box):
            raise ValueError(
                f"the box of {name!r:.60} is {box!r:.60}, but must be left, top, right, bottom as shares of "
                "the image's sides, from 0 to 1, left before right and top before bottom"
            )
        parts.append(f"{name.strip()} [{' '.join(str(round(100 * side)) for side in box)}]")
    return ", ".join(parts)
