"""The benchmark of the objective: its rows are what training makes, and its decoder draws what the engine draws."""

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.objective import RUNS, table
from cm3.engine import Request, generate
from cm3.masking import sample_holes, unrotate
from cm3.pipeline import CM3
from cm3.sampling import GREEDY
from train.evaluate_objective import CaptionedView, Gaps, caption_prompt, filled, mean_loss, with_hole
from train.language.objective import ASK, DRAW, HOLES, TELL, Objective, training_row


@pytest.fixture(scope="module")
def model() -> CM3:
    return CM3.from_pretrained("emoji", device="cpu")


@pytest.fixture(scope="module")
def view(model: CM3) -> CaptionedView:
    codes = np.random.default_rng(0).integers(0, model.vocab.num_codes, 64).tolist()
    words = model.vocab.text_to_ids(model.text_tokenizer.encode("a cat"))
    return CaptionedView(words, model.vocab.code_to_id(codes), {"en": "cat", "ar": "قط"}, "1f431", "noto")


def drawing(view: CaptionedView, model: CM3) -> list[int]:
    v = model.vocab
    return [v.eos, *view.words, v.break_, v.image, *view.codes, v.end_image, v.eos]


def hole(seed: int = 0) -> Tensor:
    return sample_holes((8, 8), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("way", ["left", "cm3", "holes"])
def test_the_gaps_are_the_codes_of_the_hole_and_the_rest_is_the_document(
    model: CM3, view: CaptionedView, way: str, seed: int
):
    gaps = with_hole(view, hole(seed), way, model)
    missing = hole(seed).flatten().tolist()
    assert [gaps.ids[i] for i in gaps.places] == [code for code, gone in zip(view.codes, missing, strict=True) if gone]
    v = model.vocab
    rest = gaps.ids if way != "holes" else gaps.ids[: len(view.words) + 2] + gaps.ids[len(view.words) + 68 :]
    assert unrotate(rest, v) == drawing(view, model)
    first = gaps.places[0] if way == "cm3" else gaps.ids.index(v.end_image)
    assert sum(v.is_code(id) for id in gaps.ids[:first]) == (64 if way == "left" else 64 - sum(missing))


def test_rows_are_those_of_training(model: CM3, view: CaptionedView):
    v, plain = model.vocab, drawing(view, model)

    def trained(ids: list[int], spans: list[tuple[int, int]], form: int, seed: int = 0) -> list[int]:
        moved = len(spans) if form == ASK else 0
        return training_row(ids, spans, form, moved, v, Objective(), (8, 8), seed).ids.tolist()

    assert with_hole(view, hole(), "left", model).ids == trained(plain, [], DRAW)
    for seed in range(8):
        assert with_hole(view, hole(seed), "holes", model).ids == trained(plain, [], HOLES, seed)
    asked, answer = (v.text_to_ids(model.text_tokenizer.encode(text)) for text in ("Caption: ", "cat"))
    stored = [v.eos, *asked, *answer, v.break_, v.image, *view.codes, v.end_image, v.eos]
    spans = [(1 + len(asked), 1 + len(asked) + len(answer))]
    for told, form in ((True, TELL), (False, ASK)):
        prompt = caption_prompt(view, "en", told, model)
        assert [*prompt, *answer, v.eos] == trained(stored, spans, form)


def test_what_is_drawn_is_what_the_engine_draws(model: CM3, view: CaptionedView):
    v, size = model.vocab, 64
    heads = [[v.eos, *view.words[:count], v.break_, v.image] for count in (1, len(view.words))]
    rows = [Gaps([*head, *[v.pad] * size], list(range(len(head), len(head) + size))) for head in heads]
    requests = [Request(head, "image", sampling=GREEDY) for head in heads]
    drawn = [[id for id in ids if v.is_code(id)] for ids in generate(model.model, v, requests, model.grid)]
    assert filled(model, rows, GREEDY, True) == drawn
    same = filled(model, rows, GREEDY, True, [v.eos, v.mask(0), v.break_, v.image, *[v.pad] * size], 1.0)
    assert same == drawn  # guidance 1 is none


def test_codes_are_drawn_where_the_hole_is_each_after_all_before_it(model: CM3, view: CaptionedView):
    gaps = with_hole(view, hole(), "left", model)
    (once,) = filled(model, [gaps], GREEDY, True)
    ids = list(gaps.ids)
    for place, id in zip(gaps.places, once, strict=True):
        with torch.inference_mode():
            logits = model.model(torch.tensor([ids[:place]])).logits[0, -1]
        assert int(logits[model.vocab.first_code :].argmax()) + model.vocab.first_code == id
        ids[place] = id


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
