"""English of names: articles, plurals, and the names in a text as a list has them."""

import re
from collections.abc import Iterable
from functools import cached_property

# Arabic letters that are spelt in several ways, and the article.
ARABIC = str.maketrans({"أ": "ا", "إ": "ا", "آ": "ا", "ى": "ي", "ة": "ه", "ـ": None})
ARTICLE = "ال"
SINGULAR = ("bus", "cactus", "octopus", "hippopotamus", "rhinoceros", "lotus", "walrus", "lens", "iris")
PLURALS = {
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "bison": "bison",
    "moose": "moose",
    "mouse": "mice",
    "goose": "geese",
    "ox": "oxen",
    "tooth": "teeth",
    "foot": "feet",
    "leaf": "leaves",
    "loaf": "loaves",
    "wolf": "wolves",
    "knife": "knives",
    "die": "dice",
    "child": "children",
    "cactus": "cacti",
    "shrimp": "shrimp",
    "squid": "squid",
    "aircraft": "aircraft",
}
ADJECTIVES = (
    *("black", "white", "grey", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
    *("big", "large", "huge", "small", "little", "tiny", "old", "new", "young", "cute", "happy"),
)
NUMBERS = set(
    "two three four five six seven eight nine ten eleven twelve dozen hundred many several some few both all more most "
    "these those no".split()
)
PLACES = set("and or with in into on at by near under above below beside behind between over inside".split())
OPENERS = PLACES | {"draw", "paint", "show", "add", "put"}  # a name may follow
CLOSERS = PLACES | {"of", "left", "right", "to", "from", "next", "is", "that"}  # a name has ended
IMAGE_WORDS = {"picture", "image", "drawing", "photo", "sketch", "icon", "emoji"}  # "of" what
BEFORE = re.compile(rf"(?:\b(?:{'|'.join(ADJECTIVES)})\s+)*$")
LAST = re.compile(r"(?:([\w'-]+)\s+)?([\w'-]+)\s*$")  # one or two words
NEXT = re.compile(r"\s*([\w'-]*)")


def article(words: str) -> str:
    """ "a" or "an", as the words begin: "an hourglass", "a unicorn"."""
    silent = words.startswith(("hour", "honest", "heir"))
    spoken = words.startswith(("uni", "use", "eu", "one", "ewe"))
    return "an" if silent or (words[:1] in "aeiou" and not spoken) else "a"


def plural(name: str) -> str:
    """ "cat" -> "cats", "glass of milk" -> "glasses of milk", "mouse" -> "mice"; plurals stay as they are."""
    head, *rest = re.split("( (?:of|with|in|on|and|behind) )", name, maxsplit=1)
    *before, last = head.split(" ")
    if last in PLURALS:
        last = PLURALS[last]
    elif last.endswith("s") and not last.endswith(("ss", *SINGULAR)):
        pass
    elif last.endswith("y") and last[-2:-1] not in ("a", "e", "i", "o", "u"):
        last = last[:-1] + "ies"
    elif last.endswith(("s", "x", "ch", "sh")) or last in ("tomato", "potato", "volcano", "mango"):
        last += "es"
    else:
        last += "s"
    return " ".join([*before, last]) + "".join(rest)


def plurals(name: str) -> set[str]:
    """How several of it may be written: "glass of milk" -> "glasses of milk" and "glasss of milk"."""
    head, *rest = re.split("( of | with | in | on )", name, maxsplit=1)
    before, space, last = head.rpartition(" ")
    forms = {f"{last}s", f"{last}es", PLURALS.get(last, f"{last}s")}
    if last.endswith("y"):
        forms.add(f"{last[:-1]}ies")
    if last.endswith(("f", "fe")):
        forms.add(f"{last.removesuffix('e')[:-1]}ves")
    return {f"{before}{space}{form}{''.join(rest)}" for form in forms}


class Names:
    """Names as a model was taught them, each with its article where it takes one: "a cat", "bread"."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = tuple(dict.fromkeys(names))

    @cached_property
    def bare(self) -> dict[str, str]:
        """The name in small letters, without its article -> the name."""
        return {re.sub("^an? ", "", name).lower(): name for name in self.names}

    @cached_property
    def several(self) -> dict[str, str]:
        """Plural -> the bare name; none of what is itself a name."""
        return {form: name for name in self.bare for form in plurals(name) if form not in self.bare}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = sorted((*self.bare, *self.several), key=len, reverse=True)
        return re.compile(rf"(?<![\w'-])(?:{'|'.join(map(re.escape, words))})(?![\w'-])")

    def put(self, text: str) -> str:
        """The text, in small letters, with one thing for several where no number stands before it, and with an article
        where a name that takes one has none: "cats and blue car" -> "a cat and a blue car"."""
        if not self.names:
            return text
        out, end = "", 0
        for match in self._pattern.finditer(text):
            out = self._joined(out + text[end : match.start()], match[0], text[match.end() :])
            end = match.end()
        return out + text[end:]

    def without(self, texts: Iterable[str]) -> "Names":
        """The names that no text, in small letters, puts otherwise."""
        other = set[str]()
        for text in texts if self.names else ():
            if self.put(text) != text:
                other |= {self.several.get(match[0], match[0]) for match in self._pattern.finditer(text)}
        return Names(name for bare, name in self.bare.items() if bare not in other)

    def _joined(self, before: str, word: str, behind: str) -> str:
        """What stands before the name, and the name."""
        found = BEFORE.search(before)
        assert found is not None  # it may be empty
        head, adjectives = before[: found.start()], found[0]
        last = LAST.search(head)
        leading = last[2] if last else ""
        of_image = leading == "of" and last is not None and last[1] in IMAGE_WORDS
        if leading in NUMBERS or leading.isdecimal() or (leading == "of" and not of_image):
            return before + word
        name = self.bare[self.several.get(word, word)]
        bare = re.sub("^an? ", "", name)
        following = NEXT.match(behind)
        ended = word in self.several or following is None or not following[1] or following[1] in CLOSERS
        if bare == name or not ended or not (not leading or leading in OPENERS or of_image):
            return before + bare
        words = adjectives + bare
        return f"{head}{article(words)} {words}"
