"""What may be drawn and shown: filters of prompts and of images, as plug-ins of the server. None are on by default.

    safety = Safety(prompts=[BlockList.read("blocked.txt")], images=[my_classifier])

A prompt filter has `refuses(text)`, an image filter `refuses(image)`; either gives the category for which it
refuses, or None. A refusal names the category alone: neither logs nor answers repeat what people wrote.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from cm3.tasks.wording import ARABIC, ARTICLE


class PromptFilter(Protocol):
    def refuses(self, text: str) -> str | None: ...


class ImageFilter(Protocol):
    def refuses(self, image: Image.Image) -> str | None: ...


class Refusal(ValueError):
    """A filter said no. category: for what."""

    def __init__(self, what: str, category: str) -> None:
        super().__init__(f"the {what} is refused: {category}")
        self.category = category


@dataclass(frozen=True)
class Safety:
    """The filters of a service, asked one after the other."""

    prompts: Sequence[PromptFilter] = ()
    images: Sequence[ImageFilter] = ()

    def check_prompt(self, *texts: str) -> None:
        """Errors: Refusal. Texts are looked at one by one and all together."""
        for text in (*texts, " ".join(texts)):
            for one in self.prompts:
                if (category := one.refuses(text)) is not None:
                    raise Refusal("prompt", category)

    def check_images(self, images: Iterable[Image.Image]) -> None:
        """Errors: Refusal."""
        for image in images:
            for one in self.images:
                if (category := one.refuses(image)) is not None:
                    raise Refusal("image", category)


# Letters of other alphabets, digits and signs that are taken for Latin ones
LOOK_ALIKE = str.maketrans(
    "авекмнорстухіјѕԁһɡοαενικρτυχ0134578@$!|€i",
    "abekmhopctyxljsdhgoaevlkptuxoleastbasllel",
)


class BlockList:
    """Refuses prompts with any of the terms, by category, however they are spelled: case, accents, letters that look
    alike, digits for letters, letters drawn out or set apart, invisible characters, Arabic vowel signs and articles.
    It knows no translation: list a term in each language. Whole words only, so that "Scunthorpe" passes.

    Errors: ValueError for a term without letters."""

    def __init__(self, terms: Mapping[str, Iterable[str]]) -> None:
        self.terms: dict[tuple[str, ...], str] = {}
        for category, some in terms.items():
            for term in some:
                words = tuple(plain_words(term))
                if not words:
                    raise ValueError(f"the block list's term {term!r} has no letters")
                self.terms[words] = category
        self.longest = max(map(len, self.terms), default=0)

    @classmethod
    def read(cls, path: str | Path) -> "BlockList":
        """A line is "category: term", or a term alone; lines that begin with # say something to people."""
        terms: dict[str, list[str]] = {}
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                category, colon, term = line.partition(":")
                terms.setdefault(category.strip() if colon else "blocked", []).append(term if colon else category)
        return cls(terms)

    def refuses(self, text: str) -> str | None:
        return self._found(plain_words(text)) or self._found(plain_words(JOINS.sub("", text)))

    def _found(self, words: Sequence[str]) -> str | None:
        for start in range(len(words)):
            for length in range(1, self.longest + 1):
                if (category := self.terms.get(tuple(words[start : start + length]))) is not None:
                    return category
        for letters in set_apart(words):
            for term, category in self.terms.items():
                if "".join(term) in letters:
                    return category
        return None


JOINS = re.compile(r"[-‐-―._*'’~+]")  # what may stand inside a word
UNSEEN = ("Mn", "Me", "Cf", "Cc")  # accents and vowel signs, what has no width
WORD = re.compile(r"(?:[@$!|€]*[^\W_])+[@$€]*")


def plain_words(text: str) -> list[str]:
    """The words of a text without what tricks of spelling change."""
    text = "".join(char for char in unicodedata.normalize("NFKD", text) if unicodedata.category(char) not in UNSEEN)
    return [plain(word) for word in WORD.findall(text.casefold().translate(ARABIC))]


def plain(word: str) -> str:
    """With Latin letters for what looks like them, no letter twice in a row, no plural, no Arabic article."""
    if any(char.isalpha() for char in word):
        word = word.translate(LOOK_ALIKE)
    word = re.sub(r"(.)\1+", r"\1", word)
    word = word.removesuffix("s") if len(word) > 3 else word
    return word.removeprefix(ARTICLE) if len(word) > len(ARTICLE) + 1 else word


def set_apart(words: Sequence[str]) -> list[str]:
    """Letters that stand alone, three or more in a row, put together."""
    runs = "".join(word if len(word) == 1 else " " for word in words).split()
    return [re.sub(r"(.)\1+", r"\1", run) for run in runs if len(run) > 2]


class NudeDetector(Protocol):
    """What NudityFilter asks of NudeNet: pixels [H, W, 3] uint8, blue first -> class and score of each part seen."""

    def detect(self, image_path: Any) -> list[dict[str, Any]]: ...


class NudityFilter:
    """Refuses images in which NudeNet (extra `nudenet`: a detector of 320 pixels that comes with its package, for
    photographs; of its licence see docs/server.md) finds exposed private parts or breasts.

    threshold: of the detector's confidence, above 0 and below 1. detector: another with NudeNet's `detect`.
    Errors: ImportError without the extra; ValueError for a threshold outside its limits."""

    CATEGORY = "nudity"
    EXPOSED = {
        f"{part}_EXPOSED" for part in ("BUTTOCKS", "FEMALE_BREAST", "FEMALE_GENITALIA", "MALE_GENITALIA", "ANUS")
    }

    def __init__(self, threshold: float = 0.4, detector: NudeDetector | None = None) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be above 0 and below 1, but is {threshold}")
        if detector is None:
            from nudenet import NudeDetector as Detector  # pyright: ignore

            detector = cast(NudeDetector, Detector())
        self.threshold, self.detector = threshold, detector

    def refuses(self, image: Image.Image) -> str | None:
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])  # as OpenCV has them: BGR
        found = self.detector.detect(pixels)
        sure = {one["class"] for one in found if one["score"] >= self.threshold}
        return self.CATEGORY if sure & self.EXPOSED else None
