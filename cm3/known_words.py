"""Which words a model has read while it was trained: a prompt that names something else draws something else."""

import re
from collections.abc import Iterable
from pathlib import Path

from cm3.safety import ARABIC, ARTICLE

WORD = re.compile(r"[^\W\d_]+")
VOWEL_SIGNS = re.compile("[\u064b-\u0652]")
KNOWN_WORDS = "known_words.txt"  # the file in a model folder, a word a line


def words_of(text: str) -> list[str]:
    """Its words, in the one spelling in which they are compared."""
    return WORD.findall(VOWEL_SIGNS.sub("", text).casefold().translate(ARABIC))


class KnownWords:
    """words: those that the captions of the training data had; none = nothing is known about them."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        self.words = frozenset(word for text in words for word in words_of(text))

    @classmethod
    def load(cls, folder: Path) -> "KnownWords":
        """Of a model folder; one without the file knows nothing about words."""
        file = folder / KNOWN_WORDS
        return cls(file.read_text("utf-8").splitlines()) if file.is_file() else cls()

    def save(self, folder: Path) -> None:
        (folder / KNOWN_WORDS).write_text("".join(f"{word}\n" for word in sorted(self.words)), "utf-8")

    def unknown(self, text: str) -> list[str]:
        """The words of the text that were never read, in their order; none where nothing is known."""
        return [word for word in dict.fromkeys(words_of(text)) if self.words and not self._knows(word)]

    def _knows(self, word: str) -> bool:
        """Itself, or with another ending or article."""
        forms = [
            word,
            f"{word}s",
            *(word.removesuffix(end) for end in ("s", "es")),
            word.removeprefix(ARTICLE),
            ARTICLE + word,
        ]
        return any(form in self.words for form in forms)
