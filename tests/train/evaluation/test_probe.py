"""Probes: what they can read, what they cannot, and that the group left out has no say."""

import pytest
import torch

from train.evaluation.probe import across_groups, bag_of_codes, code_vectors

WORDS = [str(i % 8) for i in range(128)]
GROUPS = ["abcd"[i // 32] for i in range(128)]


def noise(size: int) -> torch.Tensor:
    return torch.randn(128, size, generator=torch.Generator().manual_seed(0))


def test_what_is_in_the_features_of_every_group_is_read():
    features = torch.eye(8)[[int(word) for word in WORDS]] + 0.1 * noise(8)
    probe = across_groups(features, {"word": WORDS}, GROUPS)["word"]
    assert probe.top1 == probe.top5 == 1.0
    assert probe.chance1 == pytest.approx(1 / 8) and probe.chance5 == pytest.approx(5 / 8)


def test_noise_is_read_no_better_than_by_chance():
    assert across_groups(noise(16), {"word": WORDS}, GROUPS)["word"].top1 < 0.25


def test_what_each_group_draws_in_its_own_way_is_not_read_in_another():
    own = torch.tensor([int(word) + 8 * "abcd".index(group) for word, group in zip(WORDS, GROUPS, strict=True)])
    probe = across_groups(torch.eye(32)[own], {"word": WORDS}, GROUPS)["word"]
    assert probe.top1 < 0.3


def test_a_feature_that_is_the_same_everywhere_changes_nothing():
    features = noise(16)
    first = across_groups(features, {"word": WORDS}, GROUPS)
    assert across_groups(features + 100, {"word": WORDS}, GROUPS)["word"] == pytest.approx(first["word"], abs=1e-6)


def test_each_kind_of_label_has_its_own_figures():
    features = torch.eye(8)[[int(word) for word in WORDS]]
    parity = [str(int(word) % 2) for word in WORDS]
    both = across_groups(features, {"word": WORDS, "parity": parity}, GROUPS)
    assert both["parity"] == across_groups(features, {"parity": parity}, GROUPS)["parity"]
    assert both["word"].chance1 < 0.2 < both["parity"].chance1


def test_two_groups_are_too_few_to_choose_the_penalty():
    with pytest.raises(ValueError, match="2 designs.*at least 3"):
        across_groups(noise(4), {"word": WORDS}, ["ab"[i % 2] for i in range(128)])


def test_a_bag_forgets_where_the_codes_stood_and_code_vectors_do_not():
    codes = torch.tensor([[[0, 1], [1, 2]], [[1, 2], [0, 1]]])
    bags = bag_of_codes(codes, 4)
    assert torch.equal(bags[0], bags[1])
    assert torch.allclose(bags[0], torch.tensor([1.0, 2.0, 1.0, 0.0]).sqrt() / 2)
    vectors = code_vectors(codes, torch.eye(4))
    assert vectors.shape == (2, 16) and not torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[0].view(4, 4).argmax(1), torch.tensor([0, 1, 1, 2]))
