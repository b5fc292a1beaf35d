"""The public face: what users write, on a tiny model with random weights."""

import copy
import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.engine.options import (
    AnswerOptions,
    CaptionOptions,
    CompleteOptions,
    Decoding,
    EditOptions,
    GenerateOptions,
    InfillOptions,
    Structure,
)
from cm3.tasks import reranking as ranking
from cm3.tasks.job import Job
from cm3.tokens.document import HOLE, Document, Image, Mask, Text
from cm3.tokens.encoding import prompt_ids
from cm3.tokens.templates import TEMPLATES, boxed, prompt

APPLE = "a red apple"
CODES = Image(torch.arange(16).view(4, 4))
HOLED = Image(CODES.codes.masked_fill(torch.eye(4, dtype=torch.bool), HOLE))
BOXES = [("a cat", (0.1, 0.2, 0.5, 0.9)), ("a dog", (0.6, 0.2, 0.9, 0.9))]


def bytes_of(images: Sequence) -> list[bytes]:
    return [image.tobytes() for image in images]


def mask_of(box: tuple[int, int, int, int], size: tuple[int, int] = (32, 24)) -> PIL_Image.Image:
    """Black, white in the box (left, top, right, bottom)."""
    mask = PIL_Image.new("L", size)
    mask.paste(255, box)
    return mask


HOLE_MASK = mask_of((9, 7, 14, 11))


class Likes:
    """A scorer that finds the image best whose codes have the largest sum; what it was asked."""

    def __init__(self) -> None:
        self.texts: list[list[int]] = []

    def score(self, texts: list[list[int]], codes: torch.Tensor) -> torch.Tensor:
        self.texts += texts
        return codes.flatten(1).sum(1).float()


def test_generate_gives_n_images_of_the_tokenizers_size(tiny: CM3):
    images = tiny.generate(APPLE, n=3, seed=7)
    assert [image.size for image in images] == [(16, 16)] * 3
    assert len(set(bytes_of(images))) == 3


def test_an_image_does_not_depend_on_its_batch(tiny: CM3):
    together = tiny.generate(APPLE, n=3, seed=7)
    alone = [tiny.generate(APPLE, seed=seed)[0] for seed in (9, 7, 8)]
    assert bytes_of(alone) == bytes_of([together[2], together[0], together[1]])


@pytest.mark.parametrize("change", [{"guidance": 6.0}, {"temperature": 0.3}, {"top_k": 1}, {"prompt": "a blue car"}])
def test_what_is_asked_for_changes_the_image(tiny: CM3, change: dict):
    options: dict[str, Any] = {"seed": 7, **change}
    prompt: str = options.pop("prompt", APPLE)
    assert bytes_of(tiny.generate(prompt, **options)) != bytes_of(tiny.generate(APPLE, seed=7))


def test_temperature_0_is_top_1(tiny: CM3):
    greedy = tiny.generate(APPLE, n=2, temperature=0)
    assert len(set(bytes_of(greedy + tiny.generate(APPLE, top_k=1)))) == 1


def test_captions_of_a_list_are_those_of_its_images(tiny: CM3, images: list[PIL_Image.Image]):
    captions = tiny.caption(images)
    assert captions == [tiny.caption(image) for image in images]
    assert all(isinstance(caption, str) for caption in captions)


def test_caption_takes_files_and_languages(tiny: CM3, images: list[PIL_Image.Image], tmp_path: Path):
    images[0].save(tmp_path / "image.png")
    assert tiny.caption(tmp_path / "image.png") == tiny.caption(images[0])
    assert tiny.caption(images[0], language="ar") != tiny.caption(images[0], language="en")


def test_one_question_for_all_or_one_each(tiny: CM3, images: list[PIL_Image.Image]):
    questions = ["What is this?", "ما هذا؟", "What colour is it?"]
    assert tiny.answer(images, questions) == [tiny.answer(*pair) for pair in zip(images, questions, strict=True)]
    assert tiny.answer(images, questions[0]) == [tiny.answer(image, questions[0]) for image in images]


def test_the_language_of_a_question_is_that_of_its_letters():
    assert prompt("answer", " What? ") == "Question: What? Answer: "
    assert prompt("answer", "ما هذا؟") == "سؤال: ما هذا؟ جواب: "
    assert set(TEMPLATES["caption"]) == set(TEMPLATES["answer"]) == {"en", "ar"}
    assert prompt("answer", "{question}") == "Question: {question} Answer: "


def test_complete_fills_every_mask_and_keeps_the_rest(tiny: CM3):
    image = Image(torch.arange(16).view(4, 4))
    done = tiny.complete(Document((Text("Caption: "), Mask(), image, Mask())), seed=3)
    assert not any(isinstance(item, Mask) for item in done)
    assert done[0].text.startswith("Caption: ")
    assert [item for item in done if isinstance(item, Image)] == [image]


