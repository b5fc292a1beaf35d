"""The concepts that the model draws: their names in every language, and what else people call them."""

import json
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from train.recipes.emoji.concepts import family_of
from train.recipes.emoji.dataset import is_drawn
from train.recipes.emoji.english import with_article

SYNONYMS = Path(__file__).with_name("synonyms.txt")
HELD_OUT = Path(__file__).with_name("held_out_concepts.txt")


ONE_IN = 10  # combinations are held out


def held_out(*words: str) -> bool:
    """Whether training never sees this combination: of a name and a paint, of two names in a scene, of a language and a
    name. The order of the words counts."""
    return zlib.crc32("|".join(words).encode()) % ONE_IN == 0


@dataclass(frozen=True)
class Named:
    """One concept.

    Attributes:
        code: code points.
        names: language -> name.
        others: other English words for it.
        subgroup: the Unicode subgroup.
    """

    code: str
    names: dict[str, str]
    others: tuple[str, ...]
    subgroup: str

    @property
    def name(self) -> str:
        """English name, as plans have it, without an article."""
        return self.names["en"]

    @cached_property
    def a(self) -> str:
        """English name with its article: "a cat"."""
        return with_article(self.name)


def read_synonyms(path: Path = SYNONYMS) -> dict[str, tuple[str, ...]]:
    """English name -> other words for it.

    Raises:
        ValueError: a word that stands for two concepts.
    """
    out: dict[str, list[str]] = defaultdict(list)
    owner: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, colon, words = line.partition(": ")
        if line.startswith("#") or not colon:
            continue
        for word in words.split(", "):
            if owner.setdefault(word, name) != name:
                raise ValueError(f"{path.name}: {word!r} stands for {owner[word]!r} and for {name!r}")
            out[name].append(word)
    return {name: tuple(dict.fromkeys(words)) for name, words in out.items()}


class World:
    """All drawn concepts that training may see, and the held-out ones.

    Args:
        rows: of names.json.
    """

    def __init__(self, rows: Sequence[dict[str, Any]]):
        synonyms = read_synonyms()
        drawn = [row for row in rows if is_drawn(row)]
        spoken = {row["name"]["en"].lower() for row in drawn}
        seldom = {family_of(line.split()[0]) for line in HELD_OUT.read_text().splitlines() if not line.startswith("#")}
        self.concepts: dict[str, Named] = {}
        self.held_out: dict[str, Named] = {}
        for row in drawn:
            others = tuple(word for word in synonyms.get(row["name"]["en"], ()) if word.lower() not in spoken)
            named = Named(row["code"], row["name"], others, row["subgroup"])
            (self.held_out if row["family"] in seldom else self.concepts)[named.code] = named

    @classmethod
    def read(cls, data: Path) -> "World":
        return cls(json.loads((data / "names.json").read_text(encoding="utf-8")))

    @cached_property
    def by_name(self) -> dict[str, Named]:
        """English name -> concept."""
        return {one.name: one for one in self.concepts.values()}

    @cached_property
    def by_a(self) -> dict[str, Named]:
        """English name with its article, as plans have it -> concept, the held-out ones too."""
        return {one.a: one for one in (*self.concepts.values(), *self.held_out.values())}

    @cached_property
    def by_subgroup(self) -> dict[str, list[Named]]:
        out: dict[str, list[Named]] = defaultdict(list)
        for one in self.concepts.values():
            out[one.subgroup].append(one)
        return dict(out)
