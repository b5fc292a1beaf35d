"""What a user may get wrong in words: each gives one clear ValueError, or the obvious right thing."""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.tokens.document import HOLE, Document, Image, Mask, Text
from cm3.tokens.text_tokenizer import TextTokenizer

APPLE = "a red apple"


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_empty_prompt(tiny: CM3, prompt: str):
    with pytest.raises(ValueError, match="prompt is empty: say what to draw"):
        tiny.generate(prompt)


@pytest.mark.parametrize("words", [60, 200, 100_000])
def test_prompt_longer_than_the_context(tiny: CM3, images: list[PIL_Image.Image], words: int):
    with pytest.raises(ValueError, match=r"leaves no room.* the limit is 128 tokens"):
        tiny.generate("apple " * words)
    with pytest.raises(ValueError, match="leaves no room"):
        tiny.answer(images[0], "apple " * words)
    with pytest.raises(ValueError, match="too long"):
        tiny.score(Document((Text("apple " * words),)))


def all_that_take_text(tiny: CM3, image: PIL_Image.Image) -> dict[str, Callable[[str], Any]]:
    mask = PIL_Image.new("L", image.size)
    mask.paste(255, (8, 8, 12, 12))
    return {
        "generate": tiny.generate,
        "generate a list": lambda text: tiny.generate([APPLE, text]),
        "best of": lambda text: tiny.generate(text, best_of=4),
        "structure": lambda text: tiny.generate(text, structure=image),
        "boxes": lambda text: tiny.generate("", boxes=[(text, (0.1, 0.2, 0.5, 0.9))]),
        "infill": lambda text: tiny.infill(image, mask, text),
        "edit": lambda text: tiny.edit(image, text),
        "answer": lambda text: tiny.answer(image, text),
        "complete": lambda text: tiny.complete(Document((Text(text),))),
        "complete, masks": lambda text: tiny.complete(Document((Mask(), Text(text)))),
        "complete, holes": lambda text: tiny.complete(Document((Text(text), Image([[HOLE] * 4] * 4)))),  # pyright: ignore
        "complete, many": lambda text: tiny.complete(Document((Text(text[:999]),) * (len(text) // 999))),
        "score": lambda text: tiny.score(Document((Text(text),))),
        "stream": lambda text: list(tiny.stream(tiny.jobs.generate(text))),
    }


def test_megabytes_of_text_are_refused_before_they_are_tokenised(
    tiny: CM3, images: list[PIL_Image.Image], monkeypatch: pytest.MonkeyPatch
):
    encode, text = TextTokenizer.encode, "apple " * 1_700_000  # 10 MB: 5 s and 1.3 GB to tokenise

    def short_only(self: TextTokenizer, text: str) -> list[int]:
        assert len(text) < 10_000
        return encode(self, text)

    monkeypatch.setattr(TextTokenizer, "encode", short_only)
    for name, ask in all_that_take_text(tiny, images[0]).items():
        tracemalloc.start()
        before = time.process_time()
        with pytest.raises(ValueError, match="is too long and leaves no room: the limit is 128 tokens"):
            ask(text)
        taken, (_, most) = time.process_time() - before, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken < 0.5 and most < 100e6, name


SPELLED = ["<break>", "<image>", "</image>", "<eos>", "<pad>", "<mask:0>", "<infill:0>", "code 5"]


@pytest.mark.parametrize("word", SPELLED)
def test_words_that_spell_special_tokens_are_plain_text(tiny: CM3, images: list[PIL_Image.Image], word: str):
    ids = tiny.score(Document((Text(word),))).ids.tolist()
    assert ids.pop() == tiny.vocab.eos
    assert all(tiny.vocab.is_text(id) for id in ids)
    assert tiny.generate(f"a {word} b")[0].size == (16, 16)
    assert isinstance(tiny.answer(images[0], f"{word}?"), str)


STRANGE = ["\ud800", "a \udfff apple", "\udc80\ud800", "تفاحة", "\u202eelppa\u202c", "\0", "🍎"]


@pytest.mark.parametrize("prompt", STRANGE)
def test_lone_surrogates_and_right_to_left_text_draw(tiny: CM3, images: list[PIL_Image.Image], prompt: str):
    assert len(tiny.generate(prompt, n=2)) == 2
    assert isinstance(tiny.answer(images[0], prompt), str)


@pytest.mark.parametrize("history", ["ab", [("a", "b", "c")], [("a", 1)], ["ab"], 3, {"a": "b"}])
def test_a_history_of_a_wrong_type(tiny: CM3, images: list[PIL_Image.Image], history: Any):
    with pytest.raises(TypeError, match="history must be a list of questions and answers"):
        tiny.answer(images[0], "What is this?", history=history)


def test_histories_without_words_or_of_several_images(tiny: CM3, images: list[PIL_Image.Image]):
    with pytest.raises(ValueError, match="an empty question or answer"):
        tiny.answer(images[0], "What is this?", history=[("a", " ")])
    with pytest.raises(ValueError, match="belongs to one image, but there are 2"):
        tiny.answer(images[:2], "What is this?", history=[("a", "b")])  # pyright: ignore[reportArgumentType]
