"""What captions call things, as prompts say it."""

from cm3.tasks.wording import plurals
from train.emoji.english import head, with_article
from train.emoji.phrases import Facts


def prompt_names(rows: list[Facts]) -> list[str]:
    """The English names of things, each with its article, for known_names.txt: "a cat". Of the keywords those are among
    them that a name ends with, as "car" of "racing car": others may be no nouns."""
    names = {row["name"]["en"] for row in rows}
    keywords = {word for row in rows for word in row["keywords"]["en"]}
    several = {form for name in names | keywords for form in plurals(name)}
    return sorted(map(with_article, names | ({head(name) for name in names} & keywords - several)), key=str.lower)