def test_complete_writes_an_open_document_on_to_its_end(tiny: CM3):
    document = Document((Text("a red"),))
    for seed in range(5):
        done = tiny.complete(document, seed=seed)
        assert done[0].text.startswith("a red")
        assert all(item.grid == (4, 4) for item in done if isinstance(item, Image))


def test_score_agrees_with_the_models_loss(tiny: CM3):
    score = tiny.score(Document((Text(APPLE), Image(torch.arange(16).view(4, 4)))))
    ids = torch.cat([torch.tensor([tiny.vocab.eos]), score.ids])[None]
    loss = tiny.model(input_ids=ids, labels=ids).loss
    assert score.log_probs.shape == score.ids.shape
    assert -score.log_probs.mean() == pytest.approx(loss.item(), abs=1e-5)


def test_streamed_text_joins_to_the_whole(tiny: CM3, images: list[PIL_Image.Image]):
    texts = [""] * 3
    for piece in tiny.stream(tiny.jobs.caption(images, CaptionOptions(temperature=1.0))):
        assert isinstance(piece.content, str)
        texts[piece.index] += piece.content
    assert [text.strip() for text in texts] == tiny.caption(images, temperature=1.0)
    assert (
        tiny.answer(images[0], "What?")
        == "".join(str(piece.content) for piece in tiny.stream(tiny.jobs.answer(images[0], "What?"))).strip()
    )


def test_streamed_image_grows_row_by_row_to_the_whole(tiny: CM3):
    pieces = list(tiny.stream(tiny.jobs.generate(APPLE, GenerateOptions(n=2, seed=7))))
    assert sorted(piece.index for piece in pieces) == [0] * 4 + [1] * 4
    last = {piece.index: piece.content for piece in pieces}
    assert bytes_of([last[0], last[1]]) == bytes_of(tiny.generate(APPLE, n=2, seed=7))


def test_a_saved_model_is_the_same_model(tiny: CM3, tmp_path: Path):
    tiny.save_pretrained(tmp_path)
    again = CM3.from_pretrained(str(tmp_path), device="cpu")
    assert bytes_of(again.generate(APPLE)) == bytes_of(tiny.generate(APPLE))
    assert "model.safetensors" in json.loads((tmp_path / "checksums.json").read_text())


def test_an_image_may_be_larger_than_one_batch_of_rows(tiny: CM3):
    assert len(tiny.generate(APPLE, n=64, guidance=1.0)) == 64


def test_a_list_of_prompts_gives_a_list_of_lists_and_the_same_images(tiny: CM3):
    both = tiny.generate(["a cat", "a blue car"], n=2, seed=3)
    assert [[p.tobytes() for p in row] for row in both] == [
        [p.tobytes() for p in tiny.generate(prompt, n=2, seed=3)] for prompt in ("a cat", "a blue car")
    ]


