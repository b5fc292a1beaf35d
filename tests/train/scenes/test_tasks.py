"""Tasks: every answer follows from the scene, every edit changes what it says and nothing else."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from cm3.tokens.templates import language_of
from drawings import SHAPES, drawn_things
from train.documents.shards import Target
from train.emoji.phrases import COLOURS_AR
from train.images.views import GROUNDS
from train.scenes import tasks
from train.scenes.scene import PAINTS, Placed, Scene, Stage, overlap, render
from train.scenes.tasks import (
    ASKING,
    NAMING,
    PLACES,
    RELATED_AR,
    SEGMENTS,
    TASKS,
    SceneView,
    TaskDocument,
    edge_map,
    place,
    plural,
    segment_map,
)

SIZE = 48
LANGUAGES = ("en", "ar")
ENGLISH = {arabic: english for english, (arabic, *_) in SHAPES.items()}
SINGULAR = {
    "cats": "cat",
    "dogs": "dog",
    "fish": "fish",
    "foxes": "fox",
    "buses": "bus",
    "roses": "rose",
    "drums": "drum",
    "red apples": "red apple",
}
ARTICLES = {f"{'an' if name[0] in 'aeiou' else 'a'} {name}": name for name in SHAPES}
ARABIC_PLACE = {arabic: english for english, arabic in PLACES.items()}
ARABIC_PAINT = {arabic: english for english, (arabic, _) in PAINTS.items()}
ARABIC_GROUND = {arabic: key for key, (_, arabic, _) in GROUNDS.items()}
ARABIC_SIDE = {arabic: english for english, arabic in RELATED_AR.items()}


@dataclass(frozen=True)
class Studio:
    """stages: of training and of unseen combinations. views(language, n): views of n scenes."""

    stages: dict[bool, Stage]

    def views(self, language: str, count: int = 80, seed: int = 0, novel: bool = False) -> Iterator[SceneView]:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            scene = self.stages[novel].scene(rng)
            yield SceneView(scene, render(scene, SIZE), self.stages[novel], rng, language, ("FOX", "قط"))


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio({novel: Stage(drawn_things(), SIZE, white=0.4, novel=novel) for novel in (False, True)})


def key(name: str) -> str:
    """The English name, whatever it was called."""
    name = name.strip().removeprefix("the ")
    return ENGLISH.get(name, ARTICLES.get(name, name))


def names(scene: Scene) -> list[str]:
    return [one.thing.name["en"] for one in scene.placed]


def only(scene: Scene, name: str) -> Placed:
    [one] = [one for one in scene.placed if one.thing.name["en"] == key(name)]
    return one


def ninth(one: Placed) -> str:
    row, column = (int(3 * (at + one.side / 2) / SIZE) for at in (one.top, one.left))
    return f"{('top ', '', 'bottom ')[row]}{('left', '', 'right')[column]}".strip() or "middle"


def lies(a: Placed, b: Placed) -> str:
    """Where a lies, seen from b, by the boxes of their drawings."""
    x, y = (at - other for at, other in zip(a.centre, b.centre, strict=True))
    return ("left" if x < 0 else "right") if abs(x) >= abs(y) else ("above" if y < 0 else "below")


def counted(parts: list[str]) -> Counter:
    """{"cat": 2, "dog": 1} of ["two cats", "a dog"]."""
    out: Counter = Counter()
    for part in parts:
        number, _, rest = part.partition(" ")
        name, times, many = part.partition(" × ")
        if times:
            out[key(name)] = int(many)
        else:
            out[SINGULAR[rest] if number in ("two", "three") else key(part)] = {"two": 2, "three": 3}.get(number, 1)
    return out


def expected(view: SceneView, question: str) -> str:
    """The answer, worked out anew from the scene."""
    scene, english = view.scene, view.language == "en"
    yes, no = ("yes", "no") if english else ("نعم", "لا")

    def match(*patterns: str) -> re.Match[str] | None:
        return next((found for pattern in patterns if (found := re.fullmatch(pattern, question))), None)

    if match("How many things (?:are there|do you see)[?]", "كم عدد الأشياء؟"):
        return str(len(scene.placed))
    if found := match("How many (.*) (?:are there|do you see)[?]"):
        return str(names(scene).count(SINGULAR[found[1]]))
    if found := match("كم مرة يظهر (.*)؟"):
        return str(names(scene).count(key(found[1])))
    if found := match("Where is (.*)[?]", "أين (.*)؟"):
        return ninth(only(scene, found[1])) if english else PLACES[ninth(only(scene, found[1]))]
    if found := match(
        "Is (.*) (left) or right of (.*)[?]",
        "Is (.*) (above) or below (.*)[?]",
        "هل (.*) (يسار) أم يمين (.*)؟",
        "هل (.*) (فوق) أم تحت (.*)؟",
    ):
        word = lies(only(scene, found[1]), only(scene, found[3]))
        assert (word in ("left", "right")) == (found[2] in ("left", "يسار"))
        return word if english else RELATED_AR[word]
    if found := match("Is (the .*) (left of|right of|above|below) (the .*)[?]", "هل (.*) (يسار|يمين|فوق|تحت) (.*)؟"):
        said = ARABIC_SIDE.get(found[2], found[2].removesuffix(" of"))
        word = lies(only(scene, found[1]), only(scene, found[3]))
        assert (said in ("left", "right")) == (word in ("left", "right"))
        return yes if word == said else no
    if found := match("Is there (.*)[?]", "هل يوجد (.*)؟"):
        return yes if key(found[1]) in names(scene) else no
    if match("What is the largest thing[?]", "ما أكبر شيء؟"):
        covered = view.shown.outlines.reshape(len(scene.placed), -1).sum(1)
        return scene.placed[int(covered.argmax())].thing.name[view.language]
    if match("What colour is the background[?]", "ما لون الخلفية؟"):
        return GROUNDS[scene.ground][0] if english else GROUNDS[scene.ground][1]
    found = match("What colour is (.*)[?]", "ما لون (.*)؟")
    assert found, question
    one = only(scene, found[1])
    colour = one.paint or one.thing.colour
    assert colour
    return colour if english else COLOURS_AR[colour]


def asked_of(
    studio: Studio, language: str, ask: Callable[[SceneView], Target | None], count: int = 80
) -> list[tuple[SceneView, Target]]:
    return [(view, target) for view in studio.views(language, count) if (target := ask(view))]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "ask", [ask for ask in dict.fromkeys((*ASKING, *NAMING, tasks.count)) if "caption" not in ask.__name__]
)
def test_every_answer_follows_from_the_scene(studio: Studio, language: str, ask: Callable[[SceneView], Target | None]):
    found = asked_of(studio, language, ask)
    assert len(found) > 10
    for view, target in found:
        question = re.fullmatch(r"(?:Question:|سؤال:) (.*) (?:Answer:|جواب:) ", target.prompt)
        assert question and language_of(question[1]) == language
        assert target.answer == expected(view, question[1])


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caption_lists_what_is_there(studio: Studio, language: str):
    for view, target in asked_of(studio, language, tasks.caption):
        parts = target.answer.split(" and ") if language == "en" else re.split(r" و(?=\S)", target.answer)
        assert counted(parts) == Counter(names(view.scene))


def test_a_long_caption_tells_the_place_of_each_thing_and_the_ground(studio: Studio):
    for view, target in asked_of(studio, "en", tasks.long_caption):
        *parts, ground = target.answer.split(", ")
        assert ground == f"on a {GROUNDS[view.scene.ground][0]} background"
        for one, part in zip(view.scene.placed, parts, strict=True):
            colour = one.paint or one.thing.colour or ""
            said = part.split(" ", 1)[1]  # without its article
            assert (
                said
                == f"{'' if colour in one.thing.name['en'] else colour + ' '}{one.thing.name['en']} "
                + ("in the middle" if ninth(one) == "middle" else f"at the {ninth(one)}").strip()
            )
    for view, target in asked_of(studio, "ar", tasks.long_caption):
        *parts, ground = target.answer.split(", ")
        assert ARABIC_GROUND[ground.removeprefix("على خلفية ")] == view.scene.ground
        assert parts == [f"{one.thing.name['ar']} في {PLACES[ninth(one)]}" for one in view.scene.placed]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("ask", [tasks.present, tasks.relation_holds, tasks.side])
def test_who_sees_no_image_cannot_do_better_than_by_chance(
    studio: Studio, language: str, ask: Callable[[SceneView], Target | None]
):
    """Of two possible answers to a question each is right as often, whatever its words."""
    answers: dict[str, list[bool]] = defaultdict(list)
    for _, target in asked_of(studio, language, ask, 400):
        form = re.sub("|".join((*SHAPES, *ENGLISH)), "X", target.prompt)
        answers[form].append(target.answer in ("yes", "نعم", "left", "above", "يسار", "فوق"))
    for form, values in answers.items():
        if len(values) > 60:
            assert np.mean(values) == pytest.approx(0.5, abs=4 * 0.5 / len(values) ** 0.5), form


def test_what_is_not_there_is_asked_for_too(studio: Studio):
    numbers = Counter(target.answer for _, target in asked_of(studio, "en", tasks.count, 200))
    assert set(numbers) == {"0", "1", "2", "3"} and numbers["0"] / 200 == pytest.approx(0.2, abs=0.1)


def test_questions_that_name_things_do_not_stand_beside_those_that_ask_for_them(studio: Studio):
    kinds = {
        "ask": {"caption", "long caption", "presence", "largest", "count all", "ground"},
        "ask about": {"where", "side", "colour of", "relation"},
        "count": {"count"},
    }
    for task, allowed in kinds.items():
        lengths, seen = Counter(), set()
        for view in studio.views("en", 120):
            made = TASKS[task].make(view)
            if made:
                found = [target.task for target in made.asked]
                assert set(found) <= allowed and len(set(found)) == len(found)
                assert not made.words and np.array_equal(made.images[-1], view.shown.image)
                lengths[len(found)] += 1
                seen |= set(found)
        assert seen == allowed and set(lengths) <= {1, 2, 3}
        if task == "count":  # whatever else is asked of a thing would say how often it is there
            assert set(lengths) == {1}
        else:
            assert lengths[2] + lengths[3] > 0.6 * lengths.total() and lengths[3] > 10


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("cat", "cats"),
        ("fox", "foxes"),
        ("bus", "buses"),
        ("fish", "fish"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("tomato", "tomatoes"),
        ("ostrich", "ostriches"),
        ("red apple", "red apples"),
    ],
)
def test_plurals(name: str, many: str):
    assert plural(name) == many


def test_places_are_the_ninths_of_the_image():
    thing = drawn_things()[0]
    found = [place(Placed(thing, 4, x, y), 30) for y in (0, 13, 26) for x in (0, 13, 26)]
    assert found == list(PLACES)
    assert place(Placed(thing, 30, 0, 0), 30) == "middle"


# Edits.


@dataclass(frozen=True)
class Edit:
    """One edit: the view, what was made, and the scene that its words lead to."""

    view: SceneView
    made: TaskDocument
    scene: Scene

    def words(self, *patterns: str) -> tuple[str, ...]:
        """The groups of the first pattern that its instruction is."""
        said = re.sub("^(Edit: |عدّل: )", "", self.made.words)
        assert said != self.made.words
        found = next((found for pattern in patterns if (found := re.fullmatch(pattern, said))), None)
        assert found, said
        return found.groups()


def facts(one: Placed) -> tuple[str, int, int, int, bool, str]:
    return one.thing.key, one.side, one.left, one.top, one.mirror, one.paint


@pytest.fixture
def edits(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Edit]]:
    """edits(task, language): many edits."""
    led: list[Scene] = []
    whole = tasks.edited

    def noted(view: SceneView, scene: Scene, words: str) -> TaskDocument | None:
        led.append(scene)
        return whole(view, scene, words)

    monkeypatch.setattr(tasks, "edited", noted)

    def make(task: str, language: str, novel: bool = False) -> list[Edit]:
        found = []
        for view in studio.views(language, 60, novel=novel):
            if made := TASKS[task].make(view):
                found.append(Edit(view, made, led[-1]))
        assert len(found) > 5
        return found

    return make


def changed(edit: Edit) -> int:
    """The one thing that differs."""
    pairs = zip(edit.view.scene.placed, edit.scene.placed, strict=True)
    [i] = [i for i, (old, new) in enumerate(pairs) if facts(old) != facts(new)]
    assert edit.scene.ground == edit.view.scene.ground
    return i


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", ["add", "remove", "replace", "recolour", "move", "reground"])
def test_an_edit_shows_the_image_before_and_after(edits, task: str, language: str):
    for edit in edits(task, language):
        before, after = edit.made.images
        assert edit.made.kept and not edit.made.asked and language_of(edit.made.words) == language
        assert np.array_equal(before, edit.view.shown.image)
        assert np.array_equal(after, render(edit.scene, SIZE).image) and not np.array_equal(before, after)
        placed = edit.scene.placed
        assert not any(overlap(a, b) for i, a in enumerate(placed) for b in placed[i + 1 :])


@pytest.mark.parametrize("task", ["add", "remove", "replace", "recolour", "move", "reground"])
def test_training_edits_lead_to_no_held_out_combination(edits, studio: Studio, task: str):
    assert all(studio.stages[False].allowed(edit.scene) for edit in edits(task, "en"))
    assert all(studio.stages[True].allowed(edit.view.scene) for edit in edits(task, "en", novel=True))


def test_add_puts_one_thing_at_the_place_it_names(edits):
    for edit in (*edits("add", "en"), *edits("add", "ar")):
        name, there = edit.words("(?:add|put|draw) (.*) (?:at|in) the (.*)", "(?:أضف|ضع) (.*) في (.*)")
        assert edit.scene.placed[:-1] == edit.view.scene.placed and edit.scene.ground == edit.view.scene.ground
        new = edit.scene.placed[-1]
        assert new.thing.name["en"] == key(name) and ninth(new) == ARABIC_PLACE.get(there, there)
        assert key(name) not in names(edit.view.scene) and new.thing.style == edit.view.scene.placed[0].thing.style


def test_remove_takes_away_the_thing_it_names(edits):
    for edit in (*edits("remove", "en"), *edits("remove", "ar")):
        [name] = edit.words("(?:remove|delete|take away) (.*)", "(?:احذف|أزل) (.*)")
        gone = only(edit.view.scene, name)
        assert edit.scene.placed == tuple(one for one in edit.view.scene.placed if one is not gone)
        assert edit.scene.ground == edit.view.scene.ground


def test_replace_puts_another_thing_in_the_same_place(edits):
    for edit in (*edits("replace", "en"), *edits("replace", "ar")):
        old, new = edit.words(
            "replace (.*) with (.*)",
            "change (.*) into (.*)",
            "turn (.*) into (.*)",
            "استبدل (.*) بـ (.*)",
            "غيّر (.*) إلى (.*)",
        )
        i = changed(edit)
        before, after = edit.view.scene.placed[i], edit.scene.placed[i]
        assert before is only(edit.view.scene, old) and after.thing.name["en"] == key(new)
        assert (after.side, after.left, after.top, after.paint) == (before.side, before.left, before.top, "")
        assert after.thing.style == before.thing.style and key(new) not in names(edit.view.scene)


def test_recolour_paints_the_thing_it_names(edits):
    alone = 0
    for edit in (*edits("recolour", "en"), *edits("recolour", "ar")):
        name, paint = edit.words(r"(?:make|paint|turn) (.*) (\w+)", "غيّر لون (.*) إلى (.*)", r"اجعل لون (.*) (\w+)")
        i = changed(edit)
        before, after = edit.view.scene.placed[i], edit.scene.placed[i]
        alone += name == "it"
        assert len(edit.view.scene.placed) == 1 if name == "it" else before is only(edit.view.scene, name)
        assert after.paint == ARABIC_PAINT.get(paint, paint) != before.colour
        assert facts(after)[:-1] == facts(before)[:-1]
    assert alone


def test_move_puts_the_same_thing_elsewhere(edits):
    for edit in (*edits("move", "en"), *edits("move", "ar")):
        name, there = edit.words("(?:move|put|shift) (.*) (?:to|at) the (.*)", "(?:انقل|حرّك) (.*) إلى (.*)")
        i = changed(edit)
        before, after = edit.view.scene.placed[i], edit.scene.placed[i]
        assert before is only(edit.view.scene, name)
        assert ninth(after) == ARABIC_PLACE.get(there, there) != ninth(before)
        assert [getattr(after, part) for part in ("thing", "side", "mirror", "paint")] == [
            getattr(before, part) for part in ("thing", "side", "mirror", "paint")
        ]


def test_reground_changes_the_ground_alone(edits):
    english = {words[0]: name for name, words in GROUNDS.items()}
    for edit in (*edits("reground", "en"), *edits("reground", "ar")):
        [ground] = edit.words("make the background (.*)", "change the background to (.*)", "اجعل الخلفية (.*)")
        assert edit.scene.placed == edit.view.scene.placed
        assert edit.scene.ground == {**english, **ARABIC_GROUND}[ground] != edit.view.scene.ground


# Images from words, boxes and maps.


def without_ground(view: SceneView, words: str) -> str:
    """Drops what is said of the ground, which must be true and, but for white, there."""
    english, arabic, _ = GROUNDS[view.scene.ground]
    end = f" on a {english} background" if view.language == "en" else f" على خلفية {arabic}"
    assert words.endswith(end) == (view.scene.ground != "white")
    return words.removesuffix(end)


@pytest.mark.parametrize("task", ["add", "move", "replace"])
def test_edits_of_aligned_scenes_stay_aligned(edits, studio: Studio, monkeypatch: pytest.MonkeyPatch, task: str):
    monkeypatch.setitem(studio.stages, False, Stage(drawn_things(), SIZE, aligned=1.0, cells=8))
    for edit in edits(task, "en"):
        for one in edit.scene.placed:
            assert one.left % 6 == one.top % 6 == one.side % 6 == 0 and not one.mirror
    monkeypatch.setitem(studio.stages, False, Stage(drawn_things(), SIZE, aligned=1.0, cells=8, quarters=1.0))
    for edit in edits(task, "en"):
        assert all(one.left in (0, SIZE // 2) and one.top in (0, SIZE // 2) for one in edit.scene.placed)


@pytest.mark.parametrize("language", LANGUAGES)
def test_drawings_are_asked_for_by_what_is_there_and_how_it_lies(studio: Studio, language: str):
    relations = alone = 0
    for view in studio.views(language, 120):
        made = TASKS["draw"].make(view)
        assert made and len(made.images) == 1
        words = without_ground(view, made.words)
        if len(view.scene.placed) == 1:
            alone += 1
            name, where = re.fullmatch("(.*) (?:(?:at|in) the|في) (.*)", words).groups()  # pyright: ignore
            said = ninth(only(view.scene, name))
            assert where == (said if language == "en" else PLACES[said])
            continue
        found = re.fullmatch("(.*) (left of|right of|above|below|يسار|يمين|فوق|تحت) (.*)", words)
        if found:
            relations += 1
            said = ARABIC_SIDE.get(found[2], found[2].removesuffix(" of"))
            assert lies(only(view.scene, found[1]), only(view.scene, found[3])) == said
        else:
            parts = words.split(" and ") if language == "en" else re.split(r" و(?=\S)", words)
            assert counted(parts) == Counter(names(view.scene))
    assert relations > 5 and alone > 5


@pytest.mark.parametrize("language", LANGUAGES)
def test_boxes_bound_what_they_name(studio: Studio, language: str):
    for view in studio.views(language, 40):
        made = TASKS["grounded"].make(view)
        assert made
        parts = re.findall(r"(.*?) \[(.*?)\](?:, )?", without_ground(view, made.words))
        assert [key(name) for name, _ in parts] == names(view.scene)
        for i, (_, numbers) in enumerate(parts):
            box = np.array([int(number) for number in numbers.split(" ")]) / 100 * SIZE
            assert np.abs(box - view.shown.box(i)).max() <= SIZE / 200 + 1e-6


@pytest.mark.parametrize("language", LANGUAGES)
def test_segments_stand_in_the_order_of_their_names(studio: Studio, language: str):
    for view in studio.views(language, 40):
        made = TASKS["segments"].make(view)
        assert made and len(made.images) == 2
        words = without_ground(view, made.words.split(": ", 1)[1])
        assert [key(name) for name in re.split("[,،] ", words)] == names(view.scene)
        for colour, outline in zip(SEGMENTS, view.shown.outlines, strict=False):
            assert np.array_equal((made.images[0] == colour).all(-1), outline)
        assert np.array_equal(made.images[0], segment_map(view.shown))
        assert not made.images[0][~view.shown.outlines.any(0)].any()


def test_edges_lie_where_the_brightness_changes():
    image = np.full((32, 32, 3), 255, np.uint8)
    assert not edge_map(image).any()
    image[8:24, 8:24] = 40
    edges = edge_map(image)[..., 0]
    assert set(np.unique(edges)) == {0, 255}
    assert edges[8, 9:23].all() and edges[9:23, 8].all() and not edges[11:21, 11:21].any() and not edges[:5].any()


@pytest.mark.parametrize("language", LANGUAGES)
def test_signs_are_written_and_read(studio: Studio, language: str):
    for view in studio.views(language, 12):
        written, read = TASKS["write sign"].make(view), TASKS["read sign"].make(view)
        assert written and read
        assert re.findall('"(.*)"', written.words)[0] in view.words
        assert [target.answer in view.words for target in read.asked] == [True]


def test_shares_of_tasks_make_a_whole():
    assert sum(task.share for task in TASKS.values()) == pytest.approx(1)
