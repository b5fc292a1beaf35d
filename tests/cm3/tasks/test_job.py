"""Jobs of several batches: run, streamed, and stopped between two of them."""

from typing import Any

import pytest
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.engine.options import CaptionOptions, GenerateOptions
from cm3.serving.admission import Disconnected, Limits, Ticket
from cm3.serving.safety import Safety
from cm3.serving.state import State
from cm3.tasks.job import Batch, Job, Phases, Piece


def described_and_drawn(model: CM3, image: PIL_Image.Image) -> Phases[tuple[str, PIL_Image.Image]]:
    """Caption an image, then draw an image of the caption."""
    caption = model.jobs.caption(image, CaptionOptions(temperature=1.0, seed=1)).batch
    assert caption is not None
    [ids] = yield caption
    words = model.processor.text(ids).strip()
    drawing = model.jobs.generate(words or "a", GenerateOptions(seed=7)).batch
    assert drawing is not None
    [ids] = yield drawing._replace(indices=[1])
    return words, model.processor.decode(model.processor.codes(ids))


@pytest.fixture
def expected(tiny: CM3, images: list[PIL_Image.Image]) -> tuple[str, bytes]:
    words = tiny.caption(images[0], temperature=1.0, seed=1)
    return words, tiny.generate(words or "a", seed=7)[0].tobytes()


def test_a_later_batch_depends_on_the_ids_of_an_earlier_one(
    tiny: CM3, images: list[PIL_Image.Image], expected: tuple[str, bytes]
):
    words, image = tiny.run(Job(described_and_drawn(tiny, images[0])))
    assert (words, image.tobytes()) == expected


def test_pieces_of_all_batches_are_streamed_under_their_index(
    tiny: CM3, images: list[PIL_Image.Image], expected: tuple[str, bytes]
):
    job = Job(described_and_drawn(tiny, images[0]))
    pieces = list(tiny.stream(job))
    texts = [str(piece.content) for piece in pieces if piece.index == 0]
    partial: list[Any] = [piece.content for piece in pieces if piece.index == 1]
    assert "".join(texts).strip() == expected[0]
    assert len(partial) == tiny.grid[0] and partial[-1].tobytes() == expected[1]
    assert job.result[1].tobytes() == expected[1]


def test_the_server_runs_all_batches_and_stops_between_them(
    tiny: CM3, images: list[PIL_Image.Image], expected: tuple[str, bytes]
):
    state = State(tiny, "tiny", Limits(), Safety())

    def drawn(ticket: Ticket, stop: bool) -> Phases[PIL_Image.Image]:
        phases = described_and_drawn(tiny, images[0])
        new = yield next(phases)
        if stop:
            ticket.cancelled.set()
        batch = phases.send(new)
        [ids] = yield batch
        return tiny.processor.decode(tiny.processor.codes(ids))

    ticket = Ticket(60)
    [image] = state.run(ticket, Job(drawn(ticket, stop=False)))
    assert image.tobytes() == expected[1]
    with pytest.raises(Disconnected):
        state.run(ticket, Job(drawn(ticket, stop=True)))
    assert not tiny.engine.active


def test_a_mistake_is_raised_where_the_job_is_made(tiny: CM3):
    with pytest.raises(ValueError, match="the prompt is empty"):
        tiny.jobs.generate(" ")
    job = tiny.jobs.generate("a cat")
    with pytest.raises(AssertionError, match="another batch to run"):
        _ = job.result
    with pytest.raises(AssertionError, match="0 answers to 1 requests"):
        job.give([])


def test_a_job_without_batches_has_its_result_at_once(tiny: CM3):
    def nothing() -> Phases[int]:
        if False:
            yield Batch([], lambda _, codes: tiny.processor.decode(codes))
        return 7

    assert tiny.run(Job(nothing())) == 7 and list(tiny.stream(Job(nothing()))) == []


def test_a_batch_may_show_pieces_alone(tiny: CM3):
    def shown() -> Phases[str]:
        yield Batch([], lambda _, codes: tiny.processor.decode(codes), pieces=[Piece(3, "a")])
        return "done"

    job = Job(shown())
    assert list(tiny.stream(job)) == [Piece(3, "a")] and job.result == "done"
