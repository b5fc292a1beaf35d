"""Documents that cannot be: one clear error."""

from typing import Any

import pytest
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.tokens.document import HOLE, Document, Image, Mask, Text

APPLE = "a red apple"


def test_documents_that_do_not_fit(tiny: CM3):
    with pytest.raises(ValueError, match="2 x 2 .* 4 x 4"):
        tiny.score(Document((Image([[1, 2], [3, 4]]),)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Mask"):
        tiny.score(Document((Mask(),)))
    for items in (([[1, 2], [3, 4]],), ([[1, HOLE], [3, 4]],)):
        for more in ((), (Mask(),)):
            with pytest.raises(ValueError, match="an image of 2 x 2 codes: the model's images have 4 x 4"):
                tiny.complete(Document((Text("a cat"), *map(Image, items), *more)))  # pyright: ignore
    with pytest.raises(ValueError, match="image code 99 is out of range"):
        tiny.complete(Document((Image([[99] * 4] * 4),)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="holes in an image is not finished"):
        tiny.score(Document((Image([[HOLE] * 4] * 4),)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="image code -2 is out of range"):
        tiny.complete(Document((Image([[-2] * 4] * 4),)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="has masks, fill them without"):
        tiny.complete(Document((Text("a"), Mask())), guidance=2.0)
    with pytest.raises(ValueError, match="leaves no room"):
        tiny.complete(Document((Text("apple " * 60), Mask(), Image([[1] * 4] * 4))))  # pyright: ignore


NO_DOCUMENTS = [None, "a red apple", 5, [Text(APPLE)], Text(APPLE), [{"text": APPLE}]]


@pytest.mark.parametrize("document", NO_DOCUMENTS, ids=repr)
def test_what_is_no_document(tiny: CM3, document: Any):
    for task in (tiny.complete, tiny.score, lambda document: tiny.stream(tiny.jobs.complete(document))):
        with pytest.raises(TypeError, match="a document is wanted, such as Document.* but got"):
            task(document)


@pytest.mark.parametrize("items", [5, None, Text(APPLE), Mask()], ids=repr)
def test_a_document_of_no_items(items: Any):
    with pytest.raises(TypeError, match="a document holds a tuple of Text, Image and Mask, but got"):
        Document(items)


@pytest.mark.parametrize(
    "item", ["a", None, 5, b"a", pytest.param(PIL_Image.new("L", (1, 1)), id="an image")], ids=repr
)
def test_a_document_of_wrong_items(item: Any):
    with pytest.raises(ValueError, match="a document holds Text, Image and Mask, but got"):
        Document((Text("a"), item))


@pytest.mark.parametrize("text", [None, 5, b"a red apple", ["a"]], ids=repr)
def test_the_text_of_a_document_is_a_string(text: Any):
    with pytest.raises(TypeError, match="the text of a document must be a string, but is"):
        Text(text)


@pytest.mark.parametrize(
    "codes",
    [None, "codes", [[1.5]], [[True]], [["a"]], [[1], [1, 2]], [[None]], [[10**30]], PIL_Image.new("L", (1, 1))],
)
def test_codes_of_a_document_are_whole_numbers(codes: Any):
    with pytest.raises(ValueError, match="image codes must be"):
        Image(codes)
