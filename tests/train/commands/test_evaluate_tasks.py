"""Evaluation of the tasks: the truth gets every mark, nothing gets none, and the splits show what they say."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cm3 import CM3
from cm3.tokens.vocab import Vocab
from drawings import SHAPES, drawn_things
from tokenizer_image import ImageTokenizer
from train import evaluate_tasks
from train.evaluate_tasks import TaskOptions, evaluate, fill, requests_of, tell
from train.evaluation import task_cases as trials
from train.evaluation import task_metrics as marks
from train.evaluation.judge import Judge
from train.evaluation.report import MAPS
from train.evaluation.task_cases import (
    ASKED,
    WRONG,
    EditCase,
    examples,
    holed,
    majority_scene_answers,
    pooled,
    questions,
    sign_questions,
    studio_of,
    wrong_scenes,
)
from train.evaluation.task_metrics import (
    box_iou,
    distances,
    filled_with_mean,
    foreground,
    found_boxes,
    hole_psnr,
    mark_answers,
    mark_boxes,
    mark_edits,
    mark_holes,
    mark_maps,
    mark_signs,
    rank,
    share_of_union,
    thing_reference,
    touched_cells,
    unlike,
)
from train.scenes.scene import compositional, render
from train.scenes.signs import BOARDS, sign
from train.scenes.tasks import EDITS

SIZE, GRID = 64, (8, 8)
NAMES = tuple(SHAPES)
WORDS = {"en": ["BEAR", "BUS", "CAT", "DOG", "FOX", "TAXI"], "ar": ["تاج", "ثعلب", "دب", "قطة", "كلب", "وردة"]}


def means(pixels: Tensor) -> Tensor:
    """[N, 3, 64, 64] in [-1, 1] -> [N, 8, 8]: the mean of each cell in twelve bits."""
    cells = torch.nn.functional.avg_pool2d((pixels + 1) / 2, 8)  # [N, 3, 8, 8]
    levels = (cells * 15).round().long()
    return levels[:, 0] * 256 + levels[:, 1] * 16 + levels[:, 2]


def flats(codes: Tensor) -> list[Image.Image]:
    levels = torch.stack((codes // 256, codes // 16 % 16, codes % 16), -1)  # [N, 8, 8, 3]
    return [Image.fromarray((one * 17).byte().numpy().repeat(8, 0).repeat(8, 1)) for one in levels]


def shown(pixels: Tensor) -> list[Image.Image]:
    return [Image.fromarray(one) for one in ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]


@pytest.fixture(scope="module")
def squares() -> ImageTokenizer:
    """A tokenizer that sees the mean of each of 8 x 8 cells."""
    return cast(ImageTokenizer, SimpleNamespace(size=(SIZE, SIZE), grid=GRID, encode_pixels=means, decode=flats))


@pytest.fixture(scope="module")
def split() -> dict[str, trials.Studio]:
    """Studios of drawn things; those that are flat buses and cats were never seen."""
    things = drawn_things()
    unseen = [thing for thing in things if thing.style == "flat" and thing.name["en"] in ("bus", "cat")]
    seen = [thing for thing in things if thing not in unseen]
    return {name: replace(studio_of(name, seen, unseen, SIZE, NAMES), words=WORDS) for name in trials.SPLITS}


@pytest.fixture(scope="module")
def made(split: dict[str, trials.Studio], squares: ImageTokenizer) -> dict[str, list[EditCase]]:
    """A dozen documents of each task with images, of scenes like those of training."""
    tasks = (*EDITS, *MAPS, "grounded", "write sign")
    return {task: examples(squares, split["familiar"], task, 12) for task in tasks}


def truth(some: list[EditCase]) -> list[np.ndarray]:
    return [one.made.images[-1] for one in some]


def codes(some: list[EditCase], which: int) -> list[Tensor]:
    return [torch.as_tensor(one.codes[which]).view(GRID) for one in some]


def white(some: list[EditCase]) -> list[np.ndarray]:
    """Nothing but the ground."""
    return [
        np.broadcast_to(np.array(render(replace(one.view.scene, placed=()), SIZE).image), (SIZE, SIZE, 3))
        for one in some
    ]


# The splits.


def test_each_split_shows_what_it_says(split: dict[str, trials.Studio]):
    rng = np.random.default_rng(0)
    for name, studio in split.items():
        for stage in (studio.scenes, studio.solo):
            for scene in [stage.scene(rng) for _ in range(30)]:
                assert compositional(scene) == (name == "compositional")
                new = [one.thing.style == "flat" and one.thing.name["en"] in ("bus", "cat") for one in scene.placed]
                assert any(new) == (name == "held-out pair")


def test_a_held_out_pair_split_without_things_of_scenes_is_refused():
    with pytest.raises(ValueError, match="unseen_cell split has no drawing"):
        studio_of("held-out pair", drawn_things(), [], SIZE, NAMES)


def test_documents_are_the_same_each_time_and_in_both_languages(split, made, squares: ImageTokenizer):
    again = examples(squares, split["familiar"], "add", 12)
    assert [one.made.words for one in again] == [one.made.words for one in made["add"]]
    assert [one.view.language for one in again] == ["en", "ar"] * 6
    assert all((one.led is not None) == (task in EDITS) for task in made for one in made[task])


def test_every_question_is_asked_in_both_languages(split):
    asked = questions(split["compositional"], 6)
    for task in ASKED:
        for language in ("en", "ar"):
            assert 1 <= sum(one.task == task and one.language == language for one in asked) <= 3
    assert questions(split["compositional"], 6)[5].target == asked[5].target


# Answers.


def test_true_answers_are_right_and_the_majority_baseline_stands_beside_them(split):
    asked = [*questions(split["compositional"], 20), *sign_questions(split["compositional"], 10)]
    called = [name for one in drawn_things() for name in one.name.values()]
    majority = majority_scene_answers(split["familiar"], called)
    right = mark_answers(asked, [one.target.answer.upper() + "." for one in asked], majority, called)
    wrong = mark_answers(asked, ["no idea" for _ in asked], majority, called)
    assert set(right) == {*ASKED, "read sign"}
    for task, rows in right.items():
        for language, row in rows.items():
            assert row["accuracy"] == 1.0 and wrong[task][language]["accuracy"] == 0.0
            assert row["majority"] == wrong[task][language]["majority"]
    pairs = [
        right[task][language]["majority"] for task in ("presence", "relation", "side") for language in ("en", "ar")
    ]
    assert np.mean(pairs) == pytest.approx(0.5, abs=0.25)


def test_questions_that_differ_in_names_alone_are_one_to_the_majority_baseline(split):
    called = [name for one in drawn_things() for name in one.name.values()]
    forms = {pooled(one.target.prompt, called) for one in questions(split["compositional"], 20)}
    assert "Question: Is X left or right of X? Answer:" in forms and "Question: Where is X? Answer:" in forms
    assert "Question: How many X are there? Answer:" in forms and "سؤال: أين X؟ جواب:" in forms
    assert len(forms) < 40 and not any(name in form for form in forms for name in SHAPES)


# Edits.


@pytest.mark.parametrize("task", EDITS)
def test_the_truth_of_an_edit_gets_every_mark_and_its_source_none(made, task: str):
    some = made[task]
    whole = mark_edits(task, some, codes(some, 1), truth(some), GRID)
    assert whole["kept"] in (1.0, None) and whole["right"] == whole["top5"] == 1.0
    before = mark_edits(task, some, codes(some, 0), [one.made.images[0] for one in some], GRID)
    assert before["kept"] in (1.0, None) and before["changed"] == before["right"] == 0.0


@pytest.mark.parametrize("task", EDITS)
def test_another_image_is_no_edit(made, task: str):
    some = made[task]
    noise = list(np.random.default_rng(0).integers(0, 256, (len(some), SIZE, SIZE, 3)).astype(np.uint8))
    marked = mark_edits(task, some, [one + 1 for one in codes(some, 0)], noise, GRID)
    assert marked["kept"] in (0.0, None) and marked["changed"] == 1.0 and (marked["right"] or 0) <= 0.4


@pytest.mark.parametrize("task", EDITS)
def test_an_edit_has_enough_wrong_targets_and_none_is_the_truth(made, task: str):
    for one in made[task]:
        assert one.led
        image = one.made.images[1]
        assert np.array_equal(image, render(one.led, SIZE).image)
        wrong = wrong_scenes(task, one.view.scene, one.led, one.view.stage, np.random.default_rng(0))
        others = unlike(image, [one.made.images[0], *(render(scene, SIZE).image for scene in wrong)])
        assert len(others) >= len(NAMES) - 3 and WRONG > len(NAMES) - 3  # here few things are drawn


def test_a_drawing_that_is_off_by_two_pixels_is_still_the_nearest(made):
    some = made["replace"]
    moved = [np.roll(image, (2, -2), (0, 1)) for image in truth(some)]
    assert (mark_edits("replace", some, codes(some, 1), moved, GRID)["right"] or 0) >= 0.9


def test_distances_count_where_the_candidates_differ():
    one, other = np.full((16, 16, 3), 200, np.uint8), np.full((16, 16, 3), 200, np.uint8)
    other[4:8, 4:8] = 0
    drawn = one.copy()
    drawn[12:] = 90  # where both are alike
    assert distances(drawn, [one, other])[0] == 0 < distances(drawn, [one, other])[1]
    assert rank(drawn, one, [other]) == 0 and rank(other, one, [other]) == 1


def test_cells_are_touched_where_the_eye_sees_it():
    before = np.zeros((16, 16, 3), np.uint8)
    after = before.copy()
    after[0, 5], after[9, 9] = 8, 9
    assert touched_cells(before, after, (4, 4)).nonzero()[0].tolist() == [2]
    assert [len(unlike(before, [before, after, after])), len(unlike(after, [before, before]))] == [1, 1]


# Boxes, maps, signs.


class Colours(Judge):
    """Features that are an image's colours, coarsely."""

    def __init__(self) -> None:
        self.device = "cpu"

    def features(self, images: Any, batch: int = 32) -> Tensor:
        rows = torch.stack(
            [
                torch.as_tensor(np.asarray(one.convert("RGB").resize((8, 8)), np.float32)).flatten() - 255.5
                for one in images
            ]
        )
        return torch.nn.functional.normalize(rows, dim=-1)


