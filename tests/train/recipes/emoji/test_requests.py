"""Requests, edits and questions: words whose plan, or answer, is known."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from cm3.tasks.wording import plural
from cm3.tokens.plan import PLACES, Plan, Thing
from train.recipes.emoji.edits import KINDS, Editor
from train.recipes.emoji.packages import LANGUAGES
from train.recipes.emoji.questions import Shown, ask, relation
from train.recipes.emoji.requests import FORMS, Planner, misspelt
from train.recipes.emoji.shelf import Shelf
from train.recipes.emoji.world import World, held_out
from worlds import small_world


@pytest.fixture(scope="module")
def planner(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Planner:
    data = small_world(sample, tmp_path_factory.mktemp("world"))
    return Planner(World.read(data), Shelf.read(data, "train").styles)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_request_and_its_plan_say_the_same(planner: Planner):
    seen = Counter()
    for seed in range(300):
        request = planner.request(rng(seed))
        plan = request.plan
        seen[request.language] += 1
        assert Plan.parse(str(plan)) == plan
        assert len({thing.place for thing in plan.things}) == len(plan.things)
        if request.form == "sign":
            continue
        drawn = [planner.world.concepts[code].a for code in planner.by_style[plan.style]]
        assert {thing.name for thing in plan.things} <= set(drawn)
        one = planner.world.by_name[plan.things[0].name.removeprefix("a ").removeprefix("an ")]
        words = request.words.lower()
        if request.form in ("bare", "the", "polite") and len(plan.things) == 1 and request.language == "en":
            assert any(name.lower() in words for name in (one.name, *one.others))
        if plan.ground != "white" and request.language == "en":
            assert plan.ground in words
        if request.language not in ("en", "ar"):
            assert any(f" {request.language}" in name for name in one.names.values()) and request.language in words
    assert seen["en"] > seen["ar"] > 0 and len(seen) > 8


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_words_can_be_asked_for(planner: Planner, form: str):
    for seed in range(20):
        request = planner.request(rng(seed), form)
        assert request.form == form and request.language == "en"
        if form == "upper":
            assert request.words == request.words.upper()


def test_held_out_combinations_are_asked_for_only_where_they_are_wanted(planner: Planner):
    def found(plan: Plan, language: str) -> bool:
        names = sorted({thing.name for thing in plan.things})
        return (
            any(held_out(*pair) for pair in combinations(names, 2))
            or any(thing.paint and held_out(thing.name, thing.paint) for thing in plan.things)
            or (language not in ("en", "ar") and any(held_out(language, name) for name in names))
        )

    novel = Planner(planner.world, planner.styles, novel=True)
    for seed in range(60):
        request = planner.request(rng(seed))
        assert request.form == "sign" or not found(request.plan, request.language)
        request = novel.request(rng(seed))
        assert request.form == "sign" or found(request.plan, request.language)


def test_what_a_thing_is_called_on_the_left_stands_on_the_left(planner: Planner):
    checked = 0
    for seed in range(2000):
        request = planner.request(rng(seed), "plain")
        words, plan = request.words.lower(), request.plan
        if " left of " in words or " to the left of " in words:
            first, second = plan.things[0].place, plan.things[1].place
            assert (first.split()[0], second.split()[0]) in (("top", "top"), ("bottom", "bottom"))
            left = next(thing for thing in plan.things if thing.place.endswith("left"))
            said = planner.world.by_name[left.name.removeprefix("a ").removeprefix("an ")]
            assert any(name.lower() in words.split(" left of ")[0] for name in (said.name, *said.others))
            checked += 1
    assert checked >= 3


def test_a_typing_mistake_changes_the_word_and_keeps_its_ends():
    for seed in range(50):
        word = misspelt("elephant", rng(seed))
        assert word[0] == "e" and word[-1] == "t" and abs(len(word) - 8) <= 1
    assert misspelt("cat", rng()) == "cat"


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"),
        ("glass of milk", "glasses of milk"),
        ("mouse", "mice"),
        ("cherry", "cherries"),
        ("grapes", "grapes"),
        ("fish", "fish"),
        ("bus", "buses"),
        ("fork and knife", "forks and knife"),
    ],
)
def test_plurals(one: str, many: str):
    assert plural(one) == many


SCENE = Plan.parse("a taxi at the top left, a red apple at the bottom right, in the noto style")


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_what_it_says_and_nothing_else(planner: Planner, kind: str):
    editor, before = Editor(planner), {thing.name: thing for thing in SCENE.things}
    made = [edit for seed in range(40) if (edit := editor.edit(SCENE, "en", rng(seed), kind))]
    assert made and all(edit.kind == kind and Plan.parse(str(edit.plan)) == edit.plan != SCENE for edit in made)
    for edit in made:
        after = {thing.name: thing for thing in edit.plan.things}
        kept = sum(after.get(name) == thing for name, thing in before.items())
        assert kept == {"add": 2, "remove": 1, "replace": 1, "recolour": 1, "move": 1, "ground": 2, "style": 2}[kind]
        assert len(after) == {"add": 3, "remove": 1}.get(kind, 2)
        assert (edit.plan.ground != "white") == (kind == "ground")
        assert (edit.plan.style != "noto") == (kind == "style")


def test_what_fills_the_image_makes_room_for_what_is_added(planner: Planner):
    edit = Editor(planner).edit(Plan((Thing("a taxi"),), "noto"), "en", rng(1), "add")
    assert edit and len(edit.plan.things) == 2 and all(thing.place in PLACES for thing in edit.plan.things)


def test_edits_are_asked_for_in_arabic_too(planner: Planner):
    edit = Editor(planner).edit(SCENE, "ar", rng(), "remove")
    assert edit and any("\u0600" <= letter <= "\u06ff" for letter in edit.words)


def test_questions_have_the_answers_that_the_plan_gives(planner: Planner):
    plan = Plan.parse("a taxi at the top left, a taxi at the top right, a pizza painted blue at the bottom left")
    named = [planner.world.by_name[name] for name in ("taxi", "taxi", "pizza")]
    answers: dict[str, set[tuple[str, str]]] = {}
    for seed in range(200):
        shown = Shown(plan, list(named), [None, None, "yellow"], planner.world, "en", rng(seed))
        for task, words, answer in ask(shown, 3):
            answers.setdefault(task, set()).add((words, answer))
    assert ("How many taxis are there?", "2") in answers["count"]
    assert ("How many pizzas are there?", "1") in answers["count"]
    assert {answer for _, answer in answers["count all"]} == {"3"}
    assert ("Where is the pizza?", "at the bottom left") in answers["where"]
    assert ("What colour is the pizza?", "blue") in answers["colour"]
    assert ("Is there a pizza?", "yes") in answers["presence"]
    assert {answer for _, answer in answers["presence"]} == {"yes", "no"}
    assert not {"what", "is it", "style", "sign"} & answers.keys()  # not of several things, or not known


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        ("top left", "top right", "left"),
        ("bottom right", "bottom left", "right"),
        ("top left", "bottom right", "above"),
        ("bottom left", "top left", "below"),
    ],
)
def test_relations_of_places(a: str, b: str, found: str):
    assert relation(a, b) == found


def test_every_language_has_a_word_for_and():
    from train.recipes.emoji.requests import AND

    assert set(AND) == set(LANGUAGES)
