"""A lexicon: English names in place of names in languages that a model does not read.

lexicon.tsv in the model folder has a line "name<TAB>English name with its article" for each name, in lower case.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

LEXICON = "lexicon.tsv"
MOST_WORDS = 6  # of a name that is found inside a text
# At the beginning of a German, French, Spanish, Italian, Portuguese or Dutch name; names are read without them.
ARTICLE = re.compile(
    r"\A\s*(?:(?:ein|eine|der|die|das|un|une|una|le|la|les|el|los|las|il|lo|um|uma|een|het)\s+|l['’])(?=\S)",
    re.IGNORECASE,
)
MARKS = ".,;:!?\"'()،؛؟。、！？"


class Lexicon:
    """English names of things.

    Args:
        names: names in other languages, in lower case -> English names.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self.names = dict(names or {})

    @classmethod
    def load(cls, folder: Path) -> "Lexicon":
        """The lexicon of a model folder; an empty one where it has none.

        Raises:
            ValueError: a line has no tabulator.
        """
        path = folder / LEXICON
        if not path.is_file():
            return cls()
        pairs = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
        if not all(len(pair) == 2 for pair in pairs):
            raise ValueError(f"{path} is damaged (a line is no pair of names): fetch it again, or delete it")
        return cls(dict(pairs))

    def save(self, folder: Path) -> None:
        """Write the lexicon into a model folder, unless it is empty."""
        if self.names:
            lines = [f"{name}\t{english}\n" for name, english in sorted(self.names.items())]
            (folder / LEXICON).write_text("".join(lines), "utf-8")

    def translated(self, text: str) -> str:
        """A text that the model can read.

        Args:
            text: a prompt.

        Returns:
            The English name for a text that is a name; the English names before a text that has names among other
            words; any other text unchanged, but for an article at its beginning.
        """
        if not self.names:
            return text
        text = ARTICLE.sub("", text)
        whole = " ".join(text.casefold().split()).strip(MARKS)
        if whole in self.names:
            return self.names[whole]
        found = list(dict.fromkeys(self._found([word.strip(MARKS) for word in whole.split()])))
        return ", ".join([*found, text]) if found else text

    def _found(self, words: list[str]) -> Iterator[str]:
        """The English names of the longest names in a text, from left to right."""
        first = 0
        while first < len(words):
            for last in range(min(first + MOST_WORDS, len(words)), first, -1):
                if english := self.names.get(" ".join(words[first:last])):
                    yield english
                    first = last
                    break
            else:
                first += 1
