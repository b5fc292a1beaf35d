"""Images of other shapes than the usual one: the document says which; and what else a drawing may follow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.cli import main as cli
from cm3.engine.engine import Engine, generate_naive
from cm3.engine.guidance import ClassifierFree
from cm3.engine.options import GREEDY, NEGATIVE_GUIDANCE, GenerateOptions, SamplingConfig
from cm3.engine.request import Request
from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.tasks.images import nearest_grid
from cm3.tokens.document import HOLE, Document, Image, Text
from cm3.tokens.encoding import from_ids, image_prompt_ids, last_grid, open_ids, to_ids
from cm3.tokens.grammar import Grammar
from cm3.tokens.vocab import Vocab

GRIDS = ((3, 5), (5, 3), (2, 6))


@pytest.fixture(scope="module")
def shaped(tiny: CM3) -> CM3:
    """The tiny model with further grids; its usual one is 4 x 4, of 4 pixels a code."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CM3ForCausalLM(CM3Config.preset("tiny", image_grid=(4, 4), image_grids=GRIDS))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return CM3(model, tiny.text_tokenizer, tiny.image_tokenizer)


def image_of(grid: tuple[int, int]) -> Image:
    return Image(torch.arange(grid[0] * grid[1]).view(grid) % 32)


@given(st.lists(st.sampled_from([(4, 4), *GRIDS, "a cat"]), min_size=1, max_size=5))
def test_documents_of_any_grids_come_back(parts: list[Any]):
    vocab, text = MODELS[0].vocab, MODELS[0].text_tokenizer
    items = tuple(Text(part) if isinstance(part, str) else image_of(part) for part in parts)
    ids = to_ids(Document(items), vocab, text)
    back = from_ids(ids, vocab, text, (4, 4))
    assert [item.grid for item in back if isinstance(item, Image)] == [part for part in parts if part != "a cat"]
    assert to_ids(back, vocab, text) == ids
    Grammar(vocab, ids, "document", 16)  # reads it


MODELS: list[CM3] = []


@pytest.fixture(scope="module", autouse=True)
def remember(shaped: CM3) -> Iterator[None]:
    MODELS.append(shaped)
    yield
    MODELS.clear()


def test_the_usual_grid_is_spelled_as_before(shaped: CM3, tiny: CM3):
    document = Document((Text("a cat"), image_of((4, 4))))
    assert to_ids(document, shaped.vocab, shaped.text_tokenizer) == to_ids(document, tiny.vocab, tiny.text_tokenizer)
    assert shaped.vocab.name(41) == "<grid:5 x 3>" and tiny.vocab.name(41) == "<unused:41>"


@pytest.mark.parametrize("grid", GRIDS)
def test_a_drawing_has_the_grid_that_is_asked_for(grid: tuple[int, int], shaped: CM3):
    [request] = shaped.jobs.generate("a cat", GenerateOptions(grid=grid)).requests
    assert last_grid(request.prompt, shaped.vocab) == grid
    assert all(last_grid(list(prompt), shaped.vocab) == grid for prompt in request.extra_prompts)
    image = shaped.generate("a cat", grid=grid, best_of=2, seed=3)[0]
    assert image.size == (4 * grid[1], 4 * grid[0])
    *_, best = shaped.stream(shaped.jobs.generate("a cat", GenerateOptions(grid=grid, best_of=2, seed=3)))
    assert best.content.tobytes() == image.tobytes()  # pyright: ignore
    last = list(shaped.stream(shaped.jobs.generate("a cat", GenerateOptions(grid=grid, seed=3))))
    assert len(last) == grid[0] and last[-1].content.size == image.size  # pyright: ignore
    alone = shaped.generate("a cat", grid=grid, seed=3)[0]
    assert last[-1].content.tobytes() == alone.tobytes()  # pyright: ignore


def test_rows_of_unequal_grids_in_one_batch_are_those_of_the_naive_generator(shaped: CM3):
    requests: list[Request] = []
    for i, grid in enumerate((None, *GRIDS)):
        document = Document((Text("a cat"),))
        guide = ClassifierFree(image=2.0)
        requests.append(shaped.prompts.image(document, [shaped.prompts.nothing], guide, GREEDY, i, grid=grid))
    requests.append(Request(shaped.prompts.ids(Document((Text("a"),)), open_ids), "document", 60, seed=9))
    batch = Engine(shaped.model, shaped.vocab, (4, 4)).generate(requests)
    assert batch == generate_naive(shaped.model, shaped.vocab, requests, (4, 4))
    assert [sum(map(shaped.vocab.is_code, ids)) for ids in batch[:4]] == [16, 15, 15, 12]


