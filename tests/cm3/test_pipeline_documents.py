"""Documents: text, images and holes in any order."""

from typing import Any

import pytest
import torch
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.engine.options import CaptionOptions, CompleteOptions, GenerateOptions
from cm3.tasks.job import Job
from cm3.tokens.document import HOLE, Document, Image, Mask, Text
from cm3.tokens.templates import TEMPLATES
from pipelines import CODES, bytes_of, prompts_of

APPLE = "a red apple"
HOLED = Image(CODES.codes.masked_fill(torch.eye(4, dtype=torch.bool), HOLE))


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
