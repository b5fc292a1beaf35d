"""Drawing: boxes, structures, ways of decoding, the best of several."""

import copy
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.engine.options import Decoding, GenerateOptions, Structure
from cm3.tasks import reranking as ranking
from cm3.tokens.document import Document, Image, Mask, Text
from cm3.tokens.encoding import prompt_ids
from cm3.tokens.templates import TEMPLATES, boxed
from pipelines import BOXES, bytes_of, drawn, prompts_of

APPLE = "a red apple"


class Likes:
    """A scorer that finds the image best whose codes have the largest sum; what it was asked."""

    def __init__(self) -> None:
        self.texts: list[list[int]] = []

    def score(self, texts: list[list[int]], codes: torch.Tensor) -> torch.Tensor:
        self.texts += texts
        return codes.flatten(1).sum(1).float()


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
