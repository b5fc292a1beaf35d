"""Plans in words: short captions in every language, long captions in English and Arabic."""

import re
from collections.abc import Mapping

from cm3.tasks.wording import article, plural
from cm3.tokens.plan import PLAIN_GROUND, Plan, Thing

# Language code -> what joins two names: all languages that plans are put into.
AND = {
    **{"en": " and ", "ar": " و", "es": " y ", "fr": " et ", "de": " und ", "it": " e ", "pt": " e ", "nl": " en "},
    **{"pl": " i ", "ru": " и ", "uk": " і ", "tr": " ve ", "fa": " و ", "he": " ו", "ur": " اور ", "hi": " और "},
    **{"bn": " এবং ", "zh": "和", "ja": "と", "ko": "와 ", "vi": " và ", "id": " dan ", "th": "และ", "sw": " na "},
}
COMMA = {"ar": "، ", "fa": "، ", "ur": "، ", "zh": "、", "ja": "、"}
NUMBERS = {2: "two", 3: "three", 4: "four"}
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
GROUNDS_AR = {  # of a background, which is feminine
    "white": "بيضاء",
    "yellow": "صفراء",
    "green": "خضراء",
    "blue": "زرقاء",
    "pink": "وردية",
    "purple": "بنفسجية",
    "grey": "رمادية",
    "black": "سوداء",
}
PLACES_AR = {
    "top left": "أعلى اليسار",
    "top right": "أعلى اليمين",
    "bottom left": "أسفل اليسار",
    "bottom right": "أسفل اليمين",
}
SIGN = re.compile(r'a sign that says "(.+)"')


def caption(plan: Plan, language: str, names: Mapping[str, str]) -> str:
    """A short caption: what is shown, how many of each, and its colour where it is painted (English and Arabic).

    Args:
        plan: of the image.
        language: key of AND.
        names: in the language, of each name in the plan; not needed for English.
    """
    alike = [(thing.name, thing.paint) for thing in plan.things]
    parts = [_counted(name, paint, alike.count((name, paint)), language, names) for name, paint in dict.fromkeys(alike)]
    if not parts:
        return "nothing"
    *others, last = parts
    return AND[language].join([COMMA.get(language, ", ").join(others), last] if others else [last])


def described(plan: Plan, language: str, names: Mapping[str, str]) -> str:
    """A long caption: the plan itself, or its translation. language: "en" or "ar"; names: as for `caption`."""
    if language == "en":
        return str(plan)
    parts = [_counted(thing.name, thing.paint, 1, "ar", names) + _at(thing) for thing in plan.things] or ["لا شيء"]
    parts += [f"بأسلوب {plan.style}"] if plan.style else []
    parts += [f"على خلفية {GROUNDS_AR.get(plan.ground, plan.ground)}"] if plan.ground != PLAIN_GROUND else []
    return "، ".join(parts)


def _at(thing: Thing) -> str:
    return f" في {PLACES_AR[thing.place]}" if thing.place else ""


def _counted(name: str, paint: str, count: int, language: str, names: Mapping[str, str]) -> str:
    if language == "en":
        bare = re.sub("^an? ", "", name)
        if count > 1:
            return f"{NUMBERS.get(count, count)} {f'{paint} ' if paint else ''}{plural(bare)}"
        return f"{article(paint)} {paint} {bare}" if paint else name
    sign = SIGN.fullmatch(name)
    said = f'لافتة مكتوب عليها "{sign[1]}"' if sign and language == "ar" else names.get(name, name)
    said += f" {COLOURS_AR.get(paint, paint)}" if paint and language == "ar" else ""
    return f"{said} × {count}" if count > 1 else said
