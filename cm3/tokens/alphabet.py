"""Which text ids may follow in a text of one language: those whose letters belong to its script.

A byte-level tokenizer has ids for parts of characters. Such an id is legal if it can become a legal character. Text in
quotes is free, because a name there may be of another language.
"""

import math
import unicodedata
from functools import lru_cache
from typing import NamedTuple

import torch
from tokenizers import pre_tokenizers
from torch import Tensor

from cm3.tokens.text_tokenizer import TextTokenizer

# How the Unicode names of a language's letters begin. Names in many languages keep capitals: "Tシャツ", "ДНК", "DNA".
_CAPITALS = "LATIN CAPITAL"
_HAN = ("CJK", "IDEOGRAPHIC", "FULLWIDTH", _CAPITALS)
SCRIPTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("en", "es", "fr", "de", "it", "pt", "nl", "pl", "tr", "vi", "id", "sw"), ("LATIN",)),
    "ar": ("ARABIC",),
    **dict.fromkeys(("fa", "ur"), ("ARABIC", "EXTENDED ARABIC", _CAPITALS)),
    **dict.fromkeys(("ru", "uk"), ("CYRILLIC", "MODIFIER LETTER APOSTROPHE", _CAPITALS)),
    "he": ("HEBREW", _CAPITALS),
    "hi": ("DEVANAGARI", _CAPITALS),
    "bn": ("BENGALI", "DEVANAGARI DANDA", _CAPITALS),
    "th": ("THAI", _CAPITALS),
    "ko": ("HANGUL", _CAPITALS),
    "zh": _HAN,
    "ja": (*_HAN, "HIRAGANA", "KATAKANA"),
}
# punctuation, digits, symbols, emoji and variation selectors
COMMON = (range(9, 0x300), range(0x2000, 0x2C00), range(0xFE0E, 0xFE10), range(0x1F000, 0x20000))
ACCENTS = range(0x300, 0x370)
QUOTES = {'"': '"', "“": "”", "«": "»"}


def byte_of() -> dict[str, int]:
    """The byte that each character in the name of an id stands for (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
    assert table.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return table


@lru_cache(4096)
def belongs(char: str, script: tuple[str, ...]) -> bool:
    """Whether a text of this script may have the character: its letters and marks, and characters of no script."""
    if unicodedata.name(char, "").startswith(script):
        return True
    letters = [part for part in unicodedata.normalize("NFKD", char) if part.isalpha()]
    if letters:
        return all(unicodedata.name(letter, "").startswith(script) for letter in letters)
    return any(ord(char) in points for points in (*COMMON, *((ACCENTS,) if "LATIN" in script else ())))


@lru_cache(4096)
def may_become(begun: bytes, script: tuple[str, ...]) -> bool:
    """Whether a character that begins with these bytes may be in a text of the script."""
    first = begun[0]
    if first > 0xF0:  # planes without characters
        return False
    length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    left, low = length - len(begun), first & (0xFF >> (length + 1))
    for byte in begun[1:]:
        low = low << 6 | byte & 0x3F
    shortest = {2: 0x80, 3: 0x800, 4: 0x10000}[length]  # the first code point of so many bytes
    points = range(max(low << 6 * left, shortest), min((low + 1) << 6 * left, 0x110000))
    return any(belongs(chr(point), script) for point in points if not 0xD800 <= point < 0xE000)


class Written(NamedTuple):
    """The state of a text.

    Attributes:
        closing: the mark that ends the open quotes; "" outside of quotes.
        begun: bytes of a character that is not complete.
    """

    closing: str = ""
    begun: bytes = b""


class Alphabet:
    """The legal ids of a language.

    Args:
        tokenizer: a byte-level tokenizer.
        language: a key of SCRIPTS.
    """

    def __init__(self, tokenizer: TextTokenizer, language: str) -> None:
        self.script = SCRIPTS[language]
        table = byte_of()
        vocab = tokenizer.tokenizer.get_vocab()
        self.bytes = {id: bytes(table[char] for char in name) for name, id in vocab.items()}
        self.size = max(vocab.values()) + 1
        self.masks: dict[Written, Tensor] = {}

    def follow(self, written: Written, id: int) -> Written | None:
        """The state after an id, counted from 0; None if the id is not legal."""
        closing, data = written.closing, written.begun + self.bytes[id]
        while data:
            length = character(data)
            if length == 0:
                legal = begins_character(data) and (closing or may_become(data, self.script))
                return Written(closing, data) if legal else None
            char, data = data[:length].decode(), data[length:]
            if closing:
                closing = "" if char == closing else closing
            elif char in QUOTES:
                closing = QUOTES[char]
            elif not belongs(char, self.script):
                return None
        return Written(closing)

    def legal(self, written: Written) -> Tensor:  # bool [text ids]
        """True where an id may follow. The tensor is cached; do not write to it."""
        if written not in self.masks:
            legal = [id for id in self.bytes if self.follow(written, id) is not None]
            self.masks[written] = torch.zeros(self.size, dtype=torch.bool).index_fill_(0, torch.tensor(legal), True)
        return self.masks[written]


def character(data: bytes) -> int:
    """Number of bytes of the first character; 0 if it is not complete, or if the bytes are not UTF-8."""
    for length in range(1, min(4, len(data)) + 1):
        try:
            data[:length].decode()
        except UnicodeDecodeError:
            continue
        return length
    return 0


def begins_character(data: bytes) -> bool:
    """Whether further bytes can complete a character."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.end == len(data) and error.reason == "unexpected end of data"
    return False


class Alphabets:
    """The alphabets of a tokenizer, each made when it is first needed."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self._made: dict[str, Alphabet] = {}

    def of(self, language: str | None) -> Alphabet | None:
        """The alphabet of a language; None for no or an unknown language, and if the tokenizer's ids are not bytes of
        the text."""
        if language not in SCRIPTS or self.tokenizer.max_bytes == math.inf:
            return None
        if language not in self._made:
            self._made[language] = Alphabet(self.tokenizer, language)
        return self._made[language]
