"""The judge: how many concepts look more like a drawing than the right one."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from train.evaluation.judge import Judge, Reference, ranks
from train.images.samples import read_split
from train.images.views import PLAIN, place


def unit(*degrees: float) -> torch.Tensor:
    """Features in the plane, [N, 2]: the smaller the angle between two, the more alike."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], -1)


# Concepts at 0, 40 and 80 degrees in two styles, the second 5 degrees off.
REFERENCE = Reference(unit(0, 40, 80, 5, 45, 85), ["a", "b", "c"] * 2, ["noto"] * 3 + ["blob"] * 3)


@pytest.mark.parametrize(
    ("degrees", "concept", "rank"), [(2, "a", 0), (30, "a", 1), (80, "a", 2), (41, "b", 0), (0, "c", 2)]
)
def test_the_rank_counts_the_concepts_that_look_more_alike(degrees: float, concept: str, rank: int):
    assert ranks(unit(degrees), [concept], ["twemoji"], REFERENCE).tolist() == [rank]


def test_the_best_image_of_a_concept_speaks_for_it():
    reference = Reference(unit(0, 90, 20), ["a", "a", "b"], ["noto"] * 3)
    assert ranks(unit(85), ["a"], ["blob"], reference).tolist() == [0]


def test_images_of_the_drawing_s_own_style_are_not_compared():
    reference = Reference(unit(0, 60, 20), ["a", "a", "b"], ["noto", "blob", "blob"])
    assert ranks(unit(0).repeat(2, 1), ["a", "a"], ["twemoji", "noto"], reference).tolist() == [0, 1]


def test_a_concept_without_another_style_is_never_found():
    reference = Reference(unit(0, 90), ["a", "b"], ["noto", "blob"])
    assert ranks(unit(0).repeat(2, 1), ["a", "a"], ["noto", "blob"], reference).tolist() == [2, 0]


def test_every_drawing_is_judged_apart():
    features, concepts = unit(2, 30, 41), ["a", "a", "b"]
    alone = [ranks(features[i : i + 1], concepts[i : i + 1], ["x"], REFERENCE).item() for i in range(3)]
    assert ranks(features, concepts, ["x"] * 3, REFERENCE).tolist() == alone


@pytest.mark.slow
def test_features_are_of_unit_length_and_nearer_for_the_same_thing_in_another_style(sample: Path):
    rows = [
        (facts["code"], Image.fromarray(place(drawing, PLAIN, 64)))
        for _, drawing, facts in read_split(sample / "train")
        if facts["code"] in ("1f34e", "1f695") and facts["style"] in ("noto", "twemoji")
    ]
    judge = Judge()
    features = judge.features([image for _, image in rows])
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(rows)))
    torch.testing.assert_close(judge.features([rows[0][1]]), features[:1], atol=1e-4, rtol=1e-3)
    for i, (code, _) in enumerate(rows):
        likeness = F.cosine_similarity(features, features[i], dim=-1)
        likeness[i] = -1
        assert rows[int(likeness.argmax())][0] == code