def test_boxes_that_are_filled_and_hold_the_right_thing(made):
    judge, things = Colours(), drawn_things()
    exact = cast(ImageTokenizer, SimpleNamespace(size=(SIZE, SIZE), encode_pixels=lambda pixels: pixels, decode=shown))
    reference = thing_reference(things, exact, judge)
    some = [one for one in made["grounded"] if not any(placed.paint for placed in one.view.scene.placed)]
    whole = mark_boxes(some, truth(some), judge, reference)
    assert whole["iou"] > 0.95 and whole["thing"] > 0.8 and whole["both"] > 0.75
    assert whole["boxes"] == sum(len(one.view.scene.placed) for one in some)
    nothing = mark_boxes(some, white(some), judge, reference)
    assert nothing["iou"] == nothing["both"] == 0.0


def test_what_stands_in_a_box_is_bounded_even_beside_it():
    standing = np.zeros((40, 40), bool)
    standing[4:14, 6:16] = standing[25:35, 22:30] = True
    standing[0, 39] = True  # a speck, far off
    boxes = [(5, 5, 15, 15), (20, 25, 30, 35), (30, 2, 38, 9)]
    assert found_boxes(standing, boxes) == [(6, 4, 16, 14), (22, 25, 30, 35), None]
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou(None, (0, 0, 1, 1)) == box_iou((0, 0, 1, 1), (1, 1, 2, 2)) == 0.0


