"""The public face: what users write, on a tiny model with random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.engine.options import (
    AnswerOptions,
    CaptionOptions,
    CompleteOptions,
    EditOptions,
    GenerateOptions,
    InfillOptions,
)
from cm3.tokens.document import Document, Image, Mask, Text
from cm3.tokens.templates import TEMPLATES, prompt
from pipelines import BOXES, CODES, HOLE_MASK, bytes_of

APPLE = "a red apple"


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
