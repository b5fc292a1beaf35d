"""Names of things as prompts say them."""

from pathlib import Path

from train.emoji.dataset import read_split
from train.emoji.names import prompt_names


def test_names_have_their_articles_and_what_they_end_with_is_a_name_too():
    rows = [
        {"name": {"en": "racing car"}, "keywords": {"en": ["car", "race", "cars"]}},
        {"name": {"en": "grapes"}, "keywords": {"en": ["fruit"]}},
        {"name": {"en": "T-Rex"}, "keywords": {"en": ["happy"]}},
    ]
    assert prompt_names(rows) == ["a car", "a racing car", "grapes", "T-Rex"]


def test_each_concept_of_the_sample_has_its_name_once(sample: Path):
    rows = [facts for _, _, facts in read_split(sample / "train")]
    names = prompt_names(rows)
    assert len(names) == len(set(names))
    bare = {name.removeprefix("an ").removeprefix("a ") for name in names}
    assert bare >= {row["name"]["en"] for row in rows}