@pytest.mark.parametrize("task", MAPS)
def test_drawings_that_follow_their_map(made, task: str):
    some = made[task]
    assert mark_maps(some, truth(some))["iou"] > 0.85
    assert mark_maps(some, white(some))["iou"] == 0.0
    assert mark_maps(some, [image[:, ::-1] for image in truth(some)])["iou"] < 0.8


def test_what_stands_out_from_the_ground():
    image = np.full((8, 8, 3), 255, np.uint8)
    image[2:4, 2:4] = (200, 30, 30)
    assert np.argwhere(foreground(image, (255, 255, 255))).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    empty = np.zeros((2, 2), bool)
    assert share_of_union(empty, empty) == 1.0 and share_of_union(~empty, empty) == 0.0


def test_signs_are_read_on_whatever_board_they_stand(made):
    some = made["write sign"]
    assert mark_signs(some, truth(some), WORDS) == {"top1": 1.0, "top5": 1.0}
    words = [one.made.words.split('"')[1] for one in some]
    for board in BOARDS:
        assert mark_signs(some, [sign(word, board, SIZE) for word in words], WORDS)["top1"] == 1.0
    other = [
        WORDS[one.view.language][WORDS[one.view.language].index(word) - 1]
        for one, word in zip(some, words, strict=True)
    ]
    assert mark_signs(some, [sign(word, BOARDS[1], SIZE) for word in other], WORDS)["top1"] == 0.0


# Holes.


def test_holes_are_marked_inside_alone():
    truth, holes = np.full((8, 8, 3), 100, np.uint8), np.zeros((2, 2), bool)
    holes[0, 1] = True
    drawn = truth.copy()
    drawn[4:] = 0
    assert hole_psnr(drawn, truth, holes) == 60.0
    drawn[:4, 4:] = 110
    assert hole_psnr(drawn, truth, holes) == pytest.approx(20 * np.log10(25.5))
    mean = filled_with_mean(drawn, holes)
    assert mean[0, 7, 0] == round((100 + 0 + 0) / 3) and np.array_equal(mean[4:], drawn[4:])
    assert filled_with_mean(drawn, ~np.zeros((2, 2), bool))[0, 0, 0] == 128