def test_empty_lists_give_empty_lists(tiny: CM3):
    for nothing in ([], ()):
        assert tiny.generate(nothing) == tiny.generate(nothing, n=2, best_of=3, boxes=BOXES) == []  # pyright: ignore
        assert tiny.caption(nothing) == tiny.answer(nothing, "What?") == tiny.answer(nothing, nothing) == []
        assert tiny.edit(nothing, "make it blue") == tiny.edit(nothing, nothing) == []
        for job in (
            tiny.jobs.generate(nothing),  # pyright: ignore
            tiny.jobs.caption(nothing),
            tiny.jobs.answer(nothing, "What?"),
            tiny.jobs.edit(nothing, "make it blue"),
        ):
            assert list(tiny.stream(job)) == []
    for wrong, message in (
        (lambda: tiny.answer([], ["What?"]), "0 images and 1 questions"),
        (lambda: tiny.answer([], " "), "question is empty"),
        (lambda: tiny.edit([], ["make it blue"]), "0 images and 1 instructions"),
        (lambda: tiny.generate([], n=0), "n is 0"),
        (lambda: tiny.caption([], language="xx"), "language is 'xx'"),  # pyright: ignore
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_methods_and_jobs_take_the_names_of_the_arguments(tiny: CM3, images: list[PIL_Image.Image]):
    document = Document((Text("Caption: "), Mask(), CODES))
    cases: list[tuple[str, dict[str, Any], Any, dict[str, Any]]] = [
        ("generate", dict(prompt=APPLE), GenerateOptions, dict(n=1, seed=3)),
        ("infill", dict(image=images[0], mask=HOLE_MASK, prompt=APPLE), InfillOptions, dict(seed=3)),
        ("edit", dict(image=images[0], instruction="make it blue"), EditOptions, dict(seed=3)),
        ("caption", dict(image=images[0]), CaptionOptions, dict(language="ar", long=True)),
        ("answer", dict(image=images[0], question="What?"), AnswerOptions, {}),
        ("complete", dict(document=document), CompleteOptions, dict(seed=3)),
    ]
    for task, arguments, kind, options in cases:
        job = getattr(tiny.jobs, task)(**arguments, options=kind(**options))
        whole, pieces = getattr(tiny, task)(**arguments, **options), list(tiny.stream(job))
        if isinstance(whole, str):
            assert "".join(str(piece.content) for piece in pieces).strip() == whole
        elif task != "complete":
            last = whole if isinstance(whole, PIL_Image.Image) else whole[0]
            assert bytes_of([pieces[-1].content]) == bytes_of([last])


@pytest.mark.parametrize("seed", [7, 2**32 - 1])
def test_every_bit_of_a_seed_counts(tiny: CM3, seed: int):
    seeds = [seed, *(seed + (1 << bit) for bit in range(32, 63))]
    assert len(set(bytes_of([tiny.generate(APPLE, seed=one, temperature=2.0, top_p=1.0)[0] for one in seeds]))) == 32
    assert len(set(bytes_of(tiny.generate(APPLE, n=3, seed=2**32 - 2)) + bytes_of(tiny.generate(APPLE, seed=0)))) == 4
    large = tiny.generate(APPLE, n=2, seed=2**62)
    assert bytes_of(large[1:]) == bytes_of(tiny.generate(APPLE, seed=2**62 + 1))
    assert bytes_of(large) == bytes_of(tiny.generate(APPLE, n=2, seed=2**62))


# Drawing: boxes, structures, ways of decoding, the best of several.


def drawn(tiny: CM3, prompt: str, **options: Any) -> list[torch.Tensor]:
    return tiny.draw_codes(tiny.jobs.generate(prompt, GenerateOptions(**options)).requests)


def prompts_of(tiny: CM3, requests: list) -> list[str]:
    return [tiny.processor.text([id for id in one.prompt if tiny.vocab.is_text(id)]) for one in requests]


def test_boxes_stand_before_the_words_as_training_writes_them(tiny: CM3):
    words = "a cat [10 20 50 90], a dog [60 20 90 90]"
    assert boxed(BOXES) == words
    assert prompts_of(tiny, tiny.jobs.generate("", GenerateOptions(boxes=BOXES)).requests) == [words]
    assert prompts_of(tiny, tiny.jobs.generate(" on a blue background ", GenerateOptions(boxes=BOXES)).requests) == [
        f"{words} on a blue background"
    ]
    image = tiny.generate("on a blue background", boxes=BOXES, seed=3)
    assert bytes_of(image) == bytes_of(tiny.generate(f"{words} on a blue background", seed=3))


def test_a_structure_stands_behind_the_words(tiny: CM3, images: list[PIL_Image.Image]):
    kinds: list[tuple[Structure, str]] = [("edges", "From edges: a cat"), ("segments", "From segments: a cat")]
    for kind, words in kinds:
        [one] = tiny.jobs.generate("a cat", GenerateOptions(structure=images[0], kind=kind)).requests
        assert prompts_of(tiny, [one]) == [words]
        codes = [id for id in one.prompt if tiny.vocab.is_code(id)]
        assert tiny.vocab.id_to_code(codes) == tiny.image_tokenizer.encode(images[0]).flatten().tolist()
    some = [tiny.generate("a cat", structure=image, seed=1)[0] for image in images[:2]]
    assert len(set(bytes_of([*some, *tiny.generate("a cat", seed=1)]))) == 3


def test_an_iterator_of_images_is_captioned_as_it_comes(tiny: CM3, images: list[PIL_Image.Image]):
    taken: list[int] = []

    def endless():
        for i in count():
            taken.append(i)
            yield images[i % len(images)]

    captions = tiny.caption(endless(), batch=2, language="ar")
    assert taken == []
    wanted = tiny.caption(images, language="ar")
    assert [next(captions) for _ in range(5)] == [wanted[i % len(wanted)] for i in range(5)]
    assert len(taken) == 6
    assert list(tiny.caption(iter(images), batch=64)) == tiny.caption(images)
    assert list(tiny.caption(iter([]))) == []
    with pytest.raises(ValueError, match="batch is 0, but must be 1 or more"):
        tiny.caption(iter(images), batch=0)


def test_falling_guidance_ends_at_none(tiny: CM3):
    constant = tiny.generate(APPLE, guidance=20.0, n=4)
    falling = tiny.generate(APPLE, guidance=20.0, n=4, guidance_schedule="falling")
    assert bytes_of(constant) != bytes_of(falling)
    with pytest.raises(ValueError, match="guidance_schedule is 'rising', but must be one of constant, falling"):
        tiny.generate(APPLE, guidance_schedule="rising")  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_contrastive_decoding_needs_no_guidance(tiny: CM3):
    one = tiny.generate(APPLE, decoding="cd-k", contrast=(4, 0.5), seed=7)
    other = tiny.generate(APPLE, guidance=2.0, top_p=0.5, decoding="cd-k", contrast=(4, 0.5), seed=7)
    assert bytes_of(one) == bytes_of(other)
    assert bytes_of(one) != bytes_of(tiny.generate(APPLE, seed=7))
    assert bytes_of(one) != bytes_of(tiny.generate(APPLE, decoding="cd-k", contrast=(30, 0.1), seed=7))


def test_both_ways_of_decoding_are_one_half_each(tiny: CM3):
    both = tiny.generate(APPLE, n=4, decoding="both", seed=5)
    ways = [
        tiny.generate(APPLE, decoding=decoding, seed=seed)[0]  # pyright: ignore
        for seed, decoding in ((5, "cd-k"), (6, "top-p"), (7, "cd-k"), (8, "top-p"))
    ]
    assert bytes_of(both) == bytes_of(ways)
    assert bytes_of([*tiny.generate(APPLE, decoding="both", seed=6)]) == bytes_of(both[1:2])


@pytest.mark.parametrize("decoding", ["top-p", "both"])
def test_the_scorers_favourite_is_kept(tiny: CM3, monkeypatch: pytest.MonkeyPatch, decoding: Decoding):
    monkeypatch.setattr(tiny, "scorer", Likes())
    monkeypatch.setattr(ranking, "caption_log_probs", lambda *about: torch.zeros(len(about[-1])))
    codes = drawn(tiny, APPLE, n=2, seed=7, best_of=3, decoding=decoding)
    assert len({tuple(one.flatten().tolist()) for one in codes}) > 3  # the candidates differ
    favourites = [max(codes[i : i + 3], key=lambda one: int(one.sum())) for i in (0, 3)]
    best = tiny.generate(APPLE, n=2, seed=7, best_of=3, decoding=decoding)
    assert bytes_of(best) == bytes_of([tiny.processor.decode(one) for one in favourites])
    assert bytes_of(best[1:]) == bytes_of(tiny.generate(APPLE, seed=8, best_of=3, decoding=decoding))
    assert torch.equal(codes[0], drawn(tiny, APPLE, seed=7, decoding=decoding)[0])  # best of 1 is among them


def test_the_first_candidate_is_streamed_and_then_the_best(tiny: CM3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiny, "scorer", Likes())
    monkeypatch.setattr(ranking, "caption_log_probs", lambda *about: torch.zeros(len(about[-1])))
    prompts = [APPLE, "a cat"]
    pieces = list(tiny.stream(tiny.jobs.generate(prompts, GenerateOptions(n=2, seed=7, best_of=3))))
    rows, shown = pieces[:-4], pieces[-4:]
    assert [piece.index for piece in shown] == [0, 1, 2, 3] and len(rows) == 4 * tiny.grid[0]
    best = [image for some in tiny.generate(prompts, n=2, seed=7, best_of=3) for image in some]
    assert bytes_of([piece.content for piece in shown]) == bytes_of(best)
    first = {piece.index: piece.content for piece in rows}
    alone = [image for some in tiny.generate(prompts, n=2, seed=7) for image in some]
    assert bytes_of([first[i] for i in range(4)]) == bytes_of(alone) != bytes_of(best)


@pytest.mark.parametrize("words", [APPLE, "تفاحة"])
def test_without_a_scorer_the_model_keeps_what_it_would_call_so_itself(tiny: CM3, words: str):
    model = copy.deepcopy(tiny.model)
    for i, parameter in enumerate(model.parameters()):  # weights with which the image changes the words
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(i))
    tiny = CM3(model, tiny.text_tokenizer, tiny.image_tokenizer)
    codes = drawn(tiny, words, seed=3, best_of=4)
    said = [*tiny.vocab.text_to_ids(tiny.text_tokenizer.encode(words)), tiny.vocab.eos]
    caption = TEMPLATES["caption"]["en" if words == APPLE else "ar"]
    fits = []
    for grid in codes:
        ids = prompt_ids(Document((Text(caption), Mask(), Image(grid))), tiny.vocab, tiny.text_tokenizer)
        with torch.inference_mode():
            logits = tiny.model(input_ids=torch.tensor([ids + said])).logits[0].log_softmax(-1)
        fits.append(sum(float(logits[len(ids) + i - 1, id]) for i, id in enumerate(said)))
    favourite = codes[max(range(4), key=lambda i: fits[i])]
    assert len(set(fits)) > 1
    assert bytes_of(tiny.generate(words, seed=3, best_of=4)) == bytes_of([tiny.processor.decode(favourite)])


