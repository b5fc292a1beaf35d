"""The processor and the multimodal model of a folder do what the pipeline does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

from cm3 import CM3
from cm3.engine.guidance import ClassifierFree
from cm3.engine.options import GREEDY
from cm3.hf.modeling import CM3ForConditionalGeneration, GrammarLogitsProcessor
from cm3.hf.processing import CM3Processor
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.document import Document, Text
from cm3.tokens.encoding import image_prompt_ids


def codes_of(ids: torch.Tensor, model: CM3) -> list[int]:
    return [model.vocab.id_to_code(id) for id in ids.tolist() if model.vocab.is_code(id)]


def test_the_auto_classes_give_our_classes(folder: Path, processor: Any, multimodal: Any):
    assert isinstance(multimodal, CM3ForConditionalGeneration) and isinstance(processor, CM3Processor)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(folder), CM3ForConditionalGeneration)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_generate_draws_what_the_pipeline_draws(scale: float, processor: Any, multimodal: Any, emoji: CM3):
    inputs = processor(text=["a red apple", "a cow in the noto style"], generation_mode="image", return_tensors="pt")
    ids = multimodal.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=scale)
    guide = ClassifierFree(image=scale)
    for row, words in zip(ids, ("a red apple", "a cow in the noto style"), strict=True):
        request = emoji.prompts.image(Document((Text(words),)), [emoji.prompts.nothing], guide, GREEDY, 0)
        assert codes_of(row, emoji) == emoji.draw_codes([request])[0].flatten().tolist()
    images = processor.post_process_multimodal_output(multimodal.decode_image_tokens(ids), generation_mode="image")
    assert [image.size for image in images] == [emoji.image_tokenizer.size] * 2


def test_captions_and_answers_are_those_of_the_pipeline(processor: Any, multimodal: Any, emoji: CM3):
    images = emoji.generate(["a red apple", "a cow"], seed=5)
    shown = [some[0] for some in images]

    def told(messages: list[Any]) -> list[str]:
        inputs = processor.apply_chat_template(messages, tokenize=True, return_tensors="pt")
        ids = multimodal.generate(**inputs, generation_mode="text", do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [words.strip() for words in processor.post_process_multimodal_output(new)]

    def message(image: Any, *words: str) -> list[Any]:
        content = [{"type": "image", "image": image}, *({"type": "text", "text": one} for one in words)]
        return [{"role": "user", "content": content}]

    assert told([message(one) for one in shown]) == emoji.caption(shown)
    questions = ["What is this?", "ما هذا؟"]
    asked = [message(one, words) for one, words in zip(shown, questions, strict=True)]
    assert told(asked) == emoji.answer(shown, questions)


def test_beams_sampling_and_assistance_stay_within_the_grammar(processor: Any, multimodal: Any, emoji: CM3):
    inputs = processor(text="a red apple", generation_mode="image", return_tensors="pt")
    for options in (
        {"num_beams": 3, "num_return_sequences": 3, "do_sample": False},
        {"do_sample": True, "num_return_sequences": 2, "top_p": 0.9},
        {"prompt_lookup_num_tokens": 2, "do_sample": False},
    ):
        ids = multimodal.generate(**inputs, generation_mode="image", **options)
        for row in ids:
            assert len(codes_of(row, emoji)) == 64 and row.tolist().count(emoji.vocab.image) == 1


def test_a_prompt_lookup_draws_what_greedy_decoding_draws(processor: Any, multimodal: Any):
    inputs = processor(text="a red apple", generation_mode="image", return_tensors="pt")
    plain = multimodal.generate(**inputs, generation_mode="image", do_sample=False)
    looked_up = multimodal.generate(**inputs, generation_mode="image", do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(plain, looked_up)


def test_interleaved_output_is_texts_and_codes(processor: Any, multimodal: Any, emoji: CM3):
    inputs = processor(text="a red apple", generation_mode="interleaved", return_tensors="pt")
    torch.manual_seed(1)
    ids = multimodal.generate(**inputs, generation_mode="interleaved", do_sample=True, num_return_sequences=4)
    documents = processor.post_process_multimodal_output(ids, generation_mode="interleaved")
    assert all(isinstance(items[0], str) and items[0].startswith("a red apple") for items in documents)
    grids = [item for items in documents for item in items if not isinstance(item, str)]
    assert grids and all(grid.shape == emoji.grid for grid in grids)
    assert multimodal.decode_codes(torch.stack(grids)).shape == (len(grids), 3, *emoji.image_tokenizer.size)


def test_text_that_spells_special_tokens_stays_text_in_the_processor(processor: Any, emoji: CM3):
    ids = processor(text="<image> <placeholder>", generation_mode="image")["input_ids"][0]
    special = [emoji.vocab.name(id) for id in ids if emoji.vocab.is_special(id)]
    assert special == ["<eos>", "<break>", "<image>"]


def test_logits_with_pixels_are_those_with_the_codes(processor: Any, multimodal: Any, emoji: CM3):
    image = emoji.generate("a cow", seed=2)[0]
    inputs = processor(text="Caption: ", images=image, return_tensors="pt")
    ids = torch.tensor([emoji.prompts.question_ids("Caption: ", emoji.processor.encode(image))])
    with torch.inference_mode():
        assert torch.equal(multimodal(**inputs).logits, multimodal(input_ids=ids).logits)


def test_what_cannot_be_processed_is_named(processor: Any, multimodal: Any, emoji: CM3):
    image = emoji.generate("a cow", seed=2)[0]
    with pytest.raises(ValueError, match="generation_mode must be"):
        processor(text="a", generation_mode="audio")
    with pytest.raises(ValueError, match="generation_mode must be"):
        multimodal.generate(torch.tensor([[1, 128]]), generation_mode="audio")
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        processor(text=["a", "b"], images=[image] * 3)
    with pytest.raises(ValueError, match="trained on one message"):
        processor.apply_chat_template([{"role": "system", "content": "a"}], tokenize=True)
    with pytest.raises(ValueError, match="type 'video'"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}], tokenize=True)
    inputs = processor(text="Caption: ", images=image, return_tensors="pt")
    with pytest.raises(ValueError, match="no pixel_values"):
        multimodal(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="placeholders for 64 codes, but the images have 128"):
        multimodal(**{**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)})
    with pytest.raises(ValueError, match="an image has 64 codes"):
        multimodal.decode_image_tokens(torch.tensor([[1, 128, 2, 3, 4200]]))
    with pytest.raises(ValueError, match="without an image tokenizer"):
        CM3ForConditionalGeneration(emoji.model.config).decode_codes(torch.zeros(1, 8, 8, dtype=torch.long))


def test_the_multimodal_model_saves_what_others_read(multimodal: Any, tmp_path: Path):
    multimodal.save_pretrained(tmp_path)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), CM3ForCausalLM)
    again: Any = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    codes = torch.arange(64).view(1, 8, 8)
    assert torch.equal(again.decode_codes(codes), multimodal.decode_codes(codes))


def test_the_grammar_goes_on_from_rows_that_it_has_not_seen(emoji: CM3):
    vocab = emoji.vocab
    prompt = emoji.prompts.ids(Document((Text("a cat"),)), image_prompt_ids)
    rows = torch.tensor([prompt + [vocab.code_to_id(5)] * 64])
    grammar = GrammarLogitsProcessor(vocab, "image", 64, 70)
    scores = torch.zeros(1, len(vocab))
    grammar(rows[:, : len(prompt)], scores)
    assert grammar(rows, scores).argmax().item() == vocab.end_image  # 64 steps at once
    ended = torch.cat((rows, torch.tensor([[vocab.end_image]])), dim=1)
    assert grammar(ended, scores).argmax().item() == vocab.eos
    assert grammar(torch.cat((ended, torch.tensor([[vocab.eos, vocab.pad]])), 1), scores).argmax().item() == vocab.eos