def test_filled_images_are_judged_by_what_they_show(squares: ImageTokenizer):
    things, judge = drawn_things(), Colours()
    some = holed(squares, things, 10)
    assert [one.words for one in some] == [one.words for one in holed(squares, things, 10)]
    assert all(
        one.holes.any() and one.words.startswith(one.thing.name["ar" if i % 2 else "en"]) for i, one in enumerate(some)
    )
    reference = marks.Reference(
        judge.features([thing.drawing for thing in things]), [one.code for one in things], [one.style for one in things]
    )
    whole = mark_holes(some, [one.image for one in some], judge, reference)
    assert whole["psnr"] == 60.0
    assert mark_holes(some, [255 - one.image for one in some], judge, reference)["psnr"] < 10


# The model.


def test_a_document_is_asked_for_as_it_was_learnt(tiny: CM3, split):
    size, vocab = tiny.image_tokenizer.size[0], tiny.vocab
    assert isinstance(vocab, Vocab)
    studio = replace(studio_of("familiar", drawn_things(), [], size, NAMES), words=WORDS)
    for task, images in (("recolour", 1), ("edges", 1), ("grounded", 0), ("write sign", 0)):
        [one] = examples(tiny.image_tokenizer, studio, task, 1)
        [request] = requests_of(tiny, [one], TaskOptions(keep=0))
        words = vocab.text_to_ids(tiny.text_tokenizer.encode(one.made.words))
        source = [vocab.image, *vocab.code_to_id(one.codes[0].flatten().tolist()), vocab.end_image] if images else []
        assert request.prompt == [vocab.eos, *words, vocab.break_, *source, vocab.image]
        assert request.guide and len(request.extra_prompts) == request.guide.num_extra == (
            2 if task == "recolour" else 1
        )
        assert request.extra_prompts[-1] == [vocab.eos, vocab.mask(0), vocab.break_, vocab.image]


def test_holes_are_filled_in_every_way_and_the_rest_is_kept(tiny: CM3, monkeypatch: pytest.MonkeyPatch):
    some = holed(tiny.image_tokenizer, drawn_things(), 3)
    corner = torch.zeros_like(some[0].holes)
    corner[0, 0] = True
    some = [one._replace(holes=corner) for one in some]
    drawn: list[Tensor] = []
    monkeypatch.setattr(evaluate_tasks, "images_of", lambda model, codes: drawn.extend(codes) or list(codes))
    ways = fill(tiny, some, TaskOptions(keep=0))
    assert list(ways) == [
        "filled",
        "filled without words",
        "left to right",
        "mean colour",
        "image through the image tokenizer",
    ]
    assert len(drawn) == 4 * 3
    for codes, one in zip(drawn, some * 4, strict=True):
        assert torch.equal(codes[~corner], one.codes[~corner])


def test_the_model_answers_every_question(tiny: CM3):
    studio = studio_of("familiar", drawn_things(), [], tiny.image_tokenizer.size[0], NAMES)
    asked = questions(studio, 1)
    assert len(tell(tiny, asked)) == len(asked)


@pytest.mark.slow
def test_the_whole_evaluation_runs_on_the_data_sample(
    tiny: CM3, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluate_tasks, "JUDGED", 6)
    monkeypatch.setattr(evaluate_tasks, "Judge", Colours)
    monkeypatch.setattr(trials, "MAJORITY_SCENES", 10)
    result = evaluate(tiny, sample, tmp_path, 2)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(json.dumps(result))
    assert result["held-out images of objects"] == 3
    for split, rows in result["splits"].items():
        signs = {"write sign"} if split == "compositional" else set()
        assert set(rows) == {"answers", *EDITS, *MAPS, "grounded"} | signs
    assert set(result["holes"]) == {"concepts", "unseen view", "held-out pair"}
    table = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert "| compositional | add | 2 | generated |" in table and "| unseen view | 2 | left to right |" in table
    assert Image.open(tmp_path / "examples.png").size[0] > 200


def test_a_wrong_split_or_model_ends_the_script_with_one_line(tmp_path: Path, tiny_folder: Path):
    for model, split, match in (
        ("no-such-model", [], "there is no model"),
        (str(tiny_folder), ["new"], "no split"),
        (str(tiny_folder), [], "no shards in"),
    ):
        with pytest.raises(SystemExit, match=f"evaluate_tasks: .*{match}") as error:
            evaluate_tasks.main(model, tmp_path, tmp_path / "out", 1, split)
        assert "\n" not in str(error.value.code)