def test_the_scorer_and_the_model_count_alike(tiny: CM3, monkeypatch: pytest.MonkeyPatch):
    codes = drawn(tiny, APPLE, seed=7, best_of=3)
    monkeypatch.setattr(tiny, "scorer", SimpleNamespace(score=lambda texts, codes: torch.tensor([0.0, 0.3, 1.0])))
    monkeypatch.setattr(ranking, "caption_log_probs", lambda *about: torch.tensor([-90.0, -10.0, -80.0]))
    best = tiny.generate(APPLE, seed=7, best_of=3)  # -1.05 - 0.84, -0.31 + 1.40, 1.36 - 0.56 standard deviations
    assert bytes_of(best) == bytes_of([tiny.processor.decode(codes[1])])


def test_the_scorer_reads_what_is_to_be_seen_and_not_where(tiny: CM3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiny, "scorer", Likes())
    tiny.generate(["on blue", "on red"], boxes=BOXES, best_of=2)
    tiny.generate([APPLE], best_of=2)
    assert [tiny.text_tokenizer.decode(ids) for ids in tiny.scorer.texts] == [  # pyright: ignore
        "a cat, a dog on blue",
        "a cat, a dog on red",
        APPLE,
    ]


# Filling in.


def test_an_edit_keeps_the_pixels_where_codes_stay(
    tiny: CM3, images: list[PIL_Image.Image], monkeypatch: pytest.MonkeyPatch
):
    small = images[0].resize((16, 16))
    codes = tiny.image_tokenizer.encode(small)
    changed = codes.clone()
    changed[0, 1] = (changed[0, 1] + 1) % tiny.image_tokenizer.num_codes
    monkeypatch.setattr(tiny, "run_requests", lambda *_: [tiny.vocab.code_to_id(changed.flatten().tolist())])
    out, side = np.asarray(tiny.edit(small, "make it blue")), small.width // codes.shape[1]
    redrawn = np.zeros(out.shape[:2], bool)
    redrawn[: 2 * side, : 3 * side] = True  # the cell and its neighbours
    assert (out[~redrawn] == np.asarray(small)[~redrawn]).all()
    assert (out[redrawn] == np.asarray(tiny.processor.decode(changed))[redrawn]).all()


