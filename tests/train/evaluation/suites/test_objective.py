"""The benchmark of the objective: its rows are what training makes, and its decoder draws what the engine draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.objective import RUNS, table
from cm3.engine.options import GREEDY
from cm3.pipeline import CM3
from cm3.tokens.document import Image, Text
from cm3.tokens.masking import sample_holes, unrotate
from train.evaluation.suites.objective import (
    CaptionedView,
    Gaps,
    caption_prompt,
    filled,
    held_out,
    mean_loss,
    with_hole,
)
from train.language.config import LMConfig
from train.language.objective import Form, Objective, training_sequence
from train.runtime.config import override


@pytest.fixture(scope="module")
def model() -> CM3:
    return CM3.from_pretrained("emoji", device="cpu")


@pytest.fixture(scope="module")
def view(model: CM3) -> CaptionedView:
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, model.vocab.num_codes, (8, 8)))
    return CaptionedView(Text("a cat"), Image(codes), {"en": "cat", "ar": "قط"}, "1f431", "noto")


def words_of(view: CaptionedView, model: CM3) -> list[int]:
    return model.vocab.text_to_ids(model.text_tokenizer.encode(view.words.text))


def codes_of(view: CaptionedView, model: CM3) -> list[int]:
    return model.vocab.code_to_id(view.image.codes.flatten().tolist())


def drawing(view: CaptionedView, model: CM3) -> list[int]:
    v = model.vocab
    return [v.eos, *words_of(view, model), v.break_, v.image, *codes_of(view, model), v.end_image, v.eos]


def hole(seed: int = 0) -> Tensor:
    return sample_holes((8, 8), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("way", ["left", "cm3", "holes"])
def test_the_gaps_are_the_codes_of_the_hole_and_the_rest_is_the_document(
    model: CM3, view: CaptionedView, way: str, seed: int
):
    gaps = with_hole(view, hole(seed), way, model)
    missing = hole(seed).flatten().tolist()
    assert [gaps.ids[i] for i in gaps.places] == [
        code for code, gone in zip(codes_of(view, model), missing, strict=True) if gone
    ]
    v = model.vocab
    words = len(words_of(view, model))
    rest = gaps.ids if way != "holes" else gaps.ids[: words + 2] + gaps.ids[words + 68 :]
    assert unrotate(rest, v) == drawing(view, model)
    first = gaps.places[0] if way == "cm3" else gaps.ids.index(v.end_image)
    assert sum(v.is_code(id) for id in gaps.ids[:first]) == (64 if way == "left" else 64 - sum(missing))


def test_rows_are_those_of_training(model: CM3, view: CaptionedView):
    v, plain = model.vocab, drawing(view, model)

    def trained(ids: list[int], spans: list[tuple[int, int]], form: int, seed: int = 0) -> list[int]:
        moved = len(spans) if form == Form.ANSWERS_MASKED else 0
        return training_sequence(ids, spans, form, moved, v, Objective(), (8, 8), seed).ids.tolist()

    assert with_hole(view, hole(), "left", model).ids == trained(plain, [], Form.LEFT_TO_RIGHT)
    for seed in range(8):
        assert with_hole(view, hole(seed), "holes", model).ids == trained(plain, [], Form.INPAINTING, seed)
    asked, answer = (v.text_to_ids(model.text_tokenizer.encode(text)) for text in ("Caption: ", "cat"))
    stored = [v.eos, *asked, *answer, v.break_, v.image, *codes_of(view, model), v.end_image, v.eos]
    spans = [(1 + len(asked), 1 + len(asked) + len(answer))]
    for left_to_right, form in ((True, Form.IMAGE_FIRST), (False, Form.ANSWERS_MASKED)):
        prompt = caption_prompt(view, "en", left_to_right, model)
        assert [*prompt, *answer, v.eos] == trained(stored, spans, form)


def test_codes_are_drawn_where_the_hole_is_each_after_all_before_it(model: CM3, view: CaptionedView):
    gaps = with_hole(view, hole(), "left", model)
    (once,) = filled(model, [view], hole(), "left", GREEDY)
    assert torch.equal(once[~hole()], view.image.codes[~hole()])
    ids = list(gaps.ids)
    for place, code in zip(gaps.places, once[hole()].tolist(), strict=True):
        with torch.inference_mode():
            logits = model.model(torch.tensor([ids[:place]])).logits[0, -1]
        assert int(logits[model.vocab.first_code :].argmax()) == code
        ids[place] = model.vocab.code_to_id(code)


@pytest.mark.parametrize("way", ["left", "cm3", "holes"])
def test_what_is_no_hole_stays_in_every_way(model: CM3, view: CaptionedView, way: str):
    made = filled(model, [view, view], hole(3), way)
    assert made.shape == (2, 8, 8)
    assert all(torch.equal(one[~hole(3)], view.image.codes[~hole(3)]) for one in made)
    assert not torch.equal(made[0], made[1])  # seeds 0 and 1


def test_the_loss_of_a_document_is_that_of_its_score(model: CM3, view: CaptionedView):
    ids = drawing(view, model)
    with torch.inference_mode():
        log_probs = model.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    want = -log_probs.gather(1, torch.tensor(ids)[1:, None]).mean().item()
    every = Gaps(ids, list(range(1, len(ids))))
    assert mean_loss(model, [every], False) == pytest.approx(want, rel=1e-4)
    longer = Gaps([*ids, *ids], every.places)  # rows of other lengths beside it change nothing
    assert mean_loss(model, [every, longer], False) == pytest.approx(want, rel=1e-4)


def test_the_table_has_a_column_a_run_and_a_row_a_figure():
    figures = {name: {"a, nats": 1.0} for name in RUNS}
    figures["CM3"]["b, top-5"] = 0.5
    lines = table(figures).splitlines()
    assert len(lines) == 4 and all(line.count("|") == len(RUNS) + 2 for line in lines)
    assert lines[2].count("1.000") == len(RUNS) and lines[3].count("50.0%") == 1


def test_shards_with_other_documents_of_a_view_are_refused(token_shards: Path):
    with pytest.raises(ValueError, match="was made with draw=1 ask=1: make it with 4 documents of each view"):
        held_out(override(LMConfig(), {"data.folder": str(token_shards)}), 10, 4)
