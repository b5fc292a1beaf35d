"""What the images show: concepts with names, keywords, groups and families, and the icon of each in every style."""

import re
from dataclasses import dataclass

from cm3.tokens.templates import LANGUAGES
from train.emoji.packages import ANNOTATIONS, DERIVED, EMOJIBASE, STYLES, Package, Style, Tarball

VARIATION_SELECTOR = "fe0f"
SKIN = {f"1f3f{digit}" for digit in "bcdef"}
GENDER = {"2640", "2642"}
HAIR = {f"1f9b{digit}" for digit in "0123"}


@dataclass(frozen=True)
class Concept:
    """One thing that has an emoji.

    Attributes:
        code: code points in hex, joined by "-", without the variation selector.
        family: `code` without skin, gender and hair: the unit of the splits.
        name: language -> name (CLDR `tts`).
        keywords: language -> other words for it (CLDR `default`).
        group: the Unicode group, such as "animals-nature".
        subgroup: the Unicode subgroup, such as "animal-bird".
    """

    code: str
    family: str
    name: dict[str, str]
    keywords: dict[str, tuple[str, ...]]
    group: str
    subgroup: str


def code_of(text: str) -> str:
    """'1F408-200D-2B1B-FE0F' or an emoji itself -> '1f408-200d-2b1b'."""
    parts = text.lower().split("-") if text.isascii() else [f"{ord(char):x}" for char in text]
    return "-".join(part.lstrip("0") for part in parts if part != VARIATION_SELECTOR)


def family_of(code: str) -> str:
    """The code points that say what is shown: no skin, gender or hair, nor the joiners they leave behind."""
    parts = [part for part in code.split("-") if part not in SKIN | GENDER | HAIR]
    return re.sub(r"(-200d)+(?=$|-200d)", "", "-".join(parts))


def clean_name(name: str) -> str:
    """CLDR writes "flag: Egypt": people write "flag of Egypt"; typographic quotes become plain ones."""
    name = name.replace("’", "'").replace("“", '"').replace("”", '"').strip()
    head, colon, rest = name.partition(": ")
    return f"{head} of {rest}" if colon and head == "flag" else name.replace(": ", " ")


def read_concepts(tarballs: dict[Package, Tarball]) -> list[Concept]:
    """Every base emoji (no skin tones) that has a name in every language, in Unicode order."""
    annotations: dict[str, dict[str, dict]] = {}
    for language in LANGUAGES:
        plain = tarballs[ANNOTATIONS].json(f"annotations/{language}/annotations.json")
        derived = tarballs[DERIVED].json(f"annotationsDerived/{language}/annotations.json")
        both = plain["annotations"]["annotations"] | derived["annotationsDerived"]["annotations"]
        annotations[language] = {code_of(emoji): entry for emoji, entry in both.items()}
    labels = tarballs[EMOJIBASE].json("meta/groups.json")
    rows = sorted(tarballs[EMOJIBASE].json("en/data.json"), key=lambda row: row.get("order", 1 << 20))
    concepts = []
    for row in rows:
        code = code_of(row["hexcode"])
        entries = {language: annotations[language].get(code, {}) for language in LANGUAGES}
        if "subgroup" not in row or not all("tts" in entry for entry in entries.values()):
            continue
        name = {language: clean_name(entry["tts"][0]) for language, entry in entries.items()}
        keywords = {
            language: tuple(word for word in map(clean_name, entry.get("default", ())) if word != name[language])
            for language, entry in entries.items()
        }
        group, subgroup = labels["groups"][str(row["group"])], labels["subgroups"][str(row["subgroup"])]
        concepts.append(Concept(code, family_of(code), name, keywords, group, subgroup))
    return concepts


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("'", "")).strip("-")


def joined(name: str) -> str:
    """The slug in one word."""
    return slug(name).replace("-", "")


