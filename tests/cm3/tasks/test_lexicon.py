"""The lexicon: names in languages that a model does not read."""

from pathlib import Path

import pytest

from cm3 import CM3
from cm3.hf.model_folder import write_checksums
from cm3.tasks.known_words import KnownWords
from cm3.tasks.lexicon import LEXICON, Lexicon

NAMES = {"kissa": "a cat", "koira": "a dog", "punainen omena": "a red apple", "omena": "an apple", "មឹក": "an octopus"}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("kissa", "a cat"),
        ("  KISSA! ", "a cat"),
        ("មឹក", "an octopus"),
        ("iso kissa", "a cat, iso kissa"),
        ("kissa ja koira", "a cat, a dog, kissa ja koira"),
        ("Kissa, kissa, koira.", "a cat, a dog, Kissa, kissa, koira."),
        ("syö punainen omena", "a red apple, syö punainen omena"),
        ("a cat", "a cat"),
        ("kissat", "kissat"),
        ("ein Haus", "Haus"),
        ("L’éléphant", "éléphant"),
        ("une kissa", "a cat"),
        ("la", "la"),
        ("undone", "undone"),
        ("", ""),
    ],
)
def test_names_become_english(text: str, read: str):
    assert Lexicon(NAMES).translated(text) == read


def test_quoted_words_stay():
    words = KnownWords(["a sign that says"], lexicon=Lexicon(NAMES))
    assert words.normal('a sign that says "kissa"') == 'a sign that says "kissa"'
    assert words.normal("KISSA") == "a cat"
    assert words.after(["a house"]).normal("koira") == "a dog"


def test_the_lexicon_is_saved_with_the_model(tiny: CM3, tmp_path: Path):
    model = CM3(tiny.model, tiny.text_tokenizer, tiny.image_tokenizer, known_words=KnownWords(lexicon=Lexicon(NAMES)))
    model.save_pretrained(tmp_path / "model")
    assert CM3.from_pretrained(tmp_path / "model").normal_prompt("Kissa") == "a cat"
    (tmp_path / "model" / LEXICON).write_text("kissa a cat\n")
    write_checksums(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{LEXICON} is damaged"):
        CM3.from_pretrained(tmp_path / "model")


def test_a_model_without_a_lexicon_writes_none(tmp_path: Path):
    KnownWords(["a cat"]).save(tmp_path)
    assert not (tmp_path / LEXICON).exists()
