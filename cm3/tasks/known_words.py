"""Normalisation of prompts to the words and names of a model's training data. A prompt that names something unknown
draws something else, and a known thing in another spelling is drawn less often.

Files in the model folder hold the words. Without them, prompts are only stripped and brought to Unicode's NFKC:

    known_words.txt    a word a line, spelt as it was read; and marks that ended texts
    known_names.txt    a name a line, in English, as prompts say it: "a cat", "bread"
    lexicon.tsv        names in other languages, with their English names (lexicon.py)
"""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from cm3.tasks.lexicon import Lexicon
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
    """The words and names of a model's training data; without any, nothing is known about it.

    Args:
        words: words as they are spelt, or texts; of a text also the punctuation at its end.
        names: names of things in English, as prompts say them: "a cat", "bread".
        lexicon: English names for names in languages that the model does not read.
    """

    def __init__(self, words: Iterable[str] = (), names: Iterable[str] = (), lexicon: Lexicon | None = None) -> None:
        texts = [VOWEL_SIGNS.sub("", text) for text in words]
        self.spellings = frozenset(word for text in texts for word in WORD.findall(text))
        self.words = frozenset(word for text in texts for word in words_of(text))
        self.marks = frozenset(mark for text in texts if (found := MARKS.search(text)) for mark in found[0])
        self.names = Names(names)
        self.lexicon = lexicon or Lexicon()

    @classmethod
    def read(cls, texts: Iterable[str], names: Iterable[str] = ()) -> "KnownWords":
        """Collect the words of training texts. The capital at the beginning of a sentence is no spelling of its word,
        unless the word is never spelt otherwise."""
        inner, first, marks = set[str](), set[str](), set[str]()
        for text in texts:
            plain_text = VOWEL_SIGNS.sub("", text)
            starts = {match.start(1) for match in FIRST.finditer(plain_text)}
            for match in WORD.finditer(plain_text):
                (first if match.start() in starts else inner).add(match[0])
            marks |= set(found[0]) if (found := MARKS.search(plain_text.rstrip())) else set()
        return cls((*inner, *(word for word in first if word.lower() not in inner | (first - {word})), *marks), names)

    def after(self, texts: Iterable[str]) -> "KnownWords":
        """The words after further training with these texts. Names that the texts spell otherwise are left out: the
        texts count from then on."""
        texts = list(texts)
        new = KnownWords.read(texts)
        words = (*self.spellings, *self.marks, *new.spellings, *new.marks)
        return KnownWords(words, self.names.without(text.lower() for text in texts).names, self.lexicon)

    @classmethod
    def load(cls, folder: Path) -> "KnownWords":
        """Load the words of a model folder; none where it has no files of them."""
        files = (folder / KNOWN_WORDS, folder / KNOWN_NAMES)
        words, names = (file.read_text("utf-8").splitlines() if file.is_file() else [] for file in files)
        return cls(words, [name for name in names if name.strip()], Lexicon.load(folder))

    def save(self, folder: Path) -> None:
        """Write the words into a model folder."""
        for file, lines in ((KNOWN_WORDS, sorted(self.spellings | self.marks)), (KNOWN_NAMES, self.names.names)):
            if lines:
                (folder / file).write_text("".join(f"{line}\n" for line in lines), "utf-8")
        self.lexicon.save(folder)

    def normal(self, prompt: str) -> str:
        """Normalise a prompt: "A CAT!" -> "a cat". Words in quotes stay, and so do spellings and final punctuation of
        the training data. Names in languages that the model does not read become English ones."""
        text = plain(prompt)
        if not QUOTED.search(text):
            text = self.lexicon.translated(text)
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
        """The words of the text that the training data lacks, in their order; none where nothing is known."""
        return [word for word in dict.fromkeys(words_of(text)) if self.words and not self._knows(word)]

    def _knows(self, word: str) -> bool:
        """Whether the word itself is known, or the word with another ending or article."""
        forms = [
            word,
            f"{word}s",
            *(word.removesuffix(end) for end in ("s", "es")),
            word.removeprefix(ARTICLE),
            ARTICLE + word,
        ]
        return any(form in self.words for form in forms)