def keys_by_code(tarball: Tarball) -> list[tuple[str, str]]:
    """(code, key) of every icon, in order; none in a set without code points."""
    named = tarball.json("chars.json") if "chars.json" in tarball.names else {}
    return [(code_of(chars), key) for chars, key in sorted(named.items())]


def icon_keys(style: Style, concepts: list[Concept], tarballs: dict[Package, Tarball]) -> dict[str, str]:
    """code -> the icon's key in the style's package, for every concept that the style has drawn.

    Sets without a `chars.json` are matched by name: first by the key that the sister sets use, then by the CLDR name.
    """
    tarball = tarballs[style.package]
    codes = {concept.code for concept in concepts}
    if "icons.json" not in tarball.names:
        assets = (
            (name, code_of(name.removeprefix("assets/").removesuffix(".webp")))
            for name in sorted(tarball.names)
            if name.endswith(".webp")
        )
        return {code: name for name, code in assets if code in codes}
    icons = tarball.json("icons.json")["icons"]
    keys = dict(keys_by_code(tarball))
    if not keys:
        for other in STYLES:
            keys = {code: key for code, key in keys_by_code(tarballs[other.package]) if key in icons} | keys
        keys |= {c.code: key for c in concepts if c.code not in keys and (key := slug(c.name["en"])) in icons}
    return {code: key for code, key in keys.items() if code in codes and key in icons}


# Icons of extra styles that go by other words than any list of names has; and those whose words mean another thing.
CALLED = {
    "catside": "cat",
    "dogside": "dog",
    "bunny": "rabbit face",
    "bunnyside": "rabbit",
    "dragonhead": "dragon face",
    "dragonside": "dragon",
    "dromedarycamel": "camel",
    "bactriancamel": "two-hump camel",
    "frontfacingchick": "front-facing baby chick",
    "doveofpeace": "dove",
    "hampster": "hamster",
    "chilipepper": "hot pepper",
    "friedshrimp": "fried shrimp",
    "bouquetofflowers": "bouquet",
    "evergreen": "evergreen tree",
}
MISNAMED = {"bow", "sunglasses", "turkey"}  # a ribbon, a face with glasses, a flag
SHORT_NAMES = ("cldr", "emojibase", "emojibase-legacy", "github", "iamcal", "joypixels")


def extra_icons(style: Style, concepts: list[Concept], tarballs: dict[Package, Tarball]) -> dict[str, str]:
    """The icon's key -> code, for a set without code points: a concept may have several drawings ("cactus-2").

    Keys are compared, without hyphens, with the CLDR names, the keys of other sets, and emojibase's short names.
    """
    drawings: dict[str, list[str]] = {}
    for key in tarballs[style.package].json("icons.json")["icons"]:
        if key not in MISNAMED:
            drawings.setdefault(joined(re.sub(r"-\d$", "", key)), []).append(key)
    spoken = {joined(concept.name["en"]): concept.code for concept in concepts}
    called = {key: spoken[word] for key, name in CALLED.items() if (word := joined(name)) in spoken}
    listed = [pair for other in STYLES for pair in keys_by_code(tarballs[other.package])]
    for name in SHORT_NAMES:
        if (file := f"en/shortcodes/{name}.json") in tarballs[EMOJIBASE].names:
            for chars, words in sorted(tarballs[EMOJIBASE].json(file).items()):
                listed += [(code_of(chars), word) for word in ([words] if isinstance(words, str) else words)]
    out: dict[str, str] = {}
    wanted = {concept.code for concept in concepts}
    for word, code in [*called.items(), *spoken.items(), *((joined(key), code) for code, key in listed)]:
        if code in wanted and word in drawings:
            out |= dict.fromkeys(drawings.pop(word), code)
            wanted.remove(code)
    return out


def svg(style: Style, key: str, tarballs: dict[Package, Tarball]) -> str:
    """The icon as a whole SVG document."""
    icons = tarballs[style.package].json("icons.json")
    icon = icons["icons"][key]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}">{icon["body"]}</svg>'