def test_infill_keeps_every_code_that_the_mask_does_not_touch(tiny: CM3, images: list[PIL_Image.Image]):
    codes = tiny.image_tokenizer.encode(images[0].crop((4, 0, 28, 24)))  # the middle square: cells of 6 pixels
    touched = torch.zeros(4, 4, dtype=torch.bool)
    touched[1, 0:2] = True  # x 9..13 is 5..9 of the square
    for words in (None, "a cat"):
        requests = tiny.jobs.infill(
            images[0], HOLE_MASK, words, InfillOptions(n=4, temperature=2.0, top_p=1.0)
        ).requests
        given = torch.tensor([-1 if id is None else tiny.vocab.id_to_code(id) for id in requests[0].given or ()])
        assert torch.equal(given.view(4, 4), codes.masked_fill(touched, -1))
        new = tiny.draw_codes(requests)
        assert all(torch.equal(one[~touched], codes[~touched]) for one in new)
        assert len({tuple(one[touched].tolist()) for one in new}) > 1


def test_infill_changes_pixels_under_the_mask_only(tiny: CM3, images: list[PIL_Image.Image]):
    own = np.asarray(images[0])
    for image in tiny.infill(images[0], HOLE_MASK, n=2, seed=3):
        changed = (np.asarray(image) != own).any(-1)
        rows, columns = changed.nonzero()
        assert image.size == images[0].size
        assert rows.min() >= 6 and rows.max() < 12 and columns.min() >= 4 and columns.max() < 16  # the two cells
        assert changed[7:11, 9:14].mean() > 0.9


def test_infill_is_the_same_alone_in_a_batch_and_streamed(tiny: CM3, images: list[PIL_Image.Image]):
    for words in (None, APPLE):
        three = tiny.infill(images[0], HOLE_MASK, words, n=3, seed=7)
        assert bytes_of(three[2:]) == bytes_of(tiny.infill(images[0], HOLE_MASK, words, seed=9))
        streamed = list(tiny.stream(tiny.jobs.infill(images[0], HOLE_MASK, words, InfillOptions(n=3, seed=7))))
        assert sorted(piece.index for piece in streamed) == [0] * 4 + [1] * 4 + [2] * 4
        last = dict(streamed)
        assert bytes_of([last[0], last[1], last[2]]) == bytes_of(three)
    assert bytes_of(three) != bytes_of(tiny.infill(images[0], HOLE_MASK, n=3, seed=7))
    assert bytes_of(three) != bytes_of(tiny.infill(images[0], HOLE_MASK, APPLE, n=3, guidance=3.0, seed=7))


