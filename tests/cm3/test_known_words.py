"""Words that the model has read, in whatever spelling."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3 import CM3
from cm3.known_words import KnownWords, words_of

KNOWN = KnownWords(["a red apple", "two cats on grass", "القطة السوداء", "buses"])


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("a red apple", []),
        ("A RED Apple!", []),
        ("apples, cat", []),  # other endings
        ("a bus", ["bus"]),
        ("grasses", []),
        ("القطه", []),  # spelt as many do
        ("قِطَّة", []),  # with vowel signs, without the article
        ("a red zzzz and a zzzz", ["zzzz", "and"]),
        ("3 apples_2", []),
        ("", []),
        ("🍎 !", []),
    ],
)
def test_unknown_words_are_named_once_in_their_order(text: str, unknown: list[str]):
    assert KNOWN.unknown(text) == unknown


@given(st.text(max_size=50))
def test_what_was_read_is_known(text: str):
    assert KnownWords([text]).unknown(text) == []
    assert all(word == word.casefold() for word in words_of(text))


def test_a_model_without_a_list_knows_nothing_of_words(tmp_path: Path):
    assert KnownWords().unknown("zzzz") == []
    assert KnownWords.load(tmp_path).unknown("zzzz") == []


def test_the_list_goes_with_the_model(tiny: CM3, tmp_path: Path):
    model = CM3(tiny.model, tiny.text_tokenizer, tiny.image_tokenizer, known_words=KNOWN)
    model.save_pretrained(tmp_path / "model")
    again = CM3.from_pretrained(tmp_path / "model")
    assert again.known_words.words == KNOWN.words
    assert again.unknown_words("a zzzz") == ["zzzz"]
    CM3(again.model, again.text_tokenizer, again.image_tokenizer).save_pretrained(tmp_path / "model")
    assert CM3.from_pretrained(tmp_path / "model").unknown_words("zzzz") == []


def test_the_embedded_model_knows_what_it_was_taught():
    model = CM3.from_pretrained("emoji")
    for prompt in ("a red apple", "a cat on a blue background, noto style", "القطة", "make it yellow"):
        assert model.unknown_words(prompt) == []
    assert model.unknown_words("a red zzzz") == ["zzzz"]


@pytest.mark.parametrize("prompt", [None, 3, ["a"]])
def test_a_prompt_is_text(tiny: CM3, prompt: object):
    with pytest.raises(TypeError, match="the prompt"):
        tiny.unknown_words(prompt)  # pyright: ignore
