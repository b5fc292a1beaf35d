"""Tasks of models of the form "plan": a plan says all that an image shows, and the image is drawn from it.

    draw      prompt -> plan -> image in its own colours on white -> image in the plan's colours
    edit      image -> plan; plan, instruction -> new plan; both plans, image -> new image
    caption   image -> plan -> its names in a language
    answer    image -> plan; image, plan, question -> answer

tokens/plan.py defines plans, tokens/templates.py the text around them (PLANS).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from PIL import Image as PIL_Image
from torch import Tensor

from cm3.checks import check_choice
from cm3.engine.options import GREEDY, EditOptions, GenerateOptions, Query, SamplingConfig, TextOptions
from cm3.engine.request import Request
from cm3.tasks.confidence import Rater, marks
from cm3.tasks.images import Processor
from cm3.tasks.job import Batch, Phases, Piece
from cm3.tasks.plan_words import AND, caption, described
from cm3.tasks.prompts import MAX_PLAN, MOST_BEFORE, History, Prompts, candidate_seed
from cm3.tasks.reranking import best_of_each
from cm3.tokens.document import Document, Image, Text
from cm3.tokens.plan import PLACES, Plan, Thing
from cm3.tokens.templates import PLANS, Box
from cm3.tokens.templates import prompt as worded
from cm3.tokens.vocab import Grid

TRIES = 4  # of a plan
RETRY = SamplingConfig(temperature=0.7)  # where the likeliest text is no plan

Show = Callable[[int, Tensor], PIL_Image.Image]


class NoPlan(ValueError):
    """The model wrote no valid plan.

    Args:
        words: the prompt.
    """

    def __init__(self, words: str) -> None:
        super().__init__(f"the model wrote no valid plan for {words!r:.80}: say it otherwise, or give a plan")


class Drawn(NamedTuple):
    """An image that a model drew.

    Attributes:
        codes: [h, w].
        plan: what it was drawn from; None where there was no plan.
    """

    codes: Tensor
    plan: Plan | None


class PlanRead(NamedTuple):
    """A plan that a model read from an image.

    Attributes:
        text: of the plan.
        request: what asked for it.
        ids: new ids that say what is shown.
    """

    text: str
    request: Request
    ids: list[int]


@dataclass(frozen=True)
class Planning:
    """Makes the batches of each task.

    Attributes:
        processor: images and texts to ids and back.
        prompts: documents to requests.
        best: index of those of several codes, [h, w] each, that fit a plan best.
        rater: how probable it is that a text is right.

    Raises:
        ValueError: a request that cannot be fulfilled, or no valid plan after TRIES tries.
    """

    processor: Processor
    prompts: Prompts
    best: Callable[[str, Sequence[Tensor]], int]
    rater: Rater

    def draw(self, prompts: Sequence[str], options: GenerateOptions) -> Phases[list[Drawn]]:
        """Draw n images of each prompt, each from a plan of its own, and each the best of best_of candidates."""
        if options.references:
            raise ValueError("a model that plans draws no image after others: leave out references")
        each = [words for words in prompts for _ in range(options.n)]
        seeds = [options.seed + i for _ in prompts for i in range(options.n)]
        if isinstance(options.plan, str):
            plans = [Plan.parse(options.plan)] * len(each)
        elif options.boxes:
            plans = yield from self.placed(each, options.boxes, SamplingConfig(temperature=options.variety), seeds)
        else:
            planned = yield from self.plans(each, SamplingConfig(temperature=options.variety), seeds)
            plans = found(each, planned)
        yield Batch([], self._show, pieces=[Piece(i, str(plan)) for i, plan in enumerate(plans)])
        drawn = yield from self.images(plans, seeds, options)
        texts = [str(plan) for plan in plans]
        codes = best_of_each(texts, drawn, self.best)
        return [Drawn(one, plan) for one, plan in zip(codes, plans, strict=True)]

    def plans(
        self, prompts: Sequence[str], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> Phases[list[Plan | None]]:
        """The plan of each prompt; None where none of TRIES texts is a plan."""
        return self._planned([PLANS["draw"].format(words=words.strip()) for words in prompts], sampling, seeds)

    def edited(self, plans: Sequence[str], instructions: Sequence[str], seed: int = 0) -> Phases[list[Plan | None]]:
        """What each instruction makes of each plan; None as for `plans`."""
        pairs = zip(plans, instructions, strict=True)
        texts = [PLANS["edit"].format(plan=plan, words=words.strip()) for plan, words in pairs]
        return self._planned(texts, GREEDY, [seed] * len(texts))

    def placed(
        self,
        prompts: Sequence[str],
        boxes: Sequence[tuple[str, Box]],
        sampling: SamplingConfig,
        seeds: Sequence[int],
    ) -> Phases[list[Plan]]:
        """Plans with a thing in each box; the prompt says the rest, such as the style.

        A box stands for the place that its middle is in; a single one, larger than half of each side, for the whole
        image.
        """
        alone = [PLANS["draw"].format(words=name.strip()) for name, _ in boxes]
        named = found([name for name, _ in boxes], (yield from self._planned(alone, GREEDY, [seeds[0]] * len(boxes))))
        listed = ", ".join(name.strip() for name, _ in boxes)
        asked = [f"{listed}, {words}" if (words := prompt.strip()) else listed for prompt in prompts]
        rest = found(asked, (yield from self.plans(asked, sampling, seeds)))
        things = [
            replace(plan.things[0] if plan.things else Thing(name), place=place_of(box, len(boxes)))
            for plan, (name, box) in zip(named, boxes, strict=True)
        ]
        return [Plan.parse(str(replace(plan, things=tuple(things)))) for plan in rest]  # in order, none twice

    def _planned(
        self, texts: Sequence[str], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> Phases[list[Plan | None]]:
        """The plan that follows each text. What is no plan is written again."""
        plans: dict[int, Plan] = {}
        for attempt in range(TRIES):
            left = [i for i in range(len(texts)) if i not in plans]
            if not left:
                break
            now = RETRY if attempt and sampling.temperature == 0 else sampling
            requests = [self.prompts.after(texts[i], now, candidate_seed(seeds[i], attempt), MAX_PLAN) for i in left]
            new = yield self._not_shown(requests)
            for i, ids in zip(left, new, strict=True):
                if plan := parsed(self.processor.text(ids)):
                    plans[i] = plan
        return [plans.get(i) for i in range(len(texts))]

    def images(self, plans: Sequence[Plan], seeds: Sequence[int], options: GenerateOptions) -> Phases[list[Tensor]]:
        """Codes of best_of candidates for each plan, side by side: plain first, then in their colours."""
        each = [(plan, seed, j) for plan, seed in zip(plans, seeds, strict=True) for j in range(options.best_of)]
        instead = None
        if options.negative_prompt is not None and options.negative_prompt.strip():
            instead = Document((Text(options.negative_prompt.strip()),))
        requests = list[Request]()
        for plan, seed, j in each:
            plain, grid = Document((Text(str(plan.plain)),)), self.grid(plan, options)
            requests.append(self.prompts.candidate(plain, options, seed, j, instead, grid))
        shown = [i // options.best_of if j == 0 else None for i, (_, _, j) in enumerate(each)]
        codes = self.processor.drawn(requests, (yield Batch(requests, self._show, shown)))
        coloured = [i for i, (plan, _, _) in enumerate(each) if plan != plan.plain]
        if coloured:
            sampling = options.sampling
            unguided = EditOptions(
                temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, text_guidance=1, keep=0
            )
            changes = list[Request]()
            for i in coloured:
                plan, seed, j = each[i]
                source, seed = Image(codes[i]), candidate_seed(seed, j)
                changes.append(self.prompts.changed(str(plan.plain), str(plan), source, unguided, seed))
            new = yield Batch(changes, self._show, [shown[i] for i in coloured])
            for i, changed in zip(coloured, self.processor.drawn(changes, new), strict=True):
                codes[i] = changed
        return codes

    def grid(self, plan: Plan, options: GenerateOptions) -> Grid | None:
        """The grid that a plan is drawn on: several things, and a thing at a place, need the usual one."""
        if options.grid is not None:
            return int(options.grid[0]), int(options.grid[1])
        alone = len(plan.things) == 1 and not plan.things[0].place
        return self.prompts.grid_of(options.size if alone else "usual")

    def rows(self, plan: str, options: GenerateOptions) -> int:
        """How many rows of codes are streamed of a plan's image: twice those of its grid where it has colours."""
        parsed = Plan.parse(plan)
        rows, _ = self.grid(parsed, options) or self.processor.grid
        return rows if parsed == parsed.plain else 2 * rows

    def read(self, images: Sequence[Image], sampling: SamplingConfig = GREEDY, seed: int = 0) -> Phases[list[str]]:
        """The text of each image's plan, as the model reads it; not always a valid plan."""
        return [one.text for one in (yield from self._read(images, sampling, seed))]

    def _read(self, images: Sequence[Image], sampling: SamplingConfig, seed: int) -> Phases[list[PlanRead]]:
        # In training documents a question stands behind the plan.
        behind = worded("answer", "How many things are there?", "plan")
        requests = [
            self.prompts.text(PLANS["read"], one, sampling, seed, most=MAX_PLAN, behind=behind) for one in images
        ]
        new = yield self._not_shown(requests)
        return [
            PlanRead(text := self.processor.text(ids).strip(), request, ids[: self._named(text, ids)])
            for request, ids in zip(requests, new, strict=True)
        ]

    def _named(self, text: str, ids: list[int]) -> int:
        """How many ids of a plan say what is shown: those before the style and the ground, which a caption leaves
        out."""
        plan = parsed(text)
        things = str(Plan(plan.things)) if plan else text
        return next(
            (k for k in range(1, len(ids)) if len(self.processor.text(ids[:k]).strip()) >= len(things)), len(ids)
        )

    def edit(
        self, sources: Sequence[Image], instructions: Sequence[str], options: EditOptions, show: Show
    ) -> Phases[list[Drawn]]:
        """Change each image as its instruction says."""
        before = yield from self.read(sources)
        if options.plan is not None:
            after = [Plan.parse(options.plan)] * len(sources)
        else:
            after = found(instructions, (yield from self.edited(before, instructions, options.seed)))
        yield Batch([], show, pieces=[Piece(i, str(plan)) for i, plan in enumerate(after)])
        requests = [
            self.prompts.changed(old, str(new), source, options, options.seed)
            for old, new, source in zip(before, after, sources, strict=True)
        ]
        codes = self.processor.drawn(requests, (yield Batch(requests, show)))
        return [Drawn(one, plan) for one, plan in zip(codes, after, strict=True)]

    def tell(
        self, pairs: Sequence[tuple[Image, Query]], options: TextOptions, history: History = ()
    ) -> Phases[list[str]]:
        """Answer each query about its image. An image that stands in several pairs is read once."""
        for _, query in pairs:
            check_choice("language", query.language, AND)
            if query.long:
                check_choice("the language of a long caption", query.language, ("en", "ar"))
        images = {id(image): image for image, _ in pairs}
        seen = yield from self._read(list(images.values()), options.sampling, options.seed)
        read = dict(zip(images, seen, strict=True))
        asked = [i for i, (_, query) in enumerate(pairs) if query.question]
        captions = {i: (read[id(image)].text, query) for i, (image, query) in enumerate(pairs) if not query.question}
        said = dict(zip(captions, (yield from self._captions(list(captions.values()))), strict=True))
        requests = list[Request]()
        for i in asked:
            image, query = pairs[i]
            turns = [(worded("answer", question, "plan"), answer) for question, answer in history[-MOST_BEFORE:]]
            words = worded("answer", query.question, "plan")
            known = (PLANS["read"], read[id(image)].text)
            requests.append(self.prompts.text(words, image, options.sampling, options.seed, turns, known))
        new = yield Batch(requests, self._show, asked, [Piece(i, text) for i, text in said.items()])
        answered = {i: (request, ids) for i, request, ids in zip(asked, requests, new, strict=True)}
        said |= {i: self.processor.text(ids).strip() for i, (_, ids) in answered.items()}
        texts = list[str]()
        for i, (image, query) in enumerate(pairs):
            plan = read[id(image)]
            written = [(plan.request, plan.ids), *([answered[i]] if i in answered else ())]
            texts.append(self.rater.rated(said[i], query.reply_language, options.threshold, *written))
        yield Batch([], self._show, pieces=marks(texts))
        return texts

    def _captions(self, wanted: Sequence[tuple[str, Query]]) -> Phases[list[str]]:
        """The caption of each plan. Names in other languages than English are written by the model. A text that is no
        plan is its own caption."""
        plans = [parsed(text) for text, _ in wanted]
        names = {
            (query.language, thing.name): ""
            for plan, (_, query) in zip(plans, wanted, strict=True)
            for thing in (plan.things if plan and query.language != "en" else ())
        }
        requests = [
            self.prompts.after(PLANS["translate"].format(language=language, words=name), GREEDY, 0, language=language)
            for language, name in names
        ]
        new = (yield self._not_shown(requests)) if requests else []
        names = {key: self.processor.text(ids).strip() for key, ids in zip(names, new, strict=True)}
        captions = list[str]()
        for plan, (text, query) in zip(plans, wanted, strict=True):
            own = {name: said for (language, name), said in names.items() if language == query.language}
            words = described if query.long else caption
            captions.append(words(plan, query.language, own) if plan else text)
        return captions

    def _not_shown(self, requests: list[Request]) -> Batch:
        return Batch(requests, self._show, [None] * len(requests))

    def _show(self, _: int, codes: Tensor) -> PIL_Image.Image:
        return self.processor.decode(codes)


def found(about: Sequence[str], plans: Sequence[Plan | None]) -> list[Plan]:
    """The plans.

    Raises:
        NoPlan: a plan is missing; it is the first such.
    """
    for words, plan in zip(about, plans, strict=True):
        if plan is None:
            raise NoPlan(words)
    return [plan for plan in plans if plan is not None]


def parsed(text: str) -> Plan | None:
    """The plan that a text says; None where it says none."""
    try:
        return Plan.parse(text)
    except ValueError:
        return None


def place_of(box: Box, count: int) -> str:
    """The place of a plan that a box stands for. count: of boxes."""
    left, top, right, bottom = box
    if count == 1 and right - left > 0.5 and bottom - top > 0.5:
        return ""
    return PLACES[2 * ((top + bottom) / 2 >= 0.5) + ((left + right) / 2 >= 0.5)]
