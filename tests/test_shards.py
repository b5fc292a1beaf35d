"""Token shards: what is written reads back, and prompts are tokenised as the pipeline does."""

from pathlib import Path

import pytest
import torch

from cm3.document import Image, Text, from_ids
from cm3.pipeline import PROMPTS
from cm3.text import TextTokenizer
from tokenizer_image import ImageTokenizer
from train.phrases import Target
from train.shards import MAX_TARGETS, ShardWriter, read_shard

CODES = list(range(16))


@pytest.fixture
def writer(vq_folder: Path) -> ShardWriter:
    text = TextTokenizer.train([*PROMPTS["caption"].values(), "red apple", "Question: What? Answer: noto"], 300)
    return ShardWriter(text, ImageTokenizer.from_pretrained(vq_folder))


def decode(writer: ShardWriter, ids: list[int]) -> str:
    return writer.text.decode(writer.vocab.ids_to_text(ids))


def test_questions_and_answers_alternate_before_the_picture(writer: ShardWriter, tmp_path: Path):
    asked = [Target("caption", "Caption: ", "red apple"), Target("style", "Question: What? Answer: ", "noto")]
    writer.ask(asked, CODES)
    writer.draw("a red apple", CODES)
    writer.save(tmp_path, pictures=1)
    shard, meta = read_shard(tmp_path)
    ids, spans = shard.document(0)
    assert [decode(writer, ids[start:end]) for start, end in spans] == ["red apple", "noto"]
    text, picture = from_ids(ids, writer.vocab, writer.text, (4, 4))
    assert text == Text("Caption: red apple Question: What? Answer: noto")
    assert picture == Image(torch.tensor(CODES).view(4, 4))
    ids, spans = shard.document(1)
    assert spans == [] and from_ids(ids, writer.vocab, writer.text, (4, 4))[0] == Text("a red apple")
    assert meta["documents"] == 2 and meta["pictures"] == 1 and meta["tokens"] == len(shard.ids)


@pytest.mark.parametrize("language", PROMPTS["caption"])
def test_a_prompt_is_tokenised_as_the_pipeline_does(writer: ShardWriter, language: str):
    prompt = PROMPTS["caption"][language]
    writer.ask([Target("caption", prompt, "x")], CODES)
    start = writer.spans[0][0][0]
    assert writer.ids[1:start] == writer.vocab.text_to_ids(writer.text.encode(prompt))


def test_words_that_spell_special_tokens_stay_words(writer: ShardWriter):
    writer.draw("<break> <image> <eos>", CODES)
    assert writer.ids.count(writer.vocab.break_) == writer.ids.count(writer.vocab.image) == 1
    assert writer.ids.count(writer.vocab.eos) == 2
    assert from_ids(writer.ids, writer.vocab, writer.text, (4, 4))[0] == Text("<break> <image> <eos>")


def test_more_answers_than_a_shard_has_room_for_are_a_mistake(writer: ShardWriter):
    with pytest.raises(AssertionError, match="at most"):
        writer.ask([Target("caption", "Caption: ", "x")] * (MAX_TARGETS + 1), CODES)


def test_missing_shards_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"train.safetensors is missing"):
        read_shard(tmp_path)
