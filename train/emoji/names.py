"""What captions call things: names, and keywords in their place."""

from collections import defaultdict

from cm3.english import plurals
from cm3.templates import LANGUAGES
from train.emoji.english import with_article
from train.emoji.phrases import Facts


def aliases_of(rows: list[Facts], max_sharing: int) -> dict[tuple[str, str], list[str]]:
    """(code, language) -> keywords that name this concept and few others."""
    owners: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        for language in LANGUAGES:
            for word in row["keywords"][language]:
                owners[language, word].add(row["code"])
    out: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for language in LANGUAGES:
            words = [word for word in row["keywords"][language] if len(owners[language, word]) <= max_sharing]
            out[row["code"], language] = words
    return out


def prompt_names(rows: list[Facts], max_sharing: int) -> list[str]:
    """The English names and keywords that captions have, each with its article, for known_names.txt: "a cat". A keyword
    that is the plural of another word is left out."""
    names = {row["name"]["en"] for row in rows}
    aliases = aliases_of(rows, max_sharing)
    words = {word for row in rows for word in aliases[row["code"], "en"]}
    several = {form for word in names | words for form in plurals(word)}
    return sorted(map(with_article, names | (words - several)), key=str.lower)
