"""Words that the model has read, in whatever spelling."""

import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cm3 import CM3
from cm3.engine.options import EditOptions, GenerateOptions, InfillOptions
from cm3.tasks.known_words import KnownWords, words_of

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
    with pytest.raises(TypeError, match="the prompt"):
        tiny.normal_prompt(prompt)  # pyright: ignore


# What prompts are put into

TAUGHT = KnownWords(["cat", "dog", "a", "on", "blue", "NASA"], ["a cat", "a dog", "bread"])


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("A CAT", "a cat"),
        ("Cats", "a cat"),
        ("cat", "a cat"),
        (" \t a  cat \n", "a cat"),
        ("a cat!", "a cat"),
        ("a cat.", "a cat"),
        ("cat ...", "a cat"),
        ("ｃａｔ", "a cat"),
        ("a Cat on a BLUE background", "a cat on a blue background"),
        ("Two CATS", "two cats"),
        ("NASA", "NASA"),  # so it was read
        ('A sign that says "STOP Cats!"!', 'a sign that says "STOP Cats!"'),
        ("a “Cat” and «Dog»", "a “Cat” and «Dog»"),
        ("قطة!", "قطة"),
        ("ﻗﻄﺔ", "قطة"),  # forms of letters
        ("!!!", "!!!"),
        ("  ", ""),
        ("", ""),
    ],
)
def test_a_prompt_is_put_as_the_model_has_read_it(prompt: str, read: str):
    assert TAUGHT.normal(prompt) == read
    assert TAUGHT.normal(read) == read


@pytest.mark.parametrize("prompt", ["A CAT!", "Cats", "  Two\n\ncats ", "Draw me NASA's “Logo”.", "a ﬁne ＣＡＴ"])
def test_a_model_without_lists_is_sent_the_prompt_stripped_in_nfkc(prompt: str):
    assert KnownWords().normal(prompt) == unicodedata.normalize("NFKC", prompt).strip()


def test_marks_that_ended_what_was_read_stay():
    assert KnownWords.read(["A cat sits.", "A dog runs."]).normal("A CAT!?.") == "A cat."


def test_a_capital_at_the_beginning_of_a_sentence_is_no_spelling():
    known = KnownWords.read(["The cat Rex. A dog", "a cat and the dog", "Rex", "Caption: Paris"])
    assert known.normal("A CAT, The Dog, REX, Rex, Paris") == "a cat, the dog, rex, Rex, Paris"


def test_lists_are_saved_with_their_spellings(tmp_path: Path):
    known = KnownWords.read(["the cat Rex.", "قِطّة"], ["a cat"])
    known.save(tmp_path)
    again = KnownWords.load(tmp_path)
    assert (again.spellings, again.marks, again.words, again.names.names) == (
        known.spellings,
        known.marks,
        known.words,
        ("a cat",),
    )
    assert again.unknown("the cats, REX") == []


def test_a_model_that_is_trained_on_knows_the_words_of_both_and_the_names_that_stay_as_they_were():
    known = TAUGHT.after(["my cats asleep", "a dog", "Rex, a dog"])
    assert known.unknown("my cat asleep on NASA") == []
    assert known.names.names == ("a dog", "bread")
    assert known.normal("Cats and DOGS") == "cats and a dog"


def spoken(tiny: CM3) -> CM3:
    return CM3(tiny.model, tiny.text_tokenizer, tiny.image_tokenizer, known_words=TAUGHT)


def test_all_that_is_said_of_an_image_is_put_so(tiny: CM3, images: list[Image.Image]):
    model, box, image = spoken(tiny), (0.1, 0.2, 0.5, 0.6), images[0]
    mask = Image.new("L", image.size)
    mask.paste(255, (4, 4, 8, 8))
    ranked: list[str] = []  # what candidates are ranked by

    def best(words: str, codes: Any) -> int:
        ranked.append(words)
        return 0

    jobs, plainly = replace(model.jobs, best=best), replace(tiny.jobs, best=best)
    calls: list[tuple[str, Any, list[Any], list[Any], dict[str, Any], dict[str, Any]]] = [
        ("generate", GenerateOptions, ["A CAT!"], ["a cat"], {}, {}),
        ("generate", GenerateOptions, [["Cats", "dog"]], [["a cat", "a dog"]], {"best_of": 2}, {"best_of": 2}),
        (
            "generate",
            GenerateOptions,
            ["On BLUE"],
            ["on blue"],
            {"boxes": [("CATS", box)]},
            {"boxes": [("a cat", box)]},
        ),
        ("generate", GenerateOptions, ["cat"], ["a cat"], {"negative_prompt": "DOGS"}, {"negative_prompt": "a dog"}),
        ("generate", GenerateOptions, ["cat"], ["a cat"], {"structure": image}, {"structure": image}),
        ("infill", InfillOptions, [image, mask, "Cat!"], [image, mask, "a cat"], {}, {}),
        ("edit", EditOptions, [image, "Make it BLUE!"], [image, "make it blue"], {}, {}),
    ]
    for task, kind, said, put, options, as_put in calls:
        if task == "generate":
            options, as_put = {"best_of": 2, **options}, {"best_of": 2, **as_put}
        job, expected = (
            getattr(jobs, task)(*said, options=kind(**options)),
            getattr(plainly, task)(*put, options=kind(**as_put)),
        )
        requests = job.requests
        assert requests == expected.requests, (task, said)
        model.run(job)
        words = ranked[:]
        ranked.clear()
        tiny.run(expected)
        assert words == ranked and bool(words) == (task == "generate"), (task, said)
        ranked.clear()
        plain = getattr(jobs, task)(*said, options=kind(**options, normalise=False))
        assert plain.requests == getattr(plainly, task)(*said, options=kind(**options, normalise=False)).requests
        assert plain.requests != requests


def test_questions_are_asked_as_they_are(tiny: CM3, images: list[Image.Image]):
    asked = spoken(tiny).jobs.answer(images[0], "Is it a CAT?").requests
    assert asked == tiny.jobs.answer(images[0], "Is it a CAT?").requests


def test_the_warning_sees_what_the_model_reads(tiny: CM3):
    model = CM3(tiny.model, tiny.text_tokenizer, tiny.image_tokenizer, known_words=KnownWords(["mouse"], ["a mouse"]))
    assert model.normal_prompt("Mice!") == "a mouse"
    assert model.unknown_words("Mice!") == ["a"]
    assert model.unknown_words("Mice!", normalise=False) == ["mice"]


def test_normalise_is_yes_or_no(tiny: CM3):
    with pytest.raises(TypeError, match="normalise must be True or False, but is 1"):
        tiny.generate("a cat", normalise=1)  # pyright: ignore


def test_the_embedded_model_reads_each_way_to_ask_for_a_thing_as_the_one_that_it_was_taught():
    model = CM3.from_pretrained("emoji")
    assert len(model.known_words.names.names) > 500
    for prompt in ("A CAT", "cats", "cat", "  cat ", "Cat!", "a cat", "A Cat."):
        assert model.normal_prompt(prompt) == "a cat", prompt
    for prompt in ("blue car", "Blue cars!"):
        assert model.normal_prompt(prompt) == "a blue car"
    for prompt in ("two cats and a dog", "a cat on a blue background, noto style", "the sun", 'a sign that says "HI"'):
        assert model.normal_prompt(prompt) == prompt
