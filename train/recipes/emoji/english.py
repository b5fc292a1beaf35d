"""English names: which take no article."""

import re

from cm3.tasks.wording import SINGULAR, article

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


def with_article(name: str) -> str:
    """ "apple" -> "an apple", "unicorn" -> "a unicorn", "hourglass" -> "an hourglass". Plurals, what is not counted and
    names that begin in capitals stay bare."""
    last = re.split(" (?:of|with|in|on) ", name)[0].split(" ")[-1]  # "glass" of "a glass of milk"
    plural = last.endswith("s") and not last.endswith(("ss", *SINGULAR))
    if name[:1].isupper() or plural or last in BARE:
        return name
    return f"{article(name)} {name}"
