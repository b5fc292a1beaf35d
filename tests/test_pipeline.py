"""The public face: what users write, on a tiny model with random weights."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.document import Document, Image, Mask, Text
from cm3.pipeline import PROMPTS, question_prompt

APPLE = "a red apple"


def bytes_of(images: list) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_generate_gives_n_pictures_of_the_tokenizers_size(tiny: CM3):
    images = tiny.generate(APPLE, n=3, seed=7)
    assert [image.size for image in images] == [(16, 16)] * 3
    assert len(set(bytes_of(images))) == 3


def test_a_picture_does_not_depend_on_its_batch(tiny: CM3):
    together = tiny.generate(APPLE, n=3, seed=7)
    alone = [tiny.generate(APPLE, seed=seed)[0] for seed in (9, 7, 8)]
    assert bytes_of(alone) == bytes_of([together[2], together[0], together[1]])


@pytest.mark.parametrize("change", [{"guidance": 1.0}, {"temperature": 0.3}, {"top_k": 1}, {"prompt": "a blue car"}])
def test_what_is_asked_for_changes_the_picture(tiny: CM3, change: dict):
    assert bytes_of(tiny.generate(**{"prompt": APPLE, "seed": 7, **change})) != bytes_of(tiny.generate(APPLE, seed=7))


def test_temperature_0_is_top_1(tiny: CM3):
    greedy = tiny.generate(APPLE, n=2, temperature=0)
    assert len(set(bytes_of(greedy + tiny.generate(APPLE, top_k=1)))) == 1


def test_captions_of_a_list_are_those_of_its_pictures(tiny: CM3, pictures: list[PIL_Image.Image]):
    captions = tiny.caption(pictures)
    assert captions == [tiny.caption(picture) for picture in pictures]
    assert all(isinstance(caption, str) for caption in captions)


def test_caption_takes_files_and_languages(tiny: CM3, pictures: list[PIL_Image.Image], tmp_path: Path):
    pictures[0].save(tmp_path / "picture.png")
    assert tiny.caption(tmp_path / "picture.png") == tiny.caption(pictures[0])
    assert tiny.caption(pictures[0], language="ar") != tiny.caption(pictures[0], language="en")


def test_one_question_for_all_or_one_each(tiny: CM3, pictures: list[PIL_Image.Image]):
    questions = ["What is this?", "ما هذا؟", "What colour is it?"]
    assert tiny.answer(pictures, questions) == [tiny.answer(*pair) for pair in zip(pictures, questions, strict=True)]
    assert tiny.answer(pictures, questions[0]) == [tiny.answer(picture, questions[0]) for picture in pictures]


def test_the_language_of_a_question_is_that_of_its_letters():
    assert question_prompt(" What? ") == "Question: What? Answer: "
    assert question_prompt("ما هذا؟") == "سؤال: ما هذا؟ جواب: "
    assert set(PROMPTS["caption"]) == set(PROMPTS["answer"]) == {"en", "ar"}
    assert question_prompt("{question}") == "Question: {question} Answer: "


def test_complete_fills_every_mask_and_keeps_the_rest(tiny: CM3):
    picture = Image(torch.arange(16).view(4, 4))
    done = tiny.complete(Document((Text("Caption: "), Mask(), picture, Mask())), seed=3)
    assert not any(isinstance(item, Mask) for item in done)
    assert done[0].text.startswith("Caption: ")
    assert [item for item in done if isinstance(item, Image)] == [picture]


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


def test_streamed_text_joins_to_the_whole(tiny: CM3, pictures: list[PIL_Image.Image]):
    texts = [""] * 3
    for piece in tiny.stream("caption", pictures, temperature=1.0):
        assert isinstance(piece.content, str)
        texts[piece.index] += piece.content
    assert [text.strip() for text in texts] == tiny.caption(pictures, temperature=1.0)
    assert tiny.answer(pictures[0], "What?") == "".join(
        str(piece.content) for piece in tiny.stream("answer", pictures[0], "What?")
    ).strip()


def test_streamed_picture_grows_row_by_row_to_the_whole(tiny: CM3):
    pieces = list(tiny.stream("generate", APPLE, n=2, seed=7))
    assert sorted(piece.index for piece in pieces) == [0] * 4 + [1] * 4
    last = {piece.index: piece.content for piece in pieces}
    assert bytes_of([last[0], last[1]]) == bytes_of(tiny.generate(APPLE, n=2, seed=7))


def test_a_saved_model_is_the_same_model(tiny: CM3, tmp_path: Path):
    tiny.save_pretrained(tmp_path)
    again = CM3.from_pretrained(str(tmp_path), device="cpu")
    assert bytes_of(again.generate(APPLE)) == bytes_of(tiny.generate(APPLE))
    assert "model.safetensors" in json.loads((tmp_path / "checksums.json").read_text())


def test_a_picture_may_be_larger_than_one_batch_of_rows(tiny: CM3):
    assert len(tiny.generate(APPLE, n=64, guidance=1.0)) == 64


def test_a_list_of_prompts_gives_a_list_of_lists_and_the_same_pictures(tiny: CM3):
    both = tiny.generate(["a cat", "a blue car"], n=2, seed=3)
    assert [[p.tobytes() for p in row] for row in both] == [
        [p.tobytes() for p in tiny.generate(prompt, n=2, seed=3)] for prompt in ("a cat", "a blue car")
    ]