def test_an_infill_without_words_has_no_second_lane(tiny: CM3, images: list[PIL_Image.Image]):
    for words, sequences in ((None, 0), (" ", 0), ("a cat", 1)):
        assert [len(one.extra_prompts) for one in tiny.jobs.infill(images[0], HOLE_MASK, words).requests] == [sequences]
    assert bytes_of(tiny.infill(images[0], HOLE_MASK)) == bytes_of(tiny.infill(images[0], HOLE_MASK, guidance=9.0))


def test_infill_gives_back_large_and_oblong_images_at_their_size(tiny: CM3, images: list[PIL_Image.Image]):
    large = images[0].resize((300, 512))
    mask = mask_of((20, 400, 40, 500), large.size)
    [filled] = tiny.infill(large, mask)
    assert filled.size == large.size
    for kept in ((0, 0, 300, 350), (75, 0, 300, 512), (0, 500, 300, 512)):  # cells of 75 pixels, from y = 200 on
        assert filled.crop(kept).tobytes() == large.crop(kept).tobytes()
    square = images[0].resize((24, 24))
    assert tiny.infill(square, PIL_Image.new("1", (24, 24), 1))[0].size == (24, 24)  # all of it


def test_infill_keeps_transparency_outside_and_is_opaque_under_the_mask(tiny: CM3, images: list[PIL_Image.Image]):
    image = images[0].copy()
    image.putalpha(images[1].convert("L"))
    [filled] = tiny.infill(image, HOLE_MASK, seed=3)
    own, out = np.asarray(image), np.asarray(filled)
    assert (filled.mode, filled.size) == ("RGBA", image.size)
    touched = np.zeros(own.shape[:2], bool)
    touched[6:12, 4:16] = True  # two cells
    assert (out[~touched] == own[~touched]).all()
    assert (out[7:11, 9:14, 3] == 255).all()
    flat = tiny.infill(image.convert("RGBa").convert("RGB"), HOLE_MASK, seed=3)[0]
    assert flat.mode == "RGB"


@pytest.mark.parametrize("mode", ["L", "P", "LA", "PA", "1", "CMYK", "I;16"])
def test_infill_and_edit_of_any_mode_are_colour_with_transparency_where_there_was_some(
    tiny: CM3, images: list[PIL_Image.Image], mode: str
):
    grey = np.asarray(images[0].convert("L"))
    image = PIL_Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else images[0].convert(mode)
    for one in (tiny.infill(image, HOLE_MASK)[0], tiny.edit(image, "make it blue")):
        assert (one.size, one.mode) == (image.size, "RGBA" if mode in ("LA", "PA") else "RGB")


def test_infill_of_everything_is_a_drawing_of_its_own(tiny: CM3, images: list[PIL_Image.Image]):
    square = images[0].resize((16, 16))
    white = PIL_Image.new("L", (16, 16), 255)
    [request] = tiny.jobs.infill(square, white).requests
    assert request.given == [None] * 16
    assert bytes_of(tiny.infill(square, white)) == bytes_of([tiny.processor.decode(tiny.draw_codes([request])[0])])


def test_image_and_mask_of_infill_are_turned_upright(tiny: CM3, images: list[PIL_Image.Image], tmp_path: Path):
    exif = PIL_Image.Exif()
    exif[274] = 6  # turn right by a quarter
    for name, image in (("image", images[0]), ("mask", HOLE_MASK)):
        image.transpose(PIL_Image.Transpose.ROTATE_90).save(tmp_path / f"{name}.png", exif=exif)
    turned = tiny.infill(tmp_path / "image.png", tmp_path / "mask.png")
    assert bytes_of(turned) == bytes_of(tiny.infill(images[0], HOLE_MASK))


# Editing.


def test_an_edit_is_guided_by_the_image_and_by_nothing(tiny: CM3, images: list[PIL_Image.Image]):
    [one] = tiny.jobs.edit(images[0], "make it blue", EditOptions(image_guidance=1.5, text_guidance=4.0)).requests
    codes = tiny.vocab.code_to_id(tiny.image_tokenizer.encode(images[0]).flatten().tolist())
    sequences = [[id for id in sequence if tiny.vocab.is_code(id)] for sequence in (one.prompt, *one.extra_prompts)]
    assert sequences == [codes, codes, []]
    assert prompts_of(tiny, [one]) == ["Edit: make it blue"]
    edits = [
        tiny.edit(images[0], "make it blue", image_guidance=one, text_guidance=other)
        for one, other in ((1.5, 4.0), (3.0, 4.0), (1.5, 1.0))
    ]
    assert len(set(bytes_of(edits))) == 3
    assert edits[0].size == images[0].size


