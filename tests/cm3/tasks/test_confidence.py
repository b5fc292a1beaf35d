"""Confidence: the probability of captions and answers, and the mark of those that are not sure."""

import math
import pickle
from pathlib import Path

import pytest
from PIL import Image

from cm3 import CM3
from cm3.engine.options import AnswerOptions, CaptionOptions, Query
from cm3.hf.model_folder import write_checksums
from cm3.tasks.confidence import CALIBRATION, NOT_SURE, Calibration
from cm3.tasks.plan_words import AND
from cm3.tasks.rated_text import RatedText, with_words
from planner import CAT, COUNT, images

OWN = Calibration(slope=2.0, offset=1.0, threshold=0.4)


def with_calibration(model: CM3, calibration: Calibration | None) -> CM3:
    return CM3(model.model, model.text_tokenizer, model.image_tokenizer, calibration=calibration)


@pytest.fixture(scope="module")
def rated(tiny: CM3) -> CM3:
    return with_calibration(tiny, OWN)


@pytest.fixture(scope="module")
def known(planning: CM3) -> Image.Image:
    """An image that the planning model knows."""
    return planning.processor.decode(images(planning.image_tokenizer)[CAT])


def sure(text: str) -> RatedText:
    assert isinstance(text, RatedText)
    return text


def test_a_caption_has_the_calibrated_mean_of_its_log_probabilities(rated: CM3, images: list[Image.Image]):
    text = sure(rated.caption(images[0], threshold=0.0))
    [request] = rated.jobs.caption(images[0]).requests
    [new] = rated.run_requests([request])
    mean = float(rated.score_ids([*request.prompt, *new]).log_probs[-len(new) :].mean())
    assert text.log_prob == pytest.approx(mean, abs=1e-4)
    assert text.probability == pytest.approx(1 / (1 + math.exp(-(2 * mean + 1))), abs=1e-4)
    assert text == rated.processor.text(new).strip() and text.mark == ""


@pytest.mark.parametrize("language", ["en", "ar"])
def test_below_the_threshold_a_caption_says_so_in_its_language(rated: CM3, images: list[Image.Image], language: str):
    plain = rated.run(rated.jobs.tell([(images[0], Query(language=language))], AnswerOptions(threshold=0)))[0]
    marked = rated.run(rated.jobs.tell([(images[0], Query(language=language))], AnswerOptions(threshold=1)))[0]
    assert marked == f"{plain} ({NOT_SURE[language]})"
    assert sure(marked).probability == sure(plain).probability


def test_an_answer_is_marked_in_the_language_of_its_question(rated: CM3, images: list[Image.Image]):
    assert rated.answer(images[0], "What is this?", threshold=1).endswith("(not sure)")
    assert rated.answer(images[0], "ما هذا؟", threshold=1).endswith(f"({NOT_SURE['ar']})")


def test_every_language_of_captions_has_the_mark():
    assert NOT_SURE.keys() == AND.keys()


@pytest.mark.parametrize(("threshold", "is_marked"), [(0.0, False), (1.0, True)])
def test_without_an_option_the_threshold_is_the_models(
    tiny: CM3, images: list[Image.Image], threshold: float, is_marked: bool
):
    model = with_calibration(tiny, Calibration(2.0, 1.0, threshold))
    assert model.caption(images[0]).endswith("(not sure)") == is_marked


def test_streamed_texts_end_with_their_marks(rated: CM3, images: list[Image.Image]):
    options = CaptionOptions(threshold=1)
    pieces = list(rated.stream(rated.jobs.caption(images[:2], options)))
    joined = ["".join(str(piece.content) for piece in pieces if piece.index == i) for i in (0, 1)]
    whole = rated.run(rated.jobs.caption(images[:2], options))
    assert [text.split() for text in joined] == [text.split() for text in whole]


def test_models_without_calibration_rate_nothing(tiny: CM3, images: list[Image.Image]):
    assert type(tiny.caption(images[0])) is str
    with pytest.raises(ValueError, match=r"threshold is 0.5, but this model is not calibrated.*train.calibrate"):
        tiny.caption(images[0], threshold=0.5)


def test_a_plan_is_rated_by_what_is_shown_and_an_answer_by_its_least_likely_part(planning: CM3, known: Image.Image):
    model = with_calibration(planning, Calibration(1.0, 0.0, 0.0))
    caption = sure(model.caption(known))
    assert caption == "a cat"
    [request] = model.jobs.caption(known).requests
    [new] = model.run_requests([request])
    log_probs = model.score_ids([*request.prompt, *new]).log_probs[-len(new) :]
    shown = len(model.text_tokenizer.encode("a cat"))
    assert shown < len(new)
    assert caption.log_prob == pytest.approx(float(log_probs[:shown].mean()), abs=1e-4)
    answer = sure(model.answer(known, COUNT))
    assert answer == "1" and answer.log_prob <= caption.log_prob
    assert sure(model.caption(known, language="de")).log_prob == caption.log_prob


def test_the_calibration_is_saved_with_the_model(rated: CM3, tmp_path: Path):
    rated.save_pretrained(tmp_path / "model")
    assert CM3.from_pretrained(tmp_path / "model").calibration == OWN
    for broken in ("[]", "{", '{"slope": 1}', '{"slope": NaN, "offset": 1}', '{"slope": "1", "offset": 1}'):
        (tmp_path / "model" / CALIBRATION).write_text(broken)
        write_checksums(tmp_path / "model")
        with pytest.raises(ValueError, match=f"{CALIBRATION} is damaged"):
            CM3.from_pretrained(tmp_path / "model")


def test_no_text_at_all_is_surely_wrong():
    assert OWN.probability(-math.inf) < 1e-9


def test_rated_texts_are_strings_that_can_be_sent_to_other_processes():
    text = RatedText("a cat (not sure)", 0.25, -1.5, " (not sure)")
    copy = pickle.loads(pickle.dumps(text))
    assert (copy, copy.probability, copy.log_prob, copy.mark) == (text, 0.25, -1.5, " (not sure)")
    assert with_words(text, "x, a cat").probability == 0.25  # pyright: ignore[reportAttributeAccessIssue]
    assert type(with_words("a cat", "x")) is str
