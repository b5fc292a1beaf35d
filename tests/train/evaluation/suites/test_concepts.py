"""Evaluation: what counts as right, the majority baseline, and the whole run on the data sample."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from cm3 import CM3
from cm3.tokens.text_tokenizer import TextTokenizer
from tokenizer_image import ImageTokenizer
from train import evaluate as train_evaluate
from train.documents.shard_files import read_meta
from train.documents.shards import Shards
from train.emoji.dataset import others_of
from train.emoji.phrases import ask_is
from train.evaluation.concepts import SplitImage, load_split, plain
from train.evaluation.suites import concepts as module
from train.evaluation.suites.concepts import (
    answers,
    captions,
    majority_concept_answers,
    pooled,
    questions,
    reconstruction,
)
from train.language.config import LMConfig
from train.language.setup import starting_model


@pytest.fixture(scope="module")
def samples(sample: Path) -> list[SplitImage]:
    return load_split(sample / "train", 16, None)


@pytest.fixture(scope="module")
def untrained(token_shards: Path, vq_folder: Path) -> CM3:
    """A tiny model that knows the shards' vocabulary and nothing else."""
    image_tokenizer = ImageTokenizer.from_pretrained(vq_folder)
    config = LMConfig(preset="tiny", model={"max_position_embeddings": 256})
    model = starting_model(config, read_meta(token_shards), image_tokenizer)
    return CM3(model, TextTokenizer.load(token_shards), image_tokenizer)


def fake(**methods: Any) -> CM3:
    return cast(CM3, SimpleNamespace(**methods))


def concept(en: str, ar: str, *keywords: str) -> SplitImage:
    facts = {"name": {"en": en, "ar": ar}, "keywords": {"en": list(keywords), "ar": []}}
    return SplitImage(Image.new("RGB", (16, 16)), facts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Red  Apple. ", "red apple"),
        ("T-Rex!", "t-rex"),
        ("تفاحة حمراء.", "تفاحة حمراء"),
        ("man's shoe", "mans shoe"),
    ],
)
def test_case_space_and_punctuation_do_not_count(text: str, expected: str):
    assert plain(text) == expected


def test_captions_count_names_to_the_letter_and_keywords_apart():
    shown = [
        concept("red apple", "تفاحة حمراء", "fruit"),
        concept("cat", "قطة", "pet"),
        concept("dog", "كلب"),
        concept("car", "سيارة"),
    ]
    said = {"en": ["Red apple.", "pet", "cat", ""], "ar": ["تفاحة حمراء", "قطة", "كلب", "كلب"]}
    out = captions(fake(caption=lambda images, language: said[language]), shown)
    assert out["images"] == 4
    assert out["en"] == {"exact": 0.25, "name_or_keyword": 0.5}
    assert out["ar"] == {"exact": 0.75, "name_or_keyword": 0.75}


def test_yes_or_no_questions_are_one_question_to_the_majority_baseline(samples: list[SplitImage]):
    rng = np.random.default_rng(0)
    for language in ("en", "ar"):
        prompts = {ask_is(s.facts, samples[0].facts, language, rng).prompt for s in samples}
        assert len(prompts) > 10 and len({pooled(prompt) for prompt in prompts}) == 1
    assert pooled(" Question: What is it? Answer: ") == "Question: What is it? Answer:"


def test_majority_answers_are_the_most_frequent_ones_of_the_training_documents(token_shards: Path):
    shards = Shards(token_shards)
    vocab, text = shards.vocab(), shards.text_tokenizer()
    majority = majority_concept_answers(token_shards)
    assert majority.keys() >= {
        "Caption:",
        "الوصف:",
        "Question: What style is it? Answer:",
        "Question: Is it ... Answer:",
    }
    assert sum("Is it ..." in prompt or "هل هذه صورة ..." in prompt for prompt in majority) == 2
    assert majority["Question: Is it ... Answer:"] in ("yes", "no")
    counts = Counter()
    for i in range(len(shards)):
        ids, spans = shards.document(i)
        if spans:
            start, end = spans[0]
            if text.decode(vocab.ids_to_text(ids[1:start])) == "Caption: ":
                counts[text.decode(vocab.ids_to_text(ids[start:end]))] += 1
    firsts = {word for word, count in counts.items() if count == max(counts.values())}
    assert counts and majority["Caption:"] in firsts | set(counts)


