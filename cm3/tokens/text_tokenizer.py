"""The text tokenizer: byte-level BPE with the library `tokenizers`.

It has no special tokens, so that text that spells `<break>` or `<image>` stays text. Its ids count from 0; vocab.py
shifts them to their place in the vocabulary.
"""

import hashlib
import math
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

FILE = "tokenizer.json"
# Words with the space before them, numbers, other characters, spaces. Letters keep their marks and joiners; GPT-2's
# pattern cuts Indic and Thai words at each combining mark.
LETTERS = r" ?[\p{L}\p{M}\u200c\u200d]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+"


class TextTokenizer:
    """Byte-level BPE. Every string can be encoded, and is decoded to itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, min_frequency: int = 2, pattern: str | None = None
    ) -> "TextTokenizer":
        """Train a tokenizer. The same texts in the same order give the same tokenizer.

        Args:
            texts: the training texts.
            vocab_size: number of ids at most; at least 256, one for each byte.
            min_frequency: how often a pair has to occur to be merged.
            pattern: regular expression of the pieces that merges do not cross, such as LETTERS; None for GPT-2's.

        Raises:
            ValueError: the vocabulary is too small.
        """
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if vocab_size < len(alphabet):
            raise ValueError(f"vocab_size must be at least {len(alphabet)}, one for each byte, but is {vocab_size}")
        tokenizer = Tokenizer(models.BPE())
        in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        tokenizer.pre_tokenizer = in_bytes
        if pattern is not None:
            split = pre_tokenizers.Split(Regex(pattern), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=min_frequency, show_progress=False, initial_alphabet=sorted(alphabet)
        )
        tokenizer.train_from_iterator((well_formed(text) for text in texts), trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, folder: str | Path) -> "TextTokenizer":
        """Read tokenizer.json.

        Raises:
            ValueError: it is missing or not readable.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"no {FILE} in {folder}: a model folder must hold the text tokenizer")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{path} is not a tokenizer ({error}): fetch the model again") from error

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(Path(folder) / FILE))

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify the tokenizer."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    @cached_property
    def max_bytes(self) -> float:
        """Bytes of text that one id stands for, at most.

        Infinite unless the tokenizer is a byte-level BPE that does not change the text.
        """
        vocab = self.tokenizer.get_vocab()  # each character of an id's name is one byte
        plain = (
            isinstance(self.tokenizer.model, models.BPE)
            and _in_bytes(self.tokenizer.pre_tokenizer)
            and vocab.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
            and not self.tokenizer.get_added_tokens_decoder()
            and self.tokenizer.normalizer is None
            and self.tokenizer.truncation is None  # pyright: ignore[reportUnknownMemberType]
        )
        return max(map(len, vocab)) if plain else math.inf

    def encode(self, text: str) -> list[int]:
        """Encode a text, with ids from 0. A lone surrogate, which UTF-8 cannot encode, becomes U+FFFD."""
        return self.tokenizer.encode(well_formed(text), add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Decode ids. Bytes that are not UTF-8 become U+FFFD."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def _in_bytes(part: object) -> bool:
    """Whether a pre-tokenizer turns text into bytes without loss: GPT-2's, alone or after a split."""
    if isinstance(part, pre_tokenizers.Sequence):
        return all(isinstance(one, pre_tokenizers.Split | pre_tokenizers.ByteLevel) for one in part)  # pyright: ignore
    return isinstance(part, pre_tokenizers.ByteLevel)


def well_formed(text: str) -> str:
    """Replace each lone surrogate by U+FFFD, and each pair of surrogates by its character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