def test_the_model_chooses_a_grid_where_it_writes_a_document_and_none_that_does_not_fit(shaped: CM3):
    vocab = shaped.vocab
    grammar = Grammar(vocab, [vocab.eos, vocab.image], "document", 16, room=60)
    assert grammar.legal().codes and grammar.legal().special == (40, 41, 42)
    tight = Grammar(vocab, [vocab.eos, vocab.image], "document", 16, room=15)
    assert tight.legal().special == (42,)
    grammar.advance(40)
    assert grammar.legal() == (False, True, ()) and grammar.min_remaining == 16
    drawn = Grammar(vocab, [vocab.eos, vocab.image], "image", 16)
    assert drawn.legal().special == ()
    for late in ([vocab.code_to_id(3)], [40]):
        with pytest.raises(ValueError, match="cannot stand here"):
            Grammar(vocab, [vocab.eos, vocab.image, *late, 41], "document", 16)
    prompt = [*shaped.prompts.ids(Document((Text("a cat"),)), open_ids), vocab.break_, vocab.image]
    flat = SamplingConfig(temperature=50.0)
    requests = [Request(prompt, "document", 40, flat, seed=seed) for seed in range(60)]
    written = [from_ids([*prompt, *ids], vocab, shaped.text_tokenizer, (4, 4)) for ids in shaped.run_requests(requests)]
    assert len({item.grid for document in written for item in document if isinstance(item, Image)}) > 2


def test_a_hole_in_an_image_of_another_grid_is_filled(shaped: CM3):
    codes = image_of((3, 5)).codes.clone()
    codes[1, 2:4] = HOLE
    filled = shaped.complete(Document((Text("a cat"), Image(codes))), seed=1)[1]
    assert filled.grid == (3, 5) and not filled.holes
    assert torch.equal(filled.codes[codes != HOLE], codes[codes != HOLE])


def test_an_image_is_seen_at_the_nearest_grid(shaped: CM3, images: list[PIL_Image.Image]):
    assert [nearest_grid(aspect, ((4, 4), *GRIDS)) for aspect in (1.0, 1.6, 0.6, 4.0)] == [(4, 4), *GRIDS]
    wide = images[0].resize((60, 36))
    assert shaped.processor.encode(wide).grid == (3, 5)
    [request] = shaped.jobs.caption(wide).requests
    assert sum(map(shaped.vocab.is_code, request.prompt)) == 15
    assert isinstance(shaped.caption(wide), str)
    assert shaped.edit(wide, "make it red").size == (60, 36)
    assert shaped.generate("a cat", structure=wide)[0].size == (20, 12)


def test_a_saved_model_knows_its_grids(shaped: CM3, tmp_path: Path):
    shaped.save_pretrained(tmp_path)
    again = CM3.from_pretrained(tmp_path, device="cpu")
    assert again.vocab.grids == GRIDS
    assert again.generate("a cat", grid=(5, 3))[0].size == (12, 20)


@pytest.mark.parametrize(
    ("grid", "error"),
    [
        ((6, 6), "an image of 6 x 6 codes: the model's images have 4 x 4, 3 x 5, 5 x 3, 2 x 6"),
        ((3,), "grid must be rows and columns"),
        ("3x5", "grid must be rows and columns"),
        ((3, 5.0), "grid must be a whole number"),
    ],
)
def test_a_grid_that_the_model_was_not_taught_is_named(grid: Any, error: str, shaped: CM3):
    with pytest.raises((ValueError, TypeError), match=error):
        shaped.generate("a cat", grid=grid)


