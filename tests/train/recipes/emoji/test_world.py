"""The concepts of the emoji recipe, and what people call them."""

import json
from pathlib import Path

import pytest

from train.recipes.emoji.world import ONE_IN, World, held_out, read_synonyms
from worlds import small_world


@pytest.fixture(scope="module")
def world(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.read(small_world(sample, tmp_path_factory.mktemp("world")))


def test_a_concept_has_its_names_and_synonyms(world: World):
    taxi = world.by_name["taxi"]
    assert taxi.a == "a taxi" and taxi.names["fr"] == "taxi fr" and "cab" in taxi.others
    assert taxi in world.by_subgroup["transport-ground"]


def test_a_synonym_stands_for_one_concept(tmp_path: Path):
    words = [word for others in read_synonyms().values() for word in others]
    assert len(words) > 700 and len(set(words)) == len(words)
    twice = tmp_path / "synonyms.txt"
    twice.write_text("automobile: car\nrailway car: car\n")
    with pytest.raises(ValueError, match="'car' stands for 'automobile' and for 'railway car'"):
        read_synonyms(twice)


def test_a_name_is_nobody_elses_synonym(world: World):
    names = {one.name for one in world.concepts.values()}
    assert not names & {word for one in world.concepts.values() for word in one.others}


def test_people_flags_signs_and_clock_faces_are_not_drawn():
    def row(name: str, group: str, subgroup: str) -> dict:
        return {"code": name, "family": name, "name": {"en": name}, "group": group, "subgroup": subgroup}

    rows = [
        row("cat", "animals-nature", "animal-mammal"),
        row("man", "people-body", "person"),
        row("ear", "people-body", "body-parts"),
        row("waving hand", "people-body", "hand-fingers-open"),
        row("flag of Egypt", "flags", "country-flag"),
        row("one o'clock", "travel-places", "time"),
        row("alarm clock", "travel-places", "time"),
        row("red circle", "symbols", "geometric"),
        row("white small square", "symbols", "geometric"),
        row("no entry", "symbols", "warning"),
    ]
    drawn = World(json.loads(json.dumps(rows))).concepts
    assert set(drawn) == {"cat", "ear", "waving hand", "alarm clock", "red circle"}


def test_one_combination_in_ten_is_held_out():
    found = sum(held_out("a cat", str(i)) for i in range(10_000))
    assert abs(found / 10_000 - 1 / ONE_IN) < 0.02
