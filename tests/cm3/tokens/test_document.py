"""Documents: to ids and back, as JSON, and what they refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.model.config import CM3Config
from cm3.tokens.document import HOLE, Document, Image, Mask, Text, without_text
from cm3.tokens.encoding import from_ids, image_prompt_ids, open_ids, prompt_ids, to_ids
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab

GRID = (2, 2)
VOCAB = Vocab.from_config(CM3Config.preset("tiny"))
TOKENIZER = TextTokenizer.train(["a red apple"], vocab_size=256)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(Text)
images = st.lists(st.integers(0, 31), min_size=4, max_size=4).map(lambda codes: Image(torch.tensor(codes).view(GRID)))
holed = st.lists(st.integers(HOLE, 31), min_size=4, max_size=4).map(lambda codes: Image(torch.tensor(codes).view(GRID)))
documents = st.lists(texts | images, max_size=5).map(lambda items: Document(tuple(items)))


def names(ids: list[int]) -> str:
    """The ids, runs of text as T and of codes as C."""
    kinds = ["T" if VOCAB.is_text(id) else "C" if VOCAB.is_code(id) else VOCAB.name(id) for id in ids]
    return " ".join(kind for i, kind in enumerate(kinds) if i == 0 or kind not in "TC" or kinds[i - 1] != kind)


def image(*codes: int) -> Image:
    return Image(torch.tensor(codes or (1, 2, 3, 4)).view(GRID))


def joined(document: Document) -> Document:
    """Neighbouring texts as one, which is how they are read back."""
    items: list = []
    for item in document:
        if items and isinstance(item, Text) and isinstance(items[-1], Text):
            items[-1] = Text(items[-1].text + item.text)
        else:
            items.append(item)
    return Document(tuple(items))


def test_text_then_image():
    ids = to_ids(Document((Text("a red apple"), image())), VOCAB, TOKENIZER)
    assert names(ids) == "<eos> T <break> <image> C </image> <eos>"
    assert ids[-6:-2] == [VOCAB.code_to_id(code) for code in (1, 2, 3, 4)]


def test_breaks_stand_between_text_and_image_only():
    ids = to_ids(Document((image(), image(), Text("a"), Text("b"), image())), VOCAB, TOKENIZER)
    assert names(ids) == "<eos> <image> C </image> <image> C </image> <break> T <break> <image> C </image> <eos>"


def test_a_caption_prompt_ends_with_the_infill():
    ids = prompt_ids(Document((Text("Caption: "), Mask(), image())), VOCAB, TOKENIZER)
    assert names(ids) == "<eos> T <mask:0> <break> <image> C </image> <infill:0>"


def test_a_prompt_without_masks_stays_open():
    assert names(prompt_ids(Document((Text("a"),)), VOCAB, TOKENIZER)) == "<eos> T"
    assert names(image_prompt_ids(Document((Text("a"),)), VOCAB, TOKENIZER)) == "<eos> T <break> <image>"
    assert names(image_prompt_ids(Document(), VOCAB, TOKENIZER)) == "<eos> <image>"
    assert names(image_prompt_ids(Document((image(),)), VOCAB, TOKENIZER)) == "<eos> <image> C </image> <image>"
    assert names(image_prompt_ids(Document((Mask(),)), VOCAB, TOKENIZER)) == "<eos> <mask:0> <break> <image>"
    document = Document((Text("a"), image()))
    assert names(open_ids(document, VOCAB, TOKENIZER)) == "<eos> T <break> <image> C </image>"


@settings(max_examples=50)
@given(documents)
def test_documents_come_back_from_their_ids(document: Document):
    assert from_ids(to_ids(document, VOCAB, TOKENIZER), VOCAB, TOKENIZER, GRID) == joined(document)


@settings(max_examples=50)
@given(documents)
def test_documents_come_back_from_json(document: Document):
    with_mask = Document((*document, Mask()))
    assert Document.from_json(with_mask.to_json()) == with_mask


def test_a_hole_is_a_mask_among_the_codes():
    document = Document((Text("a"), image(1, HOLE, HOLE, 4)))
    ids = image_prompt_ids(document, VOCAB, TOKENIZER)
    assert names(ids) == "<eos> T <break> <image> C <mask:0> <mask:0> C </image> <image>"
    assert names(image_prompt_ids(Document((image(*[HOLE] * 4),)), VOCAB, TOKENIZER)).count("<mask:0>") == 4
    assert document[1].holes and not image().holes


@settings(max_examples=30)
@given(st.lists(texts | holed, max_size=5).map(lambda items: Document(tuple(items))))
def test_holes_come_back_from_ids_and_from_json(document: Document):
    assert from_ids(open_ids(document, VOCAB, TOKENIZER), VOCAB, TOKENIZER, GRID) == joined(document)
    assert Document.from_json(document.to_json()) == document


def test_without_text_keeps_the_images_and_their_places():
    one, two = image(), image(4, HOLE, 2, 1)
    for items, kept in [
        ((), (Mask(),)),
        ((Text("a"), Text("b")), (Mask(),)),
        ((Text("a"), one), (Mask(), one)),
        ((one, two), (Mask(), one, two)),
        ((one, Text("a"), Mask(), two, Text("b")), (one, Mask(), two, Mask())),
    ]:
        assert without_text(Document(items)) == Document(kept)


def test_an_answer_goes_back_to_its_mask():
    document = Document((Text("Caption: "), Mask(), image()))
    prompt = prompt_ids(document, VOCAB, TOKENIZER)
    answer = VOCAB.text_to_ids(TOKENIZER.encode("a cat"))
    filled = Document((Text("Caption: a cat"), image()))
    assert from_ids([*prompt, *answer, VOCAB.eos], VOCAB, TOKENIZER, GRID) == filled
    assert from_ids(prompt[:-1], VOCAB, TOKENIZER, GRID) == document


@pytest.mark.parametrize("spelled", ["<break>", "<image>", "</image>", "<eos>", "<mask:0>", "<infill:0>", "code 5"])
def test_text_that_spells_a_special_token_stays_text(spelled: str):
    document = Document((Text(f"a {spelled} b"),))
    ids = to_ids(document, VOCAB, TOKENIZER)
    assert all(VOCAB.is_text(id) for id in ids[1:-1])
    assert from_ids(ids, VOCAB, TOKENIZER, GRID) == document


def test_empty_text_is_no_item():
    ids = to_ids(Document((Text(""), image(), Text(""))), VOCAB, TOKENIZER)
    assert names(ids) == "<eos> <image> C </image> <eos>"


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Text, Image and Mask"):
        Document(("a cat",))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at most 16"):
        Document((Mask(),) * 17)
    with pytest.raises(ValueError, match="rows and columns"):
        Image(torch.zeros(4))
    with pytest.raises(ValueError, match="image code 32"):
        to_ids(Document((image(0, 1, 2, 32),)), VOCAB, TOKENIZER)
    with pytest.raises(ValueError, match="prompt_ids"):
        to_ids(Document((Mask(),)), VOCAB, TOKENIZER)
    with pytest.raises(ValueError, match="holes in an image is not finished"):
        to_ids(Document((image(1, HOLE, 3, 4),)), VOCAB, TOKENIZER)
    with pytest.raises(ValueError, match="image code -2 is out of range"):
        open_ids(Document((image(1, -2, 3, 4),)), VOCAB, TOKENIZER)
    with pytest.raises(ValueError, match="cannot go on with"):
        from_ids([VOCAB.image, VOCAB.first_code, VOCAB.end_image], VOCAB, TOKENIZER, GRID)
    with pytest.raises(ValueError, match="not closed"):
        from_ids([VOCAB.image, VOCAB.first_code], VOCAB, TOKENIZER, GRID)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [{"text": 1}],
        [{"image": [[1], [2, 3]]}],
        [{"image": "a.png"}],
        [{"mask": 1.5}],
        [{"text": "a", "image": [[1]]}],
        ["a"],
    ],
)
def test_json_that_is_no_document_is_refused(data):
    with pytest.raises(ValueError, match=r"item|document|codes"):
        Document.from_json(data)
