"""Models that plan, end to end: a tiny one that knows a small world by heart (tests/helpers/planner.py)."""

from typing import Any

import pytest
from PIL import Image

from cm3 import CM3
from cm3.engine.guidance import ClassifierFree
from cm3.engine.options import NEGATIVE_GUIDANCE, AnswerOptions, GenerateOptions, Query
from cm3.tasks.planning import place_of
from cm3.tokens.templates import PLANS
from planner import ALONE, BLUE, CAT, COUNT, DOG, PAIR, SMALL, images


@pytest.fixture(scope="module")
def model(planning: CM3) -> CM3:
    return planning


@pytest.fixture(scope="module")
def drawn(model: CM3) -> dict[str, bytes]:
    """The pixels of each plan's image."""
    return {plan: pixels(model.image_tokenizer.decode(codes)) for plan, codes in images(model.image_tokenizer).items()}


def pixels(image: Any) -> bytes:
    assert isinstance(image, Image.Image)
    return image.tobytes()


def options(**given: Any) -> GenerateOptions:
    return GenerateOptions(temperature=0.0, variety=0.0, **given)


def draw(model: CM3, prompt: Any, **given: Any) -> Any:
    return model.generate(prompt, temperature=0.0, variety=0.0, **given)


@pytest.mark.parametrize(
    ("prompt", "plan"), [("a cat", CAT), ("A CAT ", CAT), ("a dog", DOG), ("a cat and a dog", PAIR)]
)
def test_a_prompt_is_drawn_from_the_plan_that_the_model_writes(
    model: CM3, drawn: dict[str, bytes], prompt: str, plan: str
):
    [image] = draw(model, prompt)
    assert image.info["plan"] == plan
    assert pixels(image) == drawn[plan]


def test_colours_are_put_on_what_was_drawn_plain(model: CM3, drawn: dict[str, bytes]):
    [image] = draw(model, "a cat on blue")
    assert image.info["plan"] == BLUE
    assert pixels(image) == drawn[BLUE]  # the model has never drawn it at once


def test_each_prompt_of_a_list_has_n_images_with_their_plans(model: CM3):
    rows = draw(model, ["a cat", "a dog"], n=2)
    assert [[image.info["plan"] for image in row] for row in rows] == [[CAT, CAT], [DOG, DOG]]


def test_image_i_of_a_seed_is_image_0_of_the_seed_plus_i(model: CM3):
    two = model.generate("a cat on blue", n=2, seed=3, temperature=3.0, variety=0.1)
    alone = [model.generate("a cat on blue", seed=3 + i, temperature=3.0, variety=0.1)[0] for i in range(2)]
    assert [pixels(image) for image in two] == [pixels(image) for image in alone]
    assert pixels(two[0]) != pixels(two[1])


def test_a_given_plan_is_drawn_as_it_is(model: CM3, drawn: dict[str, bytes]):
    [image] = draw(model, "", plan=ALONE)
    assert (image.info["plan"], pixels(image)) == (ALONE, drawn[ALONE])


def test_without_a_plan_the_prompt_itself_is_drawn(model: CM3, drawn: dict[str, bytes]):
    [image] = draw(model, CAT, plan=False)
    assert "plan" not in image.info and pixels(image) == drawn[CAT]


@pytest.mark.parametrize("plan", ["", "a cat, a dog", "a cat at the top left, a dog at the top left"])
def test_a_given_text_that_is_no_plan_is_refused(model: CM3, plan: str):
    with pytest.raises(ValueError, match="plan"):
        draw(model, "a cat", plan=plan)


def test_a_model_that_writes_no_valid_plan_says_so(model: CM3):
    with pytest.raises(ValueError, match="no valid plan for 'two at one place'"):
        draw(model, "two at one place")


def test_an_empty_prompt_is_refused(model: CM3):
    with pytest.raises(ValueError, match="the prompt is empty"):
        draw(model, " ")


def test_small_images_have_the_smallest_grid_and_several_things_the_usual_one(model: CM3):
    jobs = [model.jobs.draw(prompt, options(size="small")) for prompt in ("a cat", "a cat and a dog")]
    small, scene = (model.run(job)[0] for job in jobs)
    assert small.codes.tolist() == [[1, 2], [3, 4]] and small.codes.shape == SMALL
    assert scene.codes.shape == model.grid


def test_boxes_are_places_of_a_plan(model: CM3, drawn: dict[str, bytes]):
    boxes = [("a dog", (0.5, 0.6, 0.9, 1.0)), ("a cat", (0.0, 0.0, 0.4, 0.4))]
    [image] = draw(model, "", boxes=boxes)
    assert (image.info["plan"], pixels(image)) == (PAIR, drawn[PAIR])


def test_two_boxes_at_one_place_are_refused(model: CM3):
    with pytest.raises(ValueError, match="two things stand at one place"):
        draw(model, "", boxes=[("a cat", (0.0, 0.0, 0.4, 0.4)), ("a dog", (0.1, 0.0, 0.4, 0.4))])


@pytest.mark.parametrize(
    ("box", "count", "place"),
    [
        ((0.0, 0.0, 1.0, 1.0), 1, ""),
        ((0.0, 0.0, 1.0, 1.0), 2, "bottom right"),
        ((0.0, 0.0, 0.5, 0.5), 1, "top left"),
        ((0.6, 0.0, 1.0, 0.3), 2, "top right"),
        ((0.0, 0.6, 0.4, 1.0), 2, "bottom left"),
    ],
)
def test_a_box_stands_for_the_place_of_its_middle(box: Any, count: int, place: str):
    assert place_of(box, count) == place


