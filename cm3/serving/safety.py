"""Safety filters of prompts and images, as plug-ins of the server. None is on by default.

    safety = Safety(prompts=[BlockList.read("blocked.txt")], images=[my_classifier])

A prompt filter has `refuses(text)`, an image filter `refuses(image)`. Both return the category for which they refuse,
or None. Logs and responses name the category alone and do not repeat the prompt.
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
    """A filter refused a prompt or an image.

    Args:
        what: "prompt" or "image".
        category: the filter's category.
    """

    def __init__(self, what: str, category: str) -> None:
        super().__init__(f"the {what} is refused: {category}")
        self.category = category


@dataclass(frozen=True)
class Safety:
    """The filters of a server, applied in order."""

    prompts: Sequence[PromptFilter] = ()
    images: Sequence[ImageFilter] = ()

    def check_prompt(self, *texts: str) -> None:
        """Raise a Refusal if a filter refuses one of the texts, or all of them joined."""
        for text in (*texts, " ".join(texts)):
            for one in self.prompts:
                if (category := one.refuses(text)) is not None:
                    raise Refusal("prompt", category)

    def check_images(self, images: Iterable[Image.Image]) -> None:
        """Raise a Refusal if a filter refuses one of the images."""
        for image in images:
            for one in self.images:
                if (category := one.refuses(image)) is not None:
                    raise Refusal("image", category)


# Homoglyphs of Latin letters: letters of other alphabets, digits and signs.
LOOK_ALIKE = str.maketrans(
    "авекмнорстухіјѕԁһɡοαενικρτυχ0134578@$!|€i",
    "abekmhopctyxljsdhgoaevlkptuxoleastbasllel",
)


class BlockList:
    """A prompt filter that refuses listed terms.

    It recognises a term despite case, accents, homoglyphs, digits for letters, repeated or separated letters, invisible
    characters, Arabic vowel signs and articles. It does not translate: list a term in each language. It matches whole
    words, so that "Scunthorpe" passes.

    Args:
        terms: the terms of each category.

    Raises:
        ValueError: a term has no letters.
    """

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
        """Read a file with a term on each line, as "category: term" or "term". Lines that begin with # are comments."""
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
        for letters in joined_letters(words):
            for term, category in self.terms.items():
                if "".join(term) in letters:
                    return category
        return None


JOINS = re.compile(r"[-‐-―._*'’~+]")  # may stand inside a word
REMOVED = ("Mn", "Me", "Cf", "Cc")  # accents, vowel signs and characters without width
WORD = re.compile(r"(?:[@$!|€]*[^\W_])+[@$€]*")


def plain_words(text: str) -> list[str]:
    """The words of a text, each in its `plain` spelling."""
    text = "".join(char for char in unicodedata.normalize("NFKD", text) if unicodedata.category(char) not in REMOVED)
    return [plain(word) for word in WORD.findall(text.casefold().translate(ARABIC))]


def plain(word: str) -> str:
    """A word with Latin letters in place of homoglyphs, without repeated letters, plural s and Arabic article."""
    if any(char.isalpha() for char in word):
        word = word.translate(LOOK_ALIKE)
    word = re.sub(r"(.)\1+", r"\1", word)
    word = word.removesuffix("s") if len(word) > 3 else word
    return word.removeprefix(ARTICLE) if len(word) > len(ARTICLE) + 1 else word


def joined_letters(words: Sequence[str]) -> list[str]:
    """Runs of three or more single letters, each joined to one word."""
    runs = "".join(word if len(word) == 1 else " " for word in words).split()
    return [re.sub(r"(.)\1+", r"\1", run) for run in runs if len(run) > 2]


class NudeDetector(Protocol):
    """NudeNet's interface: pixels [H, W, 3], uint8 and BGR, to the class and score of each detection."""

    def detect(self, image_path: Any) -> list[dict[str, Any]]: ...


class NudityFilter:
    """An image filter that refuses images in which NudeNet finds exposed private parts or breasts.

    NudeNet (extra `nudenet`) is a detector for photographs; its package has the model for 320 pixels. docs/server.md
    says what is known of its licence.

    Args:
        threshold: confidence from which a detection counts, above 0 and below 1.
        detector: another detector with NudeNet's interface.

    Raises:
        ImportError: NudeNet is not installed.
        ValueError: the threshold is outside its limits.
    """

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
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])  # BGR, as in OpenCV
        found = self.detector.detect(pixels)
        detected = {one["class"] for one in found if one["score"] >= self.threshold}
        return self.CATEGORY if detected & self.EXPOSED else None