@pytest.mark.parametrize(
    "grids", [[(4, 4)], [(3, 5), (3, 5)], [(3,)], [(0, 3)], [("a", 2)], [(1, n) for n in range(1, 30)]], ids=str
)
def test_a_configuration_with_odd_grids_is_refused(grids: Any):
    with pytest.raises(ValueError, match="image_grids"):
        CM3Config.preset("tiny", image_grid=(4, 4), image_grids=grids)
    with pytest.raises(ValueError, match="need 42 special tokens"):
        CM3Config.preset("tiny", num_special_tokens=40, image_grids=[(3, 5), (5, 3)])


# A negative prompt and references.


def test_a_negative_prompt_takes_the_place_of_nothing(tiny: CM3):
    [request] = tiny.jobs.generate("a cat", GenerateOptions(negative_prompt="a dog")).requests
    words = Document((Text("a dog"),))
    assert request.extra_prompts == [tiny.prompts.ids(words, image_prompt_ids)]
    [plain] = tiny.jobs.generate("a cat").requests
    assert request.prompt == plain.prompt and request.extra_prompts != plain.extra_prompts
    [empty] = tiny.jobs.generate("a cat", GenerateOptions(negative_prompt=" ")).requests
    assert empty.extra_prompts == plain.extra_prompts
    drawn = tiny.generate("a cat", n=8, guidance=4.0)
    assert drawn != tiny.generate("a cat", n=8, guidance=4.0, negative_prompt="a dog")
    same = tiny.generate("a cat", seed=3, guidance=4.0, temperature=0.0, negative_prompt="a cat")[0]
    assert same.tobytes() == tiny.generate("a cat", seed=3, guidance=1.0, temperature=0.0)[0].tobytes()


def test_a_negative_prompt_brings_its_guidance_where_guidance_is_off(tiny: CM3):
    guided = {
        scale: tiny.jobs.generate("a cat", GenerateOptions(guidance=scale, negative_prompt="a dog")).requests[0].guide
        for scale in (0.5, 1.0, NEGATIVE_GUIDANCE, 4.0)
    }
    assert guided[1.0] == guided[NEGATIVE_GUIDANCE] == ClassifierFree(image=NEGATIVE_GUIDANCE)
    assert guided[0.5] == ClassifierFree(image=0.5) and guided[4.0] == ClassifierFree(image=4.0)
    [empty] = tiny.jobs.generate("a cat", GenerateOptions(guidance=1.0, negative_prompt=" ")).requests
    assert empty.guide == ClassifierFree(image=1.0)


def test_references_stand_between_the_words_and_the_drawing(tiny: CM3, images: list[PIL_Image.Image]):
    [request] = tiny.jobs.generate("a cat", GenerateOptions(references=images[:2], guidance=1.0)).requests
    shown = [tiny.processor.encode(image) for image in images[:2]]
    assert request.prompt == tiny.prompts.ids(Document((Text("a cat"), *shown)), image_prompt_ids)
    drawn = [tiny.generate("a cat", references=some, seed=1, guidance=1.0)[0] for some in (images[:1], images[1:2])]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (dict(negative_prompt=3), "the negative prompt must be"),
        (dict(references="a.png"), "references must be a list of images"),
        (dict(references=[None]), "each of the references must be one image"),
        (dict(references=["none.png"]), "none.png: cannot be read"),
    ],
)
def test_what_a_drawing_cannot_follow_is_named(options: dict[str, Any], error: str, tiny: CM3):
    with pytest.raises((ValueError, TypeError), match=error):
        tiny.generate("a cat", **options)


def test_more_references_than_the_context_holds_are_refused(tiny: CM3, images: list[PIL_Image.Image]):
    with pytest.raises(ValueError, match="leaves no room"):
        tiny.generate("a cat", references=images * 4)


def test_the_command_takes_grid_negative_and_references(
    shaped: CM3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[PIL_Image.Image]
):
    shaped.save_pretrained(tmp_path / "model")
    images[0].save(tmp_path / "one.png")
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["cm3", "generate", "a cat", "--model", "model", *words])
        return cli.run()

    assert command("--grid", "3x5", "--negative", "a dog", "--reference", "one.png", "-n", "1", "--scale", "1") == 0
    assert PIL_Image.open("out.png").size == (20, 12)
    assert command("--grid", "wide") == 2
    assert command("--reference", "none.png") == 2


def test_a_vocabulary_without_grids_has_no_ids_for_them():
    assert not any(map(Vocab(64, 10, 10).is_grid, range(84)))
