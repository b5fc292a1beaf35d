"""The scorer: shapes, rows that do not touch each other, a folder that gives the same scores, clear errors."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cm3.model.scorer import CONFIG, WEIGHTS, Scorer, ScorerConfig, padded

CONFIG_TINY = ScorerConfig(
    300,
    32,
    (4, 6),
    embedding_size=8,
    hidden_size=16,
    image_layers=2,
    text_layers=1,
    heads=2,
    intermediate_size=32,
    space=12,
    merge=1,
    max_text=8,
    text_tokenizer="text",
    image_tokenizer="image",
)
TEXTS = [[5], [7, 8, 9, 250], [1, 2], [299, 0, 3, 4, 5, 6]]


def made(config: ScorerConfig = CONFIG_TINY) -> Scorer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scorer = Scorer(config)
        for parameter in scorer.parameters():  # a fresh one's blocks do next to nothing: they would hide mistakes
            torch.nn.init.normal_(parameter, std=0.3)
    return scorer.eval()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return made()


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    return torch.randint(32, (4, 4, 6), generator=torch.Generator().manual_seed(0))


def test_each_pair_gets_a_cosine(scorer: Scorer, codes: torch.Tensor):
    scores = scorer.score(TEXTS, codes)
    assert scores.shape == (4,) and scores.dtype == torch.float32
    assert (scores.abs() <= 1 + 1e-6).all() and scores.unique().numel() == 4
    assert scorer.encode_texts(TEXTS).shape == scorer.encode_codes(codes).shape == (4, 12)


def test_one_text_is_compared_with_every_image(scorer: Scorer, codes: torch.Tensor):
    assert torch.allclose(scorer.score([TEXTS[1]], codes), scorer.score([TEXTS[1]] * 4, codes), atol=1e-6)


def test_a_row_of_a_batch_is_the_row_alone(scorer: Scorer, codes: torch.Tensor):
    together = scorer.score(TEXTS, codes)
    alone = torch.cat([scorer.score([text], grid[None]) for text, grid in zip(TEXTS, codes, strict=True)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_places_count_in_texts_and_in_images(scorer: Scorer, codes: torch.Tensor):
    one, other = scorer.encode_texts([[1, 2, 3], [3, 2, 1]])
    assert not torch.allclose(one, other, atol=1e-3)
    for axis in (1, 2):
        assert not torch.allclose(scorer.encode_codes(codes), scorer.encode_codes(codes.flip(axis)), atol=1e-3)


def test_merged_cells_hold_neighbours():
    config = replace(CONFIG_TINY, merge=2)
    scorer, base = made(config), torch.zeros(1, 4, 6, dtype=torch.long)
    before = scorer.patches(base)
    assert before.shape == (1, 6, 16)
    for row, column, cell in ((0, 0, 0), (1, 3, 1), (2, 5, 5), (3, 0, 3)):
        changed = base.clone()
        changed[0, row, column] = 1
        moved = (scorer.patches(changed) - before).abs().sum(-1)[0] > 0
        assert moved.nonzero().flatten().tolist() == [cell]


def test_a_text_is_read_up_to_its_limit(scorer: Scorer):
    long = list(range(20))
    assert torch.equal(scorer.encode_texts([long]), scorer.encode_texts([long[:8]]))
    assert padded([[1], [0, 2]], 8).ids.tolist() == [[1, 0], [0, 2]]
    assert padded([[1], [0, 2]], 8).real.tolist() == [[True, False], [True, True]]


def test_a_saved_scorer_gives_the_same_scores(scorer: Scorer, codes: torch.Tensor, tmp_path: Path):
    scorer.save_pretrained(tmp_path / "a")
    assert {tensor.dtype for tensor in load_file(tmp_path / "a" / WEIGHTS).values()} == {torch.float16}
    loaded = Scorer.from_pretrained(tmp_path / "a")
    assert loaded.config == CONFIG_TINY
    assert torch.allclose(loaded.score(TEXTS, codes), scorer.score(TEXTS, codes), atol=1e-2)
    loaded.save_pretrained(tmp_path / "b")
    assert torch.equal(Scorer.from_pretrained(tmp_path / "b").score(TEXTS, codes), loaded.score(TEXTS, codes))
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_loading_leaves_the_global_generator_alone(scorer: Scorer, tmp_path: Path):
    scorer.save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    Scorer.from_pretrained(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_tokenizers_are_refused(scorer: Scorer):
    scorer.check("text", "image")
    with pytest.raises(ValueError, match="another text tokenizer .text, this one is other"):
        scorer.check("other", "image")
    with pytest.raises(ValueError, match="another image tokenizer .image, this one is other"):
        scorer.check("text", "other")


def test_bad_input_is_refused(scorer: Scorer, codes: torch.Tensor):
    with pytest.raises(ValueError, match="3 texts and 4 images"):
        scorer.score(TEXTS[:3], codes)
    with pytest.raises(ValueError, match="empty"):
        scorer.score([[]], codes)
    with pytest.raises(ValueError, match=r"images of \(4, 4\) codes: the scorer's have \(4, 6\)"):
        scorer.score([[1]], codes[:, :, :4])
    with pytest.raises(ValueError, match="must be a multiple of heads"):
        replace(CONFIG_TINY, heads=3)
    with pytest.raises(ValueError, match="does not divide"):
        replace(CONFIG_TINY, merge=4)


def test_folders_that_hold_no_scorer_are_refused(scorer: Scorer, tmp_path: Path):
    with pytest.raises(ValueError, match="config.json is missing; train one"):
        Scorer.from_pretrained(tmp_path)
    scorer.save_pretrained(tmp_path)
    good = (tmp_path / CONFIG).read_text()
    for name, content in (
        (CONFIG, "{"),
        (CONFIG, '{"width": 3}'),
        (CONFIG, "[1]"),
        (CONFIG, json.dumps({"hidden_size": 20})),
        (CONFIG, json.dumps(asdict(CONFIG_TINY) | {"heads": 0})),
        (WEIGHTS, "no tensors"),
    ):
        scorer.save_pretrained(tmp_path)
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match="is damaged or holds another model"):
            Scorer.from_pretrained(tmp_path)
    (tmp_path / CONFIG).write_text(good)
    scorer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    save_file(weights | {"places": weights["places"].fill_(torch.nan)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="places has values that are not finite"):
        Scorer.from_pretrained(tmp_path)