@pytest.mark.parametrize("given", [{"structure": "x.png"}, {"references": ["x.png"]}])
def test_drawing_after_other_images_is_refused(model: CM3, given: dict[str, Any]):
    with pytest.raises(ValueError, match="a model that plans"):
        draw(model, "a cat", **given)


def test_boxes_and_a_plan_contradict_each_other(model: CM3):
    with pytest.raises(ValueError, match="boxes or a plan"):
        draw(model, "a cat", plan=CAT, boxes=[("a cat", (0, 0, 1, 1))])


def test_the_best_candidate_is_the_one_whose_plan_is_likeliest(model: CM3, drawn: dict[str, bytes]):
    codes = images(model.image_tokenizer)
    shown = {plan: model.image_tokenizer.encode(model.image_tokenizer.decode(codes[plan])) for plan in (DOG, PAIR)}
    assert model.best(PAIR, [shown[DOG], shown[PAIR]]) == 1
    assert model.best(DOG, [shown[DOG], shown[PAIR]]) == 0
    [image] = draw(model, "a cat", best_of=3)
    assert pixels(image) == drawn[CAT]


def test_an_edit_changes_the_plan_and_then_the_image(model: CM3, drawn: dict[str, bytes]):
    [source] = draw(model, "a cat and a dog")
    edited = model.edit(source, "remove the dog", temperature=0.0)
    assert (edited.info["plan"], edited.size) == (ALONE, source.size)
    assert pixels(edited) == drawn[ALONE]


def test_an_edit_may_be_given_its_plan(model: CM3):
    [source] = draw(model, "a cat and a dog")
    assert model.edit(source, "whatever", plan=ALONE, temperature=0.0).info["plan"] == ALONE


def test_inpainting_reads_the_plan_of_its_prompt(model: CM3):
    [source] = draw(model, "a cat")
    mask = Image.new("L", source.size, 255)
    [image] = model.infill(source, mask, "a dog", temperature=0.0)
    assert image.size == source.size


def test_inpainting_without_a_valid_plan_says_so(model: CM3):
    [source] = draw(model, "a cat")
    with pytest.raises(ValueError, match="no valid plan for 'two at one place'"):
        model.infill(source, Image.new("L", source.size, 255), "two at one place", temperature=0.0)


def test_a_negative_prompt_turns_guidance_on(model: CM3):
    job = model.jobs.draw("", options(plan=CAT, negative_prompt="a dog"))
    while not job.requests:
        job.give([])  # the plan is shown
    [request] = job.requests
    assert request.guide == ClassifierFree(image=NEGATIVE_GUIDANCE)
    assert model.processor.text([id for id in request.extra_prompts[0] if model.vocab.is_text(id)]) == "a dog"


@pytest.mark.parametrize(
    ("language", "long", "caption"),
    [
        ("en", False, "a cat and a dog"),
        ("ar", False, "قطة وكلب"),
        ("de", False, "Katze und Hund"),
        ("en", True, PAIR),
        ("ar", True, "قطة في أعلى اليسار، كلب في أسفل اليمين، بأسلوب noto"),
    ],
)
def test_captions_are_the_plan_in_words(model: CM3, language: Any, long: bool, caption: str):
    [image] = draw(model, "a cat and a dog")
    assert model.caption(image, language=language, long=long) == caption


def test_long_captions_are_in_english_and_arabic(model: CM3):
    with pytest.raises(ValueError, match="language of a long caption"):
        model.caption(Image.new("RGB", (8, 8)), language="de", long=True)


def test_several_queries_about_several_images_read_each_image_once(model: CM3):
    cat, both = (draw(model, prompt)[0] for prompt in ("a cat", "a cat and a dog"))
    queries = [(both, Query(COUNT)), (cat, Query()), (both, Query(language="de")), (cat, Query("What is this?"))]
    job = model.jobs.tell(queries)
    assert len(job.requests) == 2  # plans
    assert model.run(job) == ["2", "a cat", "Katze und Hund", "a cat"]


def test_the_plan_and_the_history_stand_before_the_question(model: CM3):
    [image] = draw(model, "a cat")
    job = model.jobs.answer(image, "What is this?", AnswerOptions(history=[(COUNT, "1")]))
    job.give(model.run_requests(job.requests))  # the plan is read
    [request] = job.requests
    before = [(PLANS["read"], CAT), (f"Question: {COUNT} Answer: ", "1")]
    assert request.prompt == model.prompts.question_ids(
        "Question: What is this? Answer: ", model.processor.encode(image), before
    )


def test_a_stream_shows_the_plan_before_the_image(model: CM3, drawn: dict[str, bytes]):
    pieces = list(model.stream(model.jobs.generate("a cat on blue", options())))
    first, *rest = [piece.content for piece in pieces]
    assert first == BLUE
    assert all(isinstance(content, Image.Image) for content in rest)
    assert pixels(rest[-1]) == drawn[BLUE]


def test_a_streamed_caption_comes_whole(model: CM3):
    [image] = draw(model, "a cat and a dog")
    job = model.jobs.caption(image)
    assert [piece.content for piece in model.stream(job)] == ["a cat and a dog"]


def test_a_model_that_does_not_plan_refuses_a_plan(tiny: CM3):
    with pytest.raises(ValueError, match="does not plan"):
        tiny.generate("a cat", plan=CAT)
    with pytest.raises(ValueError, match="does not plan"):
        tiny.edit(Image.new("RGB", (8, 8)), "x", plan=CAT)
