"""Plans in words."""

import pytest

from cm3.tasks.plan_words import AND, caption, described
from cm3.tokens.plan import Plan

NAMES = {"a cat": "قطة", "a dog": "كلب"}


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("a cat", "a cat"),
        ("a cat, in the noto style, on a blue background", "a cat"),
        ("a cat at the top left, a dog at the bottom right", "a cat and a dog"),
        ("a cat at the top left, a cat at the top right", "two cats"),
        ("a cat at the top left, a mouse at the top right, a cat at the bottom left", "two cats and a mouse"),
        ("a cat at the top left, a dog at the top right, a mouse at the bottom left", "a cat, a dog and a mouse"),
        ("a cat painted purple", "a purple cat"),
        ("an apple painted orange at the top left, an apple painted orange at the top right", "two orange apples"),
        ("a cat painted purple at the top left, a cat at the top right", "a purple cat and a cat"),
        ('a sign that says "CAT" at the top left', 'a sign that says "CAT"'),
        ("nothing", "nothing"),
    ],
)
def test_a_caption_names_what_is_shown_how_often_and_in_which_paint(plan: str, words: str):
    assert caption(Plan.parse(plan), "en", {}) == words


@pytest.mark.parametrize(
    ("plan", "language", "words"),
    [
        ("a cat at the top left, a dog at the bottom right", "ar", "قطة وكلب"),
        ("a cat painted purple", "ar", "قطة بنفسجي"),
        ('a sign that says "CAT"', "ar", 'لافتة مكتوب عليها "CAT"'),
        ("a cat at the top left, a cat at the top right", "ar", "قطة × 2"),
        ("a cat at the top left, a dog at the top right, a mouse at the bottom left", "ar", "قطة، كلب وa mouse"),
    ],
)
def test_names_in_other_languages_are_the_given_ones(plan: str, language: str, words: str):
    assert caption(Plan.parse(plan), language, NAMES) == words


def test_there_is_a_word_for_and_in_each_language():
    assert len(AND) == 24
    assert all(caption(Plan.parse("a cat at the top left, a dog at the top right"), one, NAMES) for one in AND)


def test_a_long_caption_says_places_style_and_background():
    plan = Plan.parse("a cat at the top left, a dog at the bottom right, in the noto style, on a blue background")
    assert described(plan, "en", {}) == str(plan)
    assert described(plan, "ar", NAMES) == "قطة في أعلى اليسار، كلب في أسفل اليمين، بأسلوب noto، على خلفية زرقاء"
