"""The words that tasks are asked with: the same in training and in the pipeline."""

import pytest

from cm3.tokens.templates import LANGUAGES, TEMPLATES, boxed, language_of, prompt

BOX = (0.1, 0.2, 0.555, 0.9)


@pytest.mark.parametrize(
    ("words", "language"),
    [
        ("What is it?", "en"),
        ("", "en"),
        ("123 ?", "en"),
        ("café 猫", "en"),
        ("ما هذا؟", "ar"),
        ("write سلام here", "ar"),
    ],
)
def test_words_with_an_arabic_letter_are_arabic(words: str, language: str):
    assert language_of(words) == language


def test_every_task_has_words_in_every_language():
    assert all(tuple(words) == LANGUAGES for words in TEMPLATES.values())
    for language in LANGUAGES:
        assert len({words[language] for words in TEMPLATES.values()}) == len(TEMPLATES)


def test_a_prompt_is_in_the_language_of_its_words():
    assert prompt("answer", " What is it? ") == "Question: What is it? Answer: "
    assert prompt("answer", "ما هذا؟") == "سؤال: ما هذا؟ جواب: "
    assert prompt("edit", "make it blue") == "Edit: make it blue"
    assert prompt("edit", "احذف القطة").startswith("عدّل: ")


def test_words_with_braces_stay_as_they_are():
    assert prompt("edit", "draw {words} {0}") == "Edit: draw {words} {0}"


def test_boxes_are_hundredths_of_the_image():
    assert boxed([("a cat", BOX)]) == "a cat [10 20 56 90]"
    assert boxed([(" a cat ", (0, 0, 1, 1)), ("قطة", BOX)]) == "a cat [0 0 100 100], قطة [10 20 56 90]"


@pytest.mark.parametrize(
    "box",
    [
        (0.5, 0.2, 0.5, 0.9),
        (0.6, 0.2, 0.5, 0.9),
        (0.1, 0.9, 0.5, 0.2),
        (-0.1, 0.2, 0.5, 0.9),
        (0.1, 0.2, 0.5, 1.01),
        (10, 20, 55, 90),
        (0.1, 0.2, 0.5),
        (0.1, 0.2, float("nan"), 0.9),
    ],
)
def test_a_box_that_is_none_is_refused_with_its_name_and_the_limits(box):
    with pytest.raises(ValueError, match=r"the box of 'a cat' is .* from 0 to 1, left before right"):
        boxed([("a dog", BOX), ("a cat", box)])


def test_boxes_without_things_or_names_are_refused():
    with pytest.raises(ValueError, match="the list of boxes is empty"):
        boxed([])
    with pytest.raises(ValueError, match="has no name"):
        boxed([("  ", BOX)])