def test_what_an_edit_is_to_keep_stays(tiny: CM3, images: list[PIL_Image.Image]):
    source = tiny.image_tokenizer.encode(images[0])

    def kept(keep: float) -> int:
        [one] = tiny.jobs.edit(images[0], "make it blue", EditOptions(temperature=1.0, top_p=1.0, keep=keep)).requests
        return int((tiny.draw_codes([one])[0] == source).sum())

    assert kept(0) < kept(5) < kept(100) == source.numel()
    assert tiny.edit(images[0], "make it blue", keep=100).tobytes() == images[0].tobytes()


@pytest.mark.parametrize("size", [(16, 16), (300, 100), (100, 300), (301, 100), (256, 256), (7, 5), (1, 1)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_edit_gives_back_the_image_with_its_middle_changed(
    tiny: CM3, images: list[PIL_Image.Image], size: tuple[int, int], mode: str
):
    image = images[0].resize(size)
    if mode == "RGBA":
        image.putalpha(images[1].resize(size).convert("L"))
    own, (width, height), side = np.asarray(image), size, min(size)
    edited = tiny.edit(image, "make it blue", temperature=2.0, top_p=1.0)
    out = np.asarray(edited)
    assert (edited.size, edited.mode) == (size, mode)
    changed = (out != own).any(-1)
    rows, columns = changed.nonzero()
    assert changed.sum() > side * side / 2  # random weights change most codes
    assert rows.min() >= (height - side) // 2 and rows.max() < (height - side) // 2 + side
    assert columns.min() >= (width - side) // 2 and columns.max() < (width - side) // 2 + side
    if mode == "RGBA":
        assert (out[changed, 3] == 255).all()
    *_, last = tiny.stream(tiny.jobs.edit(image, "make it blue", EditOptions(temperature=2.0, top_p=1.0)))
    assert bytes_of([last.content]) == bytes_of([edited])


def test_an_edit_of_an_image_of_another_size_keeps_the_pixels_where_codes_stay(
    tiny: CM3, images: list[PIL_Image.Image], monkeypatch: pytest.MonkeyPatch
):
    wide = images[0].resize((140, 80))  # its middle square: from x = 30 on, cells of 20 pixels
    changed = tiny.image_tokenizer.encode(wide)
    changed[3, 0] = (changed[3, 0] + 1) % tiny.image_tokenizer.num_codes
    monkeypatch.setattr(tiny, "run_requests", lambda *_: [tiny.vocab.code_to_id(changed.flatten().tolist())])
    out, redrawn = np.asarray(tiny.edit(wide, "make it blue")), np.zeros((80, 140), bool)
    redrawn[40:, 30:70] = True  # the cell and its neighbours
    assert (out[~redrawn] == np.asarray(wide)[~redrawn]).all()
    drawn = np.zeros_like(out)
    drawn[:, 30:110] = tiny.processor.decode(changed).resize((80, 80), PIL_Image.Resampling.BICUBIC)
    assert (out[redrawn] == drawn[redrawn]).all()


def test_edits_of_a_list_are_those_of_its_images(tiny: CM3, images: list[PIL_Image.Image]):
    words = ["make it blue", "احذف القطة", "add a dog"]
    each = [tiny.edit(*pair, seed=3) for pair in zip(images, words, strict=True)]
    assert bytes_of(tiny.edit(images, words, seed=3)) == bytes_of(each)
    assert bytes_of(tiny.edit(tuple(images[:2]), words[0], seed=3)) == bytes_of(
        [tiny.edit(image, words[0], seed=3) for image in images[:2]]
    )
    assert each[0].tobytes() != tiny.edit(images[0], words[0], seed=4).tobytes()


def test_streamed_edits_grow_to_the_whole(tiny: CM3, images: list[PIL_Image.Image]):
    streamed = list(tiny.stream(tiny.jobs.edit(images, "make it blue", EditOptions(seed=3))))
    assert [piece.index for piece in streamed] == [0, 1, 2] * 4
    assert bytes_of([piece.content for piece in streamed[-3:]]) == bytes_of(tiny.edit(images, "make it blue", seed=3))


# Documents.


def pieces_of(tiny: CM3, job: Job[Any]) -> list:
    """What stream joins to: a str for a text, the last of an image's."""
    out: dict = {}
    for index, content in tiny.stream(job):
        out[index] = out.get(index, "") + content if isinstance(content, str) else content
    assert sorted(out) == list(range(len(out)))
    return [out[index] for index in sorted(out)]


def test_streamed_lists_of_prompts_and_structures_are_the_whole(tiny: CM3, images: list[PIL_Image.Image]):
    options: dict[str, Any] = dict(n=2, seed=3, structure=images[0], decoding="both")
    whole = tiny.generate(["a cat", "a blue car"], **options)
    assert bytes_of(
        pieces_of(tiny, tiny.jobs.generate(["a cat", "a blue car"], GenerateOptions(**options)))
    ) == bytes_of(sum(whole, []))


def test_complete_draws_holes_and_keeps_the_codes_around_them(tiny: CM3):
    document = Document((Text("a cat"), HOLED, Mask(), HOLED))
    done = tiny.complete(document, seed=3)
    first, second = [item.codes for item in done if isinstance(item, Image)]
    for codes in (first, second):
        assert not (codes == HOLE).any()
        assert torch.equal(codes[HOLED.codes != HOLE], CODES.codes[HOLED.codes != HOLE])
    assert done[0] == Text("a cat") and not any(isinstance(item, Mask) for item in done)
    assert tiny.complete(document, seed=3) == done != tiny.complete(document, seed=4)


def test_complete_reads_several_images_and_texts(tiny: CM3):
    items = (CODES, Text("a"), Mask(), CODES, CODES, Mask())
    done = tiny.complete(Document(items), seed=2)
    assert [item for item in done if isinstance(item, Image)] == [CODES] * 3
    assert not any(isinstance(item, Mask) for item in done)
    longer = tiny.complete(Document((Text("a cat"), CODES, Text("a dog"))), seed=2)
    assert longer[:2] == (Text("a cat"), CODES)
    assert longer[2].text.startswith("a dog")


@pytest.mark.parametrize("items", [(Text(APPLE),), (), (Text("a cat"), CODES, Text("a dog"))])
def test_guidance_of_a_document_that_is_written_on(tiny: CM3, items: tuple):
    document = Document(items)
    plain = tiny.complete(document, seed=1)
    off = tiny.complete(document, seed=1, guidance=1.0, text_guidance=1.0)
    guided = tiny.complete(document, seed=1, text_guidance=4.0)
    assert plain == off != guided
    assert guided[: len(items) - 1] == plain[: len(items) - 1] or not items


def test_guidance_counts_for_holes(tiny: CM3):
    document = Document((Text("a cat"), Image(torch.full((4, 4), HOLE))))
    one, other = (tiny.complete(document, seed=3, guidance=guidance)[1] for guidance in (1.0, 6.0))
    assert one != other


STREAMED = {
    "open": Document((Text(APPLE),)),
    "masks": Document((Text("a"), Mask(), CODES, Mask())),
    "holes": Document((Text("a cat"), HOLED, HOLED)),
    "holes and masks": Document((HOLED, Mask(), HOLED)),
    "nothing": Document(),
}


@pytest.mark.parametrize("name", STREAMED)
def test_a_streamed_document_is_the_whole(tiny: CM3, name: str):
    document = STREAMED[name]
    streamed = pieces_of(tiny, tiny.jobs.complete(document, CompleteOptions(seed=2)))
    done = tiny.complete(document, seed=2)
    holes = sum(isinstance(item, Image) and item.holes for item in document)
    items = list(done)
    for image in streamed[:holes]:
        codes = next(item.codes for item in items if isinstance(item, Image))
        items.remove(Image(codes))
        assert image.tobytes() == tiny.processor.decode(codes).tobytes()
    rest = streamed[holes:]
    texts = "".join(piece for piece in rest if isinstance(piece, str))
    assert "".join(item.text for item in items if isinstance(item, Text)).endswith(texts) or "masks" in name
    assert all(
        piece in "".join(item.text for item in items if isinstance(item, Text))
        for piece in rest
        if isinstance(piece, str)
    )
    drawn = [piece for piece in rest if not isinstance(piece, str)]
    assert bytes_of(drawn) == bytes_of(
        [tiny.processor.decode(item.codes) for item in items[len(document) - holes :] if isinstance(item, Image)]
    )


def test_long_captions_have_their_own_words(tiny: CM3, images: list[PIL_Image.Image]):
    language: Any
    for language, words in TEMPLATES["describe"].items():
        requests = tiny.jobs.caption(images[0], CaptionOptions(language=language, long=True)).requests
        assert prompts_of(tiny, requests) == [words]
    assert tiny.caption(images[:2], long=True) == [tiny.caption(image, long=True) for image in images[:2]]


def test_jobs_of_all_kinds_in_one_batch_give_what_each_gives_alone(tiny: CM3, images: list[PIL_Image.Image]):
    jobs = [
        *tiny.jobs.generate(APPLE, GenerateOptions(n=2, seed=1, decoding="both")).requests,
        *tiny.jobs.generate("a cat", GenerateOptions(structure=images[1])).requests,
        *tiny.jobs.infill(images[0], HOLE_MASK, "a cat", InfillOptions(seed=2)).requests,
        *tiny.jobs.infill(images[0], HOLE_MASK).requests,
        *tiny.jobs.edit(images[0], "make it blue", EditOptions(seed=3)).requests,
        *tiny.jobs.caption(images[2], CaptionOptions(temperature=1.0)).requests,
        *tiny.jobs.answer(images[1], "What is this?").requests,
    ]
    assert tiny.run_requests(jobs) == [tiny.run_requests([job])[0] for job in jobs]
