"""Build the lexicon of the embedded model: names in the languages of CLDR that it does not read -> English names.

    python -m train.recipes.emoji.build_lexicon --data data/emoji [--packages DIR]

Writes lexicon.tsv into the data folder; cm3/tasks/lexicon.py says how it is used. Left out are names that mean
different things in different languages, and names with a word that the model reads in one of its own languages.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3.tasks.lexicon import Lexicon
from train.recipes.emoji.concepts import clean_name, code_of
from train.recipes.emoji.packages import ANNOTATIONS, DERIVED, LANGUAGES, Tarball, fetch
from train.recipes.emoji.world import World

LEAST = 0.5  # share of the concepts that a language has names for
FOLDER = re.compile(r"annotations/([^/]+)/annotations.json")
WORD = re.compile(r"[^\W\d_]+")


def lexicon(
    names: Mapping[str, Mapping[str, str]], english: Mapping[str, str], read: Set[str]
) -> tuple[dict[str, str], list[str]]:
    """Join the names of several languages.

    Args:
        names: language -> code points of a concept -> name.
        english: code points -> English name, with its article.
        read: words that the model reads.

    Returns:
        Names in lower case -> English names; and the languages that were used.
    """
    meanings: dict[str, set[str]] = defaultdict(set)
    used: list[str] = []
    for language, own in sorted(names.items()):
        known = {code: own[code] for code in english if code in own}
        if len(known) < LEAST * len(english):
            continue
        used.append(language)
        for code, name in known.items():
            meanings[" ".join(name.casefold().split())].add(english[code])
    return {
        name: next(iter(found))
        for name, found in sorted(meanings.items())
        if len(found) == 1 and not read & set(WORD.findall(name)) and len(name) > 1
    }, used


def words_of(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in WORD.findall(text.casefold())}


def foreign_names(annotations: Tarball, derived: Tarball) -> dict[str, dict[str, str]]:
    """The names of every language of CLDR but those that the model reads: language -> code points -> name."""
    out: dict[str, dict[str, str]] = {}
    for path in sorted(annotations.names):
        found = FOLDER.fullmatch(path)
        if found is None or found[1].split("-")[0] in LANGUAGES:
            continue
        entries: dict[str, Any] = dict(annotations.json(path)["annotations"].get("annotations", {}))
        other = f"annotationsDerived/{found[1]}/annotations.json"
        if other in derived.names:
            entries |= derived.json(other)["annotationsDerived"].get("annotations", {})
        out[found[1]] = {
            code_of(emoji): clean_name(entry["tts"][0]) for emoji, entry in entries.items() if "tts" in entry
        }
    return out


def build(data: Path, packages: Path | None = None) -> dict[str, Any]:
    """Write lexicon.tsv into the data folder. Returns how many names and which languages it has."""
    world = World.read(data)
    rows = json.loads((data / "names.json").read_text(encoding="utf-8"))
    read = words_of(name for row in rows for name in row["name"].values())
    read |= words_of(word for row in rows for some in row["keywords"].values() for word in some)
    folder = packages or data / "cache" / "packages"
    annotations, derived = (Tarball(fetch(one, folder), languages=None) for one in (ANNOTATIONS, DERIVED))
    names, used = lexicon(
        foreign_names(annotations, derived), {code: one.a for code, one in world.concepts.items()}, read
    )
    Lexicon(names).save(data)
    return {"names": len(names), "languages": used}


def main(
    data: Annotated[Path, typer.Option(help="of train.recipes.emoji.build_dataset")] = Path("data/emoji"),
    packages: Annotated[Path | None, typer.Option(help="folder with the packages' tarballs")] = None,
) -> None:
    try:
        print(json.dumps(build(data, packages)))
    except (ValueError, OSError) as error:
        raise SystemExit(f"build_lexicon: {error}") from None


if __name__ == "__main__":
    typer.run(main)
