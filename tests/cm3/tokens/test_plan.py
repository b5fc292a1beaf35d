"""Plans: lines of text and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3.tokens.plan import PLACES, Plan, Thing

names = st.sampled_from(
    ["a cat", "an apple", "grapes", 'a sign that says "CAT"', "a face in clouds", "a fork and knife", "a red apple"]
)
paints, grounds = st.sampled_from(["", "purple", "white"]), st.sampled_from(["white", "blue", "orange"])
styles = st.sampled_from(["", "noto", "fluent flat"])


@given(st.permutations(PLACES), st.lists(st.tuples(names, paints), max_size=4), styles, grounds)
def test_a_plan_survives_its_line(places: list[str], things: list[tuple[str, str]], style: str, ground: str):
    placed = [Thing(name, place, paint) for (name, paint), place in zip(things, places, strict=False)]
    plan = Plan(tuple(sorted(placed, key=lambda thing: PLACES.index(thing.place))), style, ground)
    assert Plan.parse(str(plan)) == plan
    assert Plan.parse(f"Draw: anything\n{plan}\n") == plan


def test_the_line_reads_as_english():
    things = (Thing("a cat", "top left"), Thing("a dog", "bottom right", "purple"))
    assert str(Plan(things, "noto", "orange")) == (
        "a cat at the top left, a dog painted purple at the bottom right, in the noto style, on an orange background"
    )
    assert str(Plan((Thing("a red apple"),))) == "a red apple"
    assert str(Plan((), "", "blue")) == "nothing, on a blue background"


def test_things_come_in_the_order_of_their_places():
    plan = Plan.parse("a dog at the bottom right, a cat at the top left")
    assert [thing.name for thing in plan.things] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no plan"),
        ("in the noto style", "no plan"),
        ("a cat, , a dog", "no plan"),
        ("a cat at the top left, a dog at the top left", "one place"),
        ("a cat, a dog at the top left", "one place"),
    ],
)
def test_what_is_no_plan_is_refused(line: str, message: str):
    with pytest.raises(ValueError, match=message):
        Plan.parse(line)


def test_the_plain_plan_has_no_paint_and_no_ground():
    plan = Plan.parse("a cat painted red at the top left, in the noto style, on a blue background")
    assert str(plan.plain) == "a cat at the top left, in the noto style"
