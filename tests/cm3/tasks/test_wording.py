"""Names in a text as a list has them, with articles, one for several."""

import pytest

from cm3.tasks.wording import Names, article, plurals

NAMES = Names(
    ["a cat", "a dog", "a mouse", "a wolf", "a cherry", "a bus", "an orange", "a glass of milk", "bread", "T-Rex"]
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [("cat", "a"), ("apple", "an"), ("hourglass", "an"), ("unicorn", "a"), ("ewe", "a"), ("orange car", "an")],
)
def test_the_article_follows_the_sound(words: str, expected: str):
    assert article(words) == expected


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("cat", "cats"),
        ("bus", "buses"),
        ("cherry", "cherries"),
        ("mouse", "mice"),
        ("wolf", "wolves"),
        ("kitchen knife", "kitchen knives"),
        ("glass of milk", "glasses of milk"),
        ("nest with eggs", "nests with eggs"),
    ],
)
def test_plurals_are_known(name: str, several: str):
    assert several in plurals(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", "a cat"),
        ("cats", "a cat"),
        ("mice", "a mouse"),
        ("a cat", "a cat"),
        ("the cats", "the cat"),
        ("blue cat", "a blue cat"),
        ("orange cat", "an orange cat"),
        ("big blue cats", "a big blue cat"),
        ("cats and dogs", "a cat and a dog"),
        ("cat, dog", "a cat, a dog"),
        ("cat on a blue background", "a cat on a blue background"),
        ("glasses of milk", "a glass of milk"),
        ("draw cats", "draw a cat"),
        ("a picture of cats", "a picture of a cat"),
        ("bread", "bread"),
        ("t-rex", "T-Rex"),
        # a number, or a noun that counts, stands before it
        ("two cats", "two cats"),
        ("3 cats", "3 cats"),
        ("two blue cats", "two blue cats"),
        ("many cats", "many cats"),
        ("a group of cats", "a group of cats"),
        # parts of other words
        ("dog house", "dog house"),
        ("the cat's paw", "the cat's paw"),
        ("catalogue", "catalogue"),
        ("zebras", "zebras"),
        ("", ""),
    ],
)
def test_names_stand_as_in_the_list(text: str, expected: str):
    assert NAMES.put(text) == expected
    assert NAMES.put(expected) == expected


def test_without_a_list_nothing_changes():
    assert Names().put("cats") == "cats"


def test_a_plural_that_is_itself_a_name_stays():
    assert Names(["a glass", "glasses"]).put("glasses") == "glasses"