def test_the_same_questions_are_asked_each_time_of_every_image_in_both_languages(samples: list[SplitImage]):
    others = others_of([s.facts for s in samples])
    asked = questions(samples, others)
    assert asked == questions(samples, others)
    assert len(asked) == 2
    for rows, language in zip(asked, ("en", "ar"), strict=True):
        assert {i for i, _, _ in rows} == set(range(len(samples)))
        assert {spoken for _, spoken, _ in rows} == {language}
        tasks = Counter(target.task for _, _, target in rows)
        assert tasks["what"] == tasks["style"] == tasks["ground"] == len(samples)
        assert max(Counter((i, target.task) for i, _, target in rows).values()) == 1


def test_a_concept_of_a_subgroup_that_training_lacks_is_asked_the_rest(samples: list[SplitImage]):
    [rows, _] = questions([SplitImage(samples[0].image, samples[0].facts | {"subgroup": "moon"})], {})
    assert not {"is", "kind"} & {target.task for _, _, target in rows}


def test_answers_stand_beside_the_majority_baseline_and_the_ground_is_left_out(samples: list[SplitImage]):
    few, others = samples[:20], others_of([s.facts for s in samples])
    truth = iter([target.answer.upper() + "." for rows in questions(few, others) for _, _, target in rows])
    model = fake(
        jobs=SimpleNamespace(write=lambda pairs: pairs),
        run=lambda asked: [next(truth) for _ in asked],
    )
    out = answers(model, few, others, {"Question: What colour is the background? Answer:": "white"})
    assert {row["accuracy"] for row in out["tasks"].values()} == {1.0}
    assert out["tasks"]["ground"]["majority"] > 0
    assert (out["accuracy"], out["majority"], out["above_majority"]) == (1.0, 0.0, 1.0)


def test_reconstruction_is_measured_over_all_images(untrained: CM3, samples: list[SplitImage]):
    out = reconstruction(untrained, samples)
    assert out["images"] == 220
    assert 0 < out["codebook_usage"] <= 1 and out["ssim"] < 1 and 0 < out["psnr"] < 30


def test_a_split_is_shown_plainly_and_may_be_narrowed_to_concepts(sample: Path):
    apples = load_split(sample / "train", 16, {"1f34e"})
    assert apples and {s.facts["code"] for s in apples} == {"1f34e"}
    assert all(s.image.size == (16, 16) and s.image.getpixel((0, 0)) == (255, 255, 255) for s in apples)


def test_a_missing_model_or_data_set_ends_the_script_with_one_line(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    for model, match in (("no-such-model", "there is no model"), (str(tiny_folder), "meta.json")):
        folders = [f"--{name}={tmp_path}" for name in ("data", "tokens", "out")]
        monkeypatch.setattr(sys, "argv", ["evaluate", "concepts", "--model", model, *folders])
        with pytest.raises(SystemExit, match=f"evaluate concepts: .*{match}") as error:
            train_evaluate.main()
        assert "\n" not in str(error.value.code)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_model_is_measured_in_bfloat16_where_asked(bf16: bool, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[CM3] = []
    monkeypatch.setattr(module, "evaluate", lambda model, *_: seen.append(model))
    monkeypatch.setattr(module, "concept_table", lambda _: "")
    module.main(str(tiny_folder), bf16=bf16)
    assert str(seen[0].model.dtype) == ("torch.bfloat16" if bf16 else "torch.float32")


@pytest.mark.slow
def test_the_whole_evaluation_runs_on_the_data_sample(
    untrained: CM3, sample: Path, token_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("train.evaluation.concepts.JUDGED", 6)
    result = module.evaluate(untrained, sample, token_shards, tmp_path, sample=12)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    images = {split: row["reconstruction"]["images"] for split, row in result["splits"].items()}
    assert images == {"train": 12, "held_out_pairs": 3, "held_out_concepts": 6}
    assert result["codebook_usage_test"]["images"] == 9
    rows = {name: row for name, row in result["drawings"].items() if isinstance(row, dict)}
    assert [row["images"] for row in rows.values()] == [6, 6, 24, 24, 24, 12]
    for row in rows.values():
        assert all(0 <= row[judge]["top1"] <= row[judge]["top5"] <= 1 for judge in ("lite0", "lite2"))
    assert rows["generated by name"]["memorisation rate"] < 0.5 and result["drawings"]["concepts"] == 6
    table = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert all(f"| {split} |" in table for split in images)
    assert "judged among 6 concepts" in table
    assert Image.open(tmp_path / "contact_sheet.png").size[1] == 6 * 18
