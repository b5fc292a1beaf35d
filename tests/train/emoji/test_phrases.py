"""What is said of images: every caption true, every question answered by the image alone."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cm3.tokens.templates import prompt
from train.documents.shards import Target
from train.emoji import colours
from train.emoji.dataset import read_split
from train.emoji.english import with_article
from train.emoji.phrases import COLOURS_AR, KINDS, Facts, ask_is, caption, name_targets, targets
from train.images.views import GROUNDS

LANGUAGES = ("en", "ar")
NAMED = {"caption", "what", "is"}
ARABIC = re.compile("[\u0600-\u06ff]")


@pytest.fixture(scope="module")
def rows(sample: Path) -> list[Facts]:
    """The facts of each concept of the sample, once."""
    return list({facts["code"]: facts for _, _, facts in read_split(sample / "train")}.values())


@pytest.fixture(scope="module")
def asked(rows: list[Facts]) -> list[tuple[Facts, str, str, list[Target]]]:
    """(facts, ground, language, targets) of many documents."""
    rng = np.random.default_rng(0)
    out = []
    for i, facts in enumerate(rows * 8):
        ground, language = list(GROUNDS)[i % len(GROUNDS)], LANGUAGES[i // 3 % 2]
        others = [other for other in rows if other["family"] != facts["family"]]
        out.append((facts, ground, language, targets(facts, ground, language, others, rng)))
    return out


@pytest.fixture(scope="module")
def say(rows: list[Facts]) -> Callable[[str, str], Iterator[tuple[Facts, str]]]:
    """say(ground, language): (facts, caption) of every concept, a few times."""

    def captions(ground: str, language: str) -> Iterator[tuple[Facts, str]]:
        rng = np.random.default_rng(0)
        return ((facts, caption(facts, ground, language, [], rng)) for facts in rows * 4)

    return captions


def everything(asked) -> list[tuple[str, Target]]:
    return [(language, target) for _, _, language, row in asked for target in row]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("ground", [ground for ground in GROUNDS if ground != "white"])
def test_a_ground_that_is_not_white_is_always_said(say, ground: str, language: str):
    words = f"on a {GROUNDS[ground][0]} background" if language == "en" else f"على خلفية {GROUNDS[ground][1]}"
    assert all(words in text for _, text in say(ground, language))


@pytest.mark.parametrize(("language", "words"), [("en", "on a white background"), ("ar", "على خلفية بيضاء")])
def test_a_white_ground_is_said_now_and_then(say, language: str, words: str):
    assert 0.05 < np.mean([words in text for _, text in say("white", language)]) < 0.3


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caption_holds_the_name_as_it_is(say, language: str):
    assert all(facts["name"][language].lower() in text.lower() for facts, text in say("white", language))


def test_captions_differ(say):
    texts = Counter(text.replace(facts["name"]["en"], "X") for facts, text in say("white", "en"))
    assert len(texts) > 30


def test_an_alias_stands_for_the_name_now_and_then(rows: list[Facts]):
    rng = np.random.default_rng(0)
    texts = [caption(rows[0], "white", "en", ["a thing called zork"], rng) for _ in range(400)]
    assert np.mean(["zork" in text for text in texts]) == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("apple", "an apple"),
        ("cat", "a cat"),
        ("grapes", "grapes"),
        ("glass of milk", "a glass of milk"),
        ("wine glass", "a wine glass"),
        ("Statue of Liberty", "Statue of Liberty"),
        ("orange", "an orange"),
        ("hourglass", "an hourglass"),
        ("unicorn", "a unicorn"),
        ("bus", "a bus"),
        ("cooked rice", "cooked rice"),
        ("nest with eggs", "a nest with eggs"),
        ("hiking boot", "a hiking boot"),
        ("bacon", "bacon"),
        ("ewe", "a ewe"),
    ],
)
def test_articles(name: str, words: str):
    assert with_article(name) == words


def test_no_answer_stands_in_its_own_prompt_except_that_of_yes_or_no(asked):
    for _, target in everything(asked):
        assert target.task == "is" or target.answer.lower() not in target.prompt.lower()


def test_yes_and_no_are_equally_often_right(rows: list[Facts]):
    rng = np.random.default_rng(0)
    for language, yes in zip(LANGUAGES, ("yes", "نعم"), strict=True):
        answers = [ask_is(rows[0], rows[1], language, rng) for _ in range(1000)]
        assert np.mean([target.answer == yes for target in answers]) == pytest.approx(0.5, abs=0.05)
        for target in answers:
            assert (rows[0]["name"][language] in target.prompt) == (target.answer == yes)


def test_a_document_asks_for_the_name_once_and_nothing_twice(asked):
    lengths = Counter()
    for *_, row in asked:
        tasks = [target.task for target in row]
        assert sum(task in NAMED for task in tasks) == 1
        assert len(set(tasks)) == len(tasks)
        lengths[len(tasks)] += 1
    assert set(lengths) == {1, 2, 3}


def test_every_task_comes_in_both_languages(asked):
    tasks = {"caption", "what", "is", "kind", "colour", "style", "ground"}
    found = {(language, target.task) for language, target in everything(asked)}
    assert found == {(language, task) for language in LANGUAGES for task in tasks}


def test_arabic_documents_are_arabic(asked):
    for language, target in everything(asked):
        assert bool(ARABIC.search(target.prompt)) == (language == "ar")
        if target.task != "style":  # styles are called by their own names
            assert bool(ARABIC.search(target.answer)) == (language == "ar")


def test_answers_are_the_facts(asked):
    for facts, ground, language, row in asked:
        expected = {
            "caption": facts["name"][language],
            "what": facts["name"][language],
            "style": facts["style"],
            "ground": GROUNDS[ground][0 if language == "en" else 1],
            "kind": KINDS.get(facts["subgroup"], {}).get(language),
            "colour": facts["colour"] if language == "en" else COLOURS_AR.get(facts["colour"]),
        }
        assert all(target.answer == expected[target.task] for target in row if target.task != "is")


def test_questions_read_as_the_pipeline_asks_them(asked):
    for _, target in everything(asked):
        if target.task != "caption":
            found = re.fullmatch(r"(?:Question:|سؤال:) (.*) (?:Answer:|جواب:) ", target.prompt)
            assert found and prompt("answer", found[1]) == target.prompt


def test_what_an_image_does_not_have_is_not_asked(rows: list[Facts]):
    bare = rows[0] | {"colour": None, "subgroup": "no such subgroup"}
    rng = np.random.default_rng(0)
    tasks = {target.task for _ in range(300) for target in targets(bare, "white", "en", [], rng)}
    assert tasks == {"caption", "what", "style", "ground"}


def test_every_word_has_its_arabic():
    assert set(COLOURS_AR) == set(colours.NAMES)
    kinds, grounds = [kind["ar"] for kind in KINDS.values()], [words[1] for words in GROUNDS.values()]
    for words in (COLOURS_AR.values(), kinds, grounds):
        assert all(ARABIC.match(word) for word in words)
        assert len(set(words)) == len(words)


def test_a_question_that_tells_the_kind_is_not_followed_by_one_for_it(asked):
    together = Counter("kind" in tasks for *_, row in asked if "is" in (tasks := [target.task for target in row]))
    assert together[False] > 20 and not together[True]


def test_of_a_distorted_image_only_the_name_is_asked_and_now_and_then_the_kind(rows: list[Facts]):
    rng = np.random.default_rng(0)
    tasks = Counter[str]()
    for facts in rows * 8:
        found = {target.task: target for target in name_targets(facts, "en", rows, rng)}
        assert len(found.keys() & NAMED) == 1 and found.keys() <= NAMED | {"kind"}
        assert not {"is", "kind"} <= found.keys()
        assert all(found[task].answer == facts["name"]["en"] for task in ("caption", "what") if task in found)
        tasks.update(list(found))
    assert tasks["caption"] > tasks["what"] > 0 and 0.1 < tasks["kind"] / len(rows * 8) < 0.4
