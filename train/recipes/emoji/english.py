"""English of names: which take no article, and which end with s and are one."""

import re

from cm3.tasks.wording import article

# Names that take no article: what is not counted, and plurals without an s.
BARE = {
    "bacon",
    "blood",
    "bread",
    "broccoli",
    "butter",
    "candy",
    "cheese",
    "clothing",
    "construction",
    "cooking",
    "corn",
    "dango",
    "falafel",
    "food",
    "garlic",
    "green",
    "hockey",
    "lacrosse",
    "tennis",
    "badminton",
    "bowling",
    "mail",
    "mate",
    "meat",
    "milk",
    "money",
    "oden",
    "people",
    "pong",
    "popcorn",
    "rice",
    "sake",
    "salt",
    "shrimp",
    "sushi",
    "squid",
    "tea",
    "wind",
    "music",
    "paper",
}


SINGULAR = ("bus", "cactus", "octopus", "hippopotamus", "rhinoceros", "lotus", "walrus", "lens", "iris")


def with_article(name: str) -> str:
    """ "apple" -> "an apple", "unicorn" -> "a unicorn", "hourglass" -> "an hourglass". Plurals, what is not counted and
    names that begin in capitals stay bare."""
    last = re.split(" (?:of|with|in|on) ", name)[0].split(" ")[-1]  # "glass" of "a glass of milk"
    plural = last.endswith("s") and not last.endswith(("ss", *SINGULAR))
    if name[:1].isupper() or plural or last in BARE:
        return name
    return f"{article(name)} {name}"


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
