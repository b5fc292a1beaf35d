"""Which words and names a model has read while it was trained: a prompt that names something else draws something
else, and one that says the same in other letters draws it less often.

What prompts are put into is the model folder's to say. Without these files they are only stripped and brought to
Unicode's NFKC:

    known_words.txt    a word a line, spelt as it was read; and marks that ended texts
    known_names.txt    a name a line, in English, as prompts say it: "a cat", "bread"
"""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from cm3.tasks.wording import ARABIC, ARTICLE, Names

WORD = re.compile(r"[^\W\d_]+")
FIRST = re.compile(r"(?:^|[.!?:]\s)[\W\d_]*([^\W\d_]+)")  # words of a sentence
MARKS = re.compile(r"[.!?,;:،؛؟。]+\Z")  # that may end a text
QUOTED = re.compile(r"(\"[^\"]*\"|“[^”]*”|«[^»]*»)")
VOWEL_SIGNS = re.compile("[\u064b-\u0652]")
KNOWN_WORDS, KNOWN_NAMES = "known_words.txt", "known_names.txt"  # the files in a model folder


def words_of(text: str) -> list[str]:
    """Its words, in the one spelling in which they are compared."""
    return WORD.findall(VOWEL_SIGNS.sub("", text).casefold().translate(ARABIC))


def plain(text: str) -> str:
    """Stripped, in Unicode's NFKC."""
    return unicodedata.normalize("NFKC", text).strip()


class KnownWords:
    """What a model has read; nothing = nothing is known about it.

    Args:
        words: as they are spelt, or texts of them; of a text also the mark at its end.
        names: of things, in English, as prompts say them: "a cat", "bread".
    """

    def __init__(self, words: Iterable[str] = (), names: Iterable[str] = ()) -> None:
        texts = [VOWEL_SIGNS.sub("", text) for text in words]
        self.spellings = frozenset(word for text in texts for word in WORD.findall(text))
        self.words = frozenset(word for text in texts for word in words_of(text))
        self.marks = frozenset(mark for text in texts if (found := MARKS.search(text)) for mark in found[0])
        self.names = Names(names)

    @classmethod
    def read(cls, texts: Iterable[str], names: Iterable[str] = ()) -> "KnownWords":
        """Of what a model is trained on. A capital that a sentence begins with is no spelling of its word, unless the
        word is never spelt otherwise."""
        inner, first, marks = set[str](), set[str](), set[str]()
        for text in texts:
            plain_text = VOWEL_SIGNS.sub("", text)
            starts = {match.start(1) for match in FIRST.finditer(plain_text)}
            for match in WORD.finditer(plain_text):
                (first if match.start() in starts else inner).add(match[0])
            marks |= set(found[0]) if (found := MARKS.search(plain_text.rstrip())) else set()
        return cls((*inner, *(word for word in first if word.lower() not in inner | (first - {word})), *marks), names)

    def after(self, texts: Iterable[str]) -> "KnownWords":
        """What a model knows that is trained on with these texts. Names that they put otherwise are left out: what the
        texts say counts from then on."""
        texts = list(texts)
        new = KnownWords.read(texts)
        words = (*self.spellings, *self.marks, *new.spellings, *new.marks)
        return KnownWords(words, self.names.without(text.lower() for text in texts).names)

    @classmethod
    def load(cls, folder: Path) -> "KnownWords":
        """Of a model folder; one without the files knows nothing about words."""
        files = (folder / KNOWN_WORDS, folder / KNOWN_NAMES)
        words, names = (file.read_text("utf-8").splitlines() if file.is_file() else [] for file in files)
        return cls(words, [name for name in names if name.strip()])

    def save(self, folder: Path) -> None:
        """Write what is known into a model folder."""
        for file, lines in ((KNOWN_WORDS, sorted(self.spellings | self.marks)), (KNOWN_NAMES, self.names.names)):
            if lines:
                (folder / file).write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def normal(self, prompt: str) -> str:
        """The prompt as the model knows it best, its words in quotes as they are: "A CAT!" -> "a cat". What the model
        has read in other letters, or with a mark at the end, stays."""
        text = plain(prompt)
        if self.spellings:
            parts = QUOTED.split(" ".join(text.split()))
            parts[::2] = (WORD.sub(self._spelt, part) for part in parts[::2])
            ended = re.sub(MARKS, self._kept, parts[-1]).rstrip()
            text = "".join((*parts[:-1], ended)) or text
        parts = QUOTED.split(text)
        parts[::2] = map(self.names.put, parts[::2])
        return "".join(parts)

    def _spelt(self, word: re.Match[str]) -> str:
        return word[0] if word[0] in self.spellings else word[0].lower()

    def _kept(self, marks: re.Match[str]) -> str:
        return "".join(mark for mark in marks[0] if mark in self.marks)

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
