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


def head(name: str) -> str:
    """The word that says what it is: "glass" of "glass of milk"."""
    return re.split(" (?:of|with|in|on) ", name)[0].split(" ")[-1]


def with_article(name: str) -> str:
    """ "apple" -> "an apple", "unicorn" -> "a unicorn", "hourglass" -> "an hourglass". Plurals, what is not counted and
    names that begin in capitals stay bare."""
    last = head(name)
    plural = last.endswith("s") and not last.endswith(("ss", *SINGULAR))
    if name[:1].isupper() or plural or last in BARE:
        return name
    return f"{article(name)} {name}"
