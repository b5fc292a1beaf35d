"""Texts of one language: which ids have its letters, and that captions hold no others."""

from typing import Any

import pytest
import torch
from PIL import Image

from cm3 import CM3
from cm3.engine.engine import generate_naive
from cm3.engine.options import CaptionOptions
from cm3.tokens.alphabet import SCRIPTS, Alphabet, Alphabets, Written, belongs
from cm3.tokens.text_tokenizer import TextTokenizer

TEXTS = ['a red apple "x" — café', "تفاحة حمراء، × 2", "красное яблоко", "赤いりんご"] * 3
TOKENIZER = TextTokenizer.train(TEXTS, vocab_size=320)
ALPHABETS = {language: Alphabet(TOKENIZER, language) for language in ("en", "ar", "fa", "ru", "he", "ja")}


def follows(alphabet: Alphabet, text: str) -> bool:
    """Whether each id of the text is legal behind those before it."""
    written = Written()
    for id in TOKENIZER.encode(text):
        if not alphabet.legal(written)[id]:
            return False
        after = alphabet.follow(written, id)
        assert after is not None
        written = after
    return True


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("שָ ו־", {"he"}),
        ("a red apple", {"en"}),
        ("café", {"en"}),
        ("تفاحة حمراء", {"ar", "fa"}),
        ("تُفَّاحَة، × ٢", {"ar", "fa"}),
        ("1 × 2 — (3)! 🍎", set(ALPHABETS)),
        ("красное", {"ru"}),
        ("ДНК DNA", {"ru"}),
        ("ДНК dna", set()),
        ("赤い", {"ja"}),
        ("Tシャツ", {"ja"}),
        ("۱۰۰ امتیاز", {"fa"}),
        ("a pinkسيارة", set()),
        ('a sign that says "قطة"', {"en"}),
        ('لافتة مكتوب عليها "STOP"', {"ar", "fa"}),
        ("a “قطة” and «ق»", {"en"}),
        ('a "b" قطة', set()),
    ],
)
def test_a_text_has_the_letters_of_its_language_and_others_in_quotes(text: str, languages: set[str]):
    assert {language for language, alphabet in ALPHABETS.items() if follows(alphabet, text)} == languages


@pytest.mark.parametrize("char", ["ق", "ж", "赤", "é", "×", "—", "🍎"])
@pytest.mark.parametrize("language", ["en", "ar"])
def test_letters_are_legal_byte_by_byte_or_not_begun(char: str, language: str):
    single = TextTokenizer.train([], 256)
    alphabet, written, legal = Alphabet(single, language), Written(), []
    for id in single.encode(char):
        legal.append(bool(alphabet.legal(written)[id]))
        written = alphabet.follow(written, id) or Written()
    assert all(legal) if belongs(char, SCRIPTS[language]) else not all(legal)


@pytest.mark.parametrize("language", ["en", "ar"])
@pytest.mark.parametrize("long", [False, True])
def test_a_caption_is_in_one_language(tiny: CM3, images: list[Image.Image], language: Any, long: bool):
    """Random weights write whatever is legal."""
    texts = tiny.caption(images, language=language, temperature=5.0, long=long)
    outside = ["".join(text.split('"')[::2]).replace("\ufffd", "") for text in texts]
    assert any(map(str.isalpha, "".join(outside)))
    assert all(belongs(char, SCRIPTS[language]) for text in outside for char in text)


def test_the_naive_generator_writes_the_same_letters(tiny: CM3, images: list[Image.Image]):
    job = tiny.jobs.caption(images[:2], CaptionOptions(language="ar", temperature=2.0))
    assert tiny.run_requests(job.requests) == generate_naive(tiny.model, tiny.vocab, job.requests, tiny.grid)


def test_a_byte_that_no_letter_of_the_language_follows_is_not_begun(tiny: CM3):
    """0xE0 begins characters from U+0800 on: Arabic ones, and no Latin one."""
    byte = next(id for id, data in Alphabet(tiny.text_tokenizer, "en").bytes.items() if data == b"\xe0")
    for language, begun in (("en", False), ("ar", True)):
        alphabet = Alphabet(tiny.text_tokenizer, language)
        assert bool(alphabet.legal(Written())[byte]) == begun
        if begun:
            assert alphabet.legal(Written(begun=b"\xe0")).any()


def test_an_answer_may_be_in_any_language(tiny: CM3, images: list[Image.Image]):
    [request] = tiny.jobs.answer(images[0], "What does the sign say?").requests
    assert request.alphabet is None


def test_a_tokenizer_whose_ids_are_no_bytes_has_no_alphabets():
    other = TextTokenizer.train(TEXTS, vocab_size=300)
    other.tokenizer.add_tokens(["<x>"])
    assert Alphabets(other).of("en") is None


def test_an_alphabet_is_made_once():
    made = Alphabets(TOKENIZER)
    assert made.of("sw") is made.of("sw") is not None
    assert made.of("tlh") is made.of(None) is None


def test_the_masks_are_made_once():
    english = ALPHABETS["en"]
    assert english.legal(Written()) is english.legal(Written())
    assert english.legal(Written()).dtype == torch.bool
