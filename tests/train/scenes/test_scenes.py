"""Scenes: what is said of them is what the pixels show, and held-out combinations stay out."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawings import SHAPES, drawn_things
from train.emoji.colours import main_colour
from train.images.views import GROUNDS
from train.scenes.scene import (
    HELD_OUT,
    PAINTS,
    THINGS,
    Placed,
    Rendered,
    Scene,
    Stage,
    Thing,
    combinations,
    compositional,
    held_out,
    overlap,
    painted,
    relation,
    render,
    settle,
    takes,
    with_placed,
)

SIZE = 48
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@pytest.fixture(scope="module")
def things() -> list[Thing]:
    return drawn_things()


def some(stage: Stage, count: int = 120, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [stage.scene(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def scenes(things: list[Thing]) -> list[Scene]:
    return some(Stage(things, SIZE))


@pytest.fixture(scope="module")
def shown(scenes: list[Scene]) -> list[tuple[Scene, Rendered]]:
    return [(scene, render(scene, SIZE)) for scene in scenes]


CAT = drawn_things()[0]


def placed(left: int, top: int, side: int) -> Placed:
    return Placed(CAT, side, left, top)


def test_a_box_bounds_its_outline_and_what_stands_out_from_the_ground(shown):
    for scene, out in shown:
        apart = np.abs(out.image.astype(int) - GROUNDS[scene.ground][2]).max(-1) > 0
        for i, one in enumerate(scene.placed):
            left, top, right, bottom = out.box(i)
            inside = np.zeros((SIZE, SIZE), bool)
            inside[top:bottom, left:right] = True
            assert not (out.outlines[i] & ~inside).any()
            assert out.outlines[i][top].any() and out.outlines[i][bottom - 1].any()
            assert out.outlines[i][:, left].any() and out.outlines[i][:, right - 1].any()
            frame = np.zeros_like(inside)
            frame[one.top : one.top + one.side, one.left : one.left + one.side] = True
            rows, columns = np.flatnonzero((apart & frame).any(1)), np.flatnonzero((apart & frame).any(0))
            edges = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            assert np.abs(edges - (left, top, right, bottom)).max() <= 3  # the rim is half transparent


def test_what_no_drawing_covers_is_the_ground(shown):
    for scene, out in shown:
        free = np.ones((SIZE, SIZE), bool)
        for one in scene.placed:
            free[one.top : one.top + one.side, one.left : one.left + one.side] = False
        assert (out.image[free] == GROUNDS[scene.ground][2]).all()


def test_later_things_hide_earlier_ones():
    below, above = placed(4, 4, 30), placed(10, 10, 30)
    out = render(Scene((below, above)), SIZE)
    assert not (out.outlines[0] & out.outlines[1]).any()
    assert out.outlines[1].sum() == render(Scene((above,)), SIZE).outlines[0].sum()


def test_nothing_overlaps_or_leaves_the_image(scenes: list[Scene]):
    for scene in scenes:
        assert not any(overlap(a, b) for a, b in itertools.combinations(scene.placed, 2))
        assert all(0 <= at and at + one.side <= SIZE for one in scene.placed for at in (one.left, one.top))


def test_touching_squares_do_not_overlap():
    assert overlap(placed(0, 0, 10), placed(9, 9, 10))
    assert not overlap(placed(0, 0, 10), placed(10, 0, 10))


def test_things_of_aligned_scenes_fill_whole_cells_and_look_the_same_in_each_place(things: list[Thing]):
    step, looks, sides = 6, {}, dict[int, set[int]]()
    for scene in some(Stage(things, SIZE, paints=0, aligned=1.0, cells=SIZE // step)):
        assert scene.step == step
        image = render(replace(scene, ground="white"), SIZE).image
        for one in scene.placed:
            assert one.left % step == one.top % step == one.side % step == 0 and not one.mirror
            look = image[one.top : one.top + one.side, one.left : one.left + one.side].tobytes()
            assert looks.setdefault((one.thing.key, one.side), look) == look
            sides.setdefault(len(scene.placed), set()).add(one.side)
    assert sides == {1: {24}, 2: {18}, 3: {18}}  # one spelling for a thing alone, one for a thing among others


def test_things_in_quarters_stand_in_four_places(things: list[Thing]):
    places = set[tuple[int, int]]()
    for scene in some(Stage(things, SIZE, aligned=1.0, cells=8, quarters=1.0), 60):
        assert scene.lattice == SIZE // 2 and scene.step == SIZE // 8
        assert len({(one.left, one.top) for one in scene.placed}) == len(scene.placed)
        places |= {(one.left, one.top) for one in scene.placed}
    assert places == set(itertools.product((0, SIZE // 2), repeat=2))
    lattices = [scene.lattice for scene in some(Stage(things, SIZE, aligned=0.5, cells=8, quarters=0.5), 200)]
    assert 25 < lattices.count(SIZE // 2) < 80 and lattices.count(SIZE // 2) + lattices.count(0) == 200


def test_a_share_of_the_scenes_is_aligned(things: list[Thing]):
    steps = [scene.step for scene in some(Stage(things, SIZE, aligned=0.5, cells=8), 200)]
    assert 60 < steps.count(6) < 140 and steps.count(6) + steps.count(0) == 200


def test_a_full_image_has_no_place_left(things: list[Thing]):
    assert settle(things[0], [placed(0, 0, SIZE)], SIZE, (10, 12), np.random.default_rng(0)) is None


@given(*[st.integers(0, 40)] * 4, *[st.integers(1, 20)] * 2)
def test_a_relation_is_the_opposite_seen_from_the_other_side(x: int, y: int, z: int, w: int, first: int, second: int):
    a, b = placed(x, y, first), placed(z, w, second)
    if a.centre != b.centre:
        assert relation(a, b) == OPPOSITE[relation(b, a)]


@pytest.mark.parametrize(
    ("left", "top", "word"),
    [
        (0, 20, "left"),
        (40, 20, "right"),
        (20, 0, "above"),
        (20, 40, "below"),
        (5, 12, "left"),
        (12, 39, "below"),
    ],
)
def test_a_relation_runs_along_the_longer_way(left: int, top: int, word: str):
    assert relation(placed(left, top, 8), placed(20, 20, 8)) == word


def test_a_mirrored_thing_is_the_image_turned_round(things: list[Thing]):
    one = Placed(things[4], 20, 10, 6)
    plain, mirrored = (
        render(Scene((with_mirror,)), SIZE).image[6:26, 10:30]
        for with_mirror in (one, Placed(things[4], 20, 10, 6, mirror=True))
    )
    assert np.array_equal(plain, mirrored[:, ::-1])


def test_the_same_seed_gives_the_same_scenes(things: list[Thing], shown):
    again = [render(scene, SIZE).image for scene in some(Stage(things, SIZE))]
    assert all(np.array_equal(a.image, b) for (_, a), b in zip(shown, again, strict=True))
    other = [render(scene, SIZE).image for scene in some(Stage(things, SIZE), seed=1)]
    assert not all(np.array_equal(a.image, b) for (_, a), b in zip(shown, other, strict=True))


def test_training_scenes_have_no_held_out_combination_and_novel_ones_always_have_one(things: list[Thing]):
    for novel in (False, True):
        for scene in some(Stage(things, SIZE, paints=0.5, novel=novel)):
            assert any(held_out(found) for found in combinations(scene)) == compositional(scene) == novel


def test_each_kind_of_combination_is_held_out_somewhere(things: list[Thing]):
    found = {c for scene in some(Stage(things, SIZE, paints=0.5, novel=True)) for c in combinations(scene)}
    kinds = {("count" if c[-1].isdigit() else "paint" if len(c) == 2 else "relation") for c in found if held_out(c)}
    assert kinds == {"count", "paint", "relation"}


def test_one_combination_in_ten_is_held_out():
    every = [(a, paint) for a in THINGS for paint in PAINTS]
    every += [(a, word, b) for a, b in itertools.combinations(THINGS, 2) for word in OPPOSITE]
    assert np.mean([held_out(one) for one in every]) == pytest.approx(1 / HELD_OUT, abs=0.01)


def test_a_pair_is_one_combination_whichever_stands_first(things: list[Thing]):
    a, b = Placed(things[0], 10, 0, 0), Placed(things[1], 10, 30, 0)
    assert set(combinations(Scene((a, b)))) == set(combinations(Scene((b, a)))) == {("cat", "left", "dog")}
    twice = with_placed(Scene((a, b)), 1, thing=things[0], paint="blue")
    assert set(combinations(twice)) == {("cat", "2"), ("cat", "blue")}


def test_painted_things_measure_as_their_paint(things: list[Thing]):
    rng = np.random.default_rng(0)
    stage, found = Stage(things, SIZE, paints=1.0), 0
    for thing in things:
        if paint := stage.paint(thing, rng):
            found += 1
            assert takes(thing, paint) and paint != thing.colour
            assert main_colour(np.asarray(painted(thing, paint))) == paint
            assert np.array_equal(np.asarray(painted(thing, paint))[..., 3], np.asarray(thing.drawing)[..., 3])
            out = render(Scene((Placed(thing, 40, 4, 4, paint=paint),)), SIZE)
            measured = np.dstack((out.image, out.outlines[0] * np.uint8(255)))
            assert main_colour(measured) == paint == Placed(thing, 40, 4, 4, paint=paint).colour
    assert found > len(things) / 2


def test_what_is_not_painted_has_its_own_colour(things: list[Thing]):
    assert placed(0, 0, 9).colour == CAT.colour == "red"


def test_the_number_and_the_kinds_of_things(scenes: list[Scene], things: list[Thing]):
    numbers = [len(scene.placed) for scene in scenes]
    assert set(numbers) == {1, 2, 3} and 0.05 < numbers.count(1) / len(numbers) < 0.3
    assert all(len({one.thing.style for one in scene.placed}) == 1 for scene in scenes)
    kinds = [len({one.thing.name["en"] for one in scene.placed}) for scene in scenes]
    doubles = [kind < number for kind, number in zip(kinds, numbers, strict=True) if number > 1]
    assert np.mean(doubles) == pytest.approx(0.3, abs=0.15)
    rng = np.random.default_rng(0)
    assert [len(Stage(things, SIZE).scene(rng, count).placed) for count in (1, 2, 3)] == [1, 2, 3]


def test_most_bounds_the_number_of_things(things: list[Thing]):
    assert {len(scene.placed) for scene in some(Stage(things, SIZE, most=1), 20)} == {1}


def test_grounds_are_white_as_often_as_asked(scenes: list[Scene]):
    grounds = [scene.ground for scene in scenes]
    assert np.mean([ground == "white" for ground in grounds]) == pytest.approx(0.6, abs=0.12)
    assert set(grounds) == set(GROUNDS)


def test_a_style_of_few_things_stands_in_no_scene(things: list[Thing]):
    few = [thing for thing in things if thing.style == "plain" or thing.name["en"] in ("cat", "dog")]
    assert {one.thing.style for scene in some(Stage(few, SIZE), 40) for one in scene.placed} == {"plain"}
    with pytest.raises(ValueError, match="no style has drawn more than 3"):
        Stage(few[:3], SIZE)


def test_the_things_of_scenes_are_told_apart_by_their_names():
    assert len(set(THINGS)) == len(THINGS)
    assert len(SHAPES) == len({arabic for arabic, *_ in SHAPES.values()})
