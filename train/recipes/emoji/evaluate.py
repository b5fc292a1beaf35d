"""What the embedded model can do, on exact truth and by judges: one suite a call, a table and a JSON file.

    python -m train.recipes.emoji.evaluate ceiling --image-tokenizer runs/image_tokenizer/model --out runs/evaluation
    python -m train.recipes.emoji.evaluate drawings --model runs/lm/model --out runs/evaluation --count 200

ceiling     real drawings through the image tokenizer, at both sizes: PSNR and what the judges recognise
drawings    single drawings by plan (name and style), by bare name in every language, and in every form of words
scenes      scenes drawn from plans and from requests: every tile compared with the codes of the thing asked for
changes     edits with both plans given: the whole result compared
plans       requests and instructions to plans, as text
readings    plans, questions and answers of held-out scenes and drawings

A judge compares with real drawings of other styles (train/evaluation/judge.py). A tile is right where the nearest
drawing by codes, among all drawings of all styles, is one of the thing that was asked for in the right style.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image as PIL_Image

from cm3.engine.options import GREEDY, SamplingConfig
from cm3.engine.request import Request
from cm3.pipeline import CM3
from cm3.tokens.document import Document, Image, Mask, Text
from cm3.tokens.encoding import draw_ids, open_ids, prompt_ids
from cm3.tokens.plan import PLACES, Plan, Thing
from cm3.tokens.templates import PLANS
from tokenizer_image import ImageTokenizer
from train.evaluation.judge import Judge, Reference, ranks
from train.images.sheet import contact_sheet
from train.recipes.emoji.art import CANVAS, TILE, Drawing, single
from train.recipes.emoji.documents import Builder, DocumentsConfig
from train.recipes.emoji.packages import LANGUAGES
from train.recipes.emoji.requests import FORMS, Planner
from train.recipes.emoji.shelf import Codes, Shelf
from train.recipes.emoji.world import World, held_out

GRIDS = {TILE: (8, 8), CANVAS: (16, 16)}
DRAWING = SamplingConfig(temperature=0.5, top_p=0.9)
PLANNING = SamplingConfig(temperature=0.7)
COPY = 0.95  # share of codes that a memorised drawing has of a training image


class Planned(NamedTuple):
    """text: what the model wrote. plan: what it says, None where it is no plan."""

    text: str
    plan: Plan | None


def parsed(text: str) -> Planned:
    try:
        return Planned(text, Plan.parse(text))
    except ValueError:
        return Planned(text, None)


class Tasks:
    """What the suites ask of a model.

    Args:
        model: to be evaluated.
    """

    def __init__(self, model: CM3):
        self.model = model

    def _ids(self, document: Document, to: Callable[..., list[int]], **options: Any) -> list[int]:
        return to(document, self.model.vocab, self.model.text_tokenizer, **options)

    def _run(self, requests: list[Request], batch: int = 64) -> list[list[int]]:
        return [ids for i in range(0, len(requests), batch) for ids in self.model.run_requests(requests[i : i + batch])]

    def write(self, prompts: Sequence[str], sampling: SamplingConfig, seed: int = 0, most: int = 96) -> list[str]:
        """The text that follows each prompt."""
        ids = [self._ids(Document((Text(prompt),)), open_ids) for prompt in prompts]
        requests = [Request(one, "text", most, sampling, seed=seed + i) for i, one in enumerate(ids)]
        return [self.model.processor.text(new) for new in self._run(requests)]

    def plan(self, requests: Sequence[str], sampling: SamplingConfig = PLANNING, seed: int = 0) -> list[Planned]:
        """The plan of each request."""
        return [
            parsed(text) for text in self.write([PLANS["draw"].format(words=one) for one in requests], sampling, seed)
        ]

    def edit(self, plans: Sequence[Plan], words: Sequence[str], sampling: SamplingConfig = GREEDY) -> list[Planned]:
        """What each instruction makes of each plan."""
        prompts = [PLANS["edit"].format(plan=plan, words=one) for plan, one in zip(plans, words, strict=True)]
        return [parsed(text) for text in self.write(prompts, sampling)]

    def draw(
        self, plans: Sequence[Plan], side: int, sampling: SamplingConfig = DRAWING, seed: int = 0
    ) -> list[torch.Tensor]:
        """Codes [h, w], as they are laid, of each plan's image: plain first, then in its colours."""
        grid = GRIDS[side]
        ids = [self._ids(Document((Text(str(plan.plain)),)), draw_ids, grid=self._named(grid)) for plan in plans]
        drawn = self._draw(ids, grid, sampling, seed)
        coloured = [i for i, plan in enumerate(plans) if plan != plan.plain]
        changed = self.change(
            [plans[i].plain for i in coloured], [plans[i] for i in coloured], [drawn[i] for i in coloured]
        )
        for i, codes in zip(coloured, changed, strict=True):
            drawn[i] = codes
        return drawn

    def change(
        self,
        before: Sequence[Plan],
        after: Sequence[Plan],
        codes: Sequence[torch.Tensor],
        sampling: SamplingConfig = DRAWING,
        seed: int = 0,
    ) -> list[torch.Tensor]:
        """Codes of each image as the second plan has it."""
        out = []
        for a, b, one in zip(before, after, codes, strict=True):
            grid = (one.shape[0], one.shape[1])
            document = Document((Text(PLANS["change"].format(before=a, after=b)), Image(one)))
            out += self._draw([self._ids(document, draw_ids, grid=self._named(grid))], grid, sampling, seed)
        return out

    def _named(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        return None if grid == self.model.grid else grid

    def _draw(
        self, ids: list[list[int]], grid: tuple[int, int], sampling: SamplingConfig, seed: int
    ) -> list[torch.Tensor]:
        requests = [Request(one, "image", grid[0] * grid[1] + 4, sampling, seed=seed + i) for i, one in enumerate(ids)]
        return [self.model.processor.codes(new, grid) for new in self._run(requests)]

    def read(self, codes: Sequence[torch.Tensor], questions: Sequence[str] = ()) -> list[list[str]]:
        """The plan of each image, and the answer to each image's question where questions are given."""
        plans = self._told([Document((Text(PLANS["read"]), Mask(), Image(one))) for one in codes])
        if not questions:
            return [[plan] for plan in plans]
        asked = [
            Document((Text(f"{PLANS['read']}{plan} {question}"), Mask(), Image(one)))
            for plan, question, one in zip(plans, questions, codes, strict=True)
        ]
        return [[plan, answer] for plan, answer in zip(plans, self._told(asked), strict=True)]

    def _told(self, documents: Sequence[Document]) -> list[str]:
        requests = [Request(self._ids(one, prompt_ids), "text", 96, GREEDY) for one in documents]
        return [self.model.processor.text(new).strip() for new in self._run(requests)]


class Truth:
    """Drawings to compare with, as images for judges and as codes for tiles.

    Args:
        data: the data set.
        codes: of the image tokenizer.
        count: concepts among which a judge chooses.
    """

    def __init__(self, data: Path, codes: Codes, count: int = 250):
        self.world, self.shelf, self.codes = World.read(data), Shelf.read(data, "train"), codes
        styles = self.shelf.styles
        able = [code for code in self.world.concepts if len(styles.get(code, ())) >= 3]
        order = np.random.default_rng(0).permutation(len(able))
        self.concepts = sorted(able[i] for i in order[:count])
        self.builder = Builder(self.world, self.shelf, codes, DocumentsConfig(), novel=True)

    def drawings(self, seed: int = 0) -> list[Drawing]:
        """One drawing of each judged concept."""
        rng, styles = np.random.default_rng(seed), self.shelf.styles
        return [self.shelf.drawings[code, styles[code][rng.integers(len(styles[code]))]] for code in self.concepts]

    def reference(self, judge: Judge) -> Reference:
        """All real drawings of the judged concepts, on white."""
        ones = [one for (code, _), one in self.shelf.drawings.items() if code in set(self.concepts)]
        images = [single(one, TILE) for one in ones]
        return Reference(judge.features(images), [one.code for one in ones], [one.style for one in ones])

    def tiles(self) -> tuple[torch.Tensor, list[Drawing | None]]:
        """Codes [N, 64] of every drawing as a tile, and of the empty tile, with what each shows."""
        ones: list[Drawing | None] = [*self.shelf.drawings.values(), None]
        codes = [self.codes.single(one, TILE) for one in ones]
        return torch.from_numpy(np.stack(codes).reshape(len(ones), -1)), ones


def top(rank: torch.Tensor) -> dict[str, float]:
    """Shares in percent."""
    return {"top1": percent(rank < 1), "top5": percent(rank < 5)}


def percent(holds: Any) -> float:
    values = torch.as_tensor(holds).float()
    return round(100 * float(values.mean()), 1) if values.numel() else float("nan")


def psnr(a: PIL_Image.Image, b: PIL_Image.Image) -> float:
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def ceiling(tokenizer: ImageTokenizer, data: Path, out: Path) -> dict[str, Any]:
    """Real drawings, and what the tokenizer keeps of them."""
    truth = Truth(data, Codes(tokenizer))
    drawings = truth.drawings()
    held = list(Shelf.read(data, "held_out_pairs").drawings.values())
    figures: dict[str, Any] = {}
    shown: dict[str, list[PIL_Image.Image]] = {}
    for side in (TILE, CANVAS):
        for name, ones in (("train", drawings), ("held_out_pairs", held)):
            real = [single(one, side) for one in ones]
            made = decode(tokenizer, [truth.codes.encode([image])[0] for image in real])
            figures[f"psnr {side} {name}"] = round(
                float(np.mean([psnr(a, b) for a, b in zip(real, made, strict=True)])), 2
            )
            if name == "train":
                shown |= {f"real {side}": real, f"reconstructed {side}": made}
    for name in ("lite0", "lite2"):
        judge = Judge(name)
        reference = truth.reference(judge)
        for what, images in shown.items():
            rank = ranks(
                judge.features(images), [one.code for one in drawings], [one.style for one in drawings], reference
            )
            figures[f"{name} {what}"] = top(rank)
    rows = [list(images[:: len(drawings) // 12]) for images in shown.values()]
    contact_sheet(list(shown), rows).save(out / "ceiling.png")
    return figures


def decode(tokenizer: ImageTokenizer, codes: Sequence[Any]) -> list[PIL_Image.Image]:
    return [tokenizer.decode(torch.as_tensor(one)) for one in codes]  # pyright: ignore[reportReturnType]


def drawings(model: CM3, data: Path, out: Path, count: int, forms: bool = True) -> dict[str, Any]:
    """Single drawings, judged."""
    tasks, truth = Tasks(model), Truth(data, Codes(model.image_tokenizer))
    ones = truth.drawings()[:: max(1, 250 // count)]
    judge = Judge("lite0")
    reference = truth.reference(judge)
    figures: dict[str, Any] = {}
    sheet: dict[str, list[PIL_Image.Image]] = {"real": [single(one, CANVAS) for one in ones]}

    def judged(name: str, plans: list[Plan], wanted: list[Drawing], side: int = CANVAS) -> None:
        codes = tasks.draw(plans, side)
        images = decode(model.image_tokenizer, codes)
        rank = ranks(judge.features(images), [one.code for one in wanted], [one.style for one in wanted], reference)
        own = [torch.as_tensor(truth.codes.single(one, side)) for one in wanted]
        same = [float((a == b).float().mean()) for a, b in zip(codes, own, strict=True)]
        figures[name] = {**top(rank), "memorised": percent([one >= COPY for one in same]), "count": len(wanted)}
        sheet[name] = images
        print(name, figures[name], flush=True)

    plans = [truth.builder.plan_of(one) for one in ones]
    judged("by plan, 256 px", plans, ones)
    judged("by plan, 128 px", plans, ones, TILE)
    wordings: dict[str, list[str]] = {}
    for language in LANGUAGES:
        some = [one for one in ones if language in ("en", "ar") or held_out(language, truth.builder.named(one).a)]
        wordings[language] = [truth.builder.named(one).names[language].split(", ")[0] for one in some]
        planned = tasks.plan(wordings[language])
        names = [[thing.name for thing in one.plan.things] if one.plan else [] for one in planned]
        right = [found == [truth.builder.named(one).a] for found, one in zip(names, some, strict=True)]
        figures[f"plan of {language}"] = percent(right)
        if language in ("en", "ar"):
            fallback = Plan((Thing("nothing"),))
            judged(f"by name, {language}", [p.plan or fallback for p in planned], some)
    rows = [list(images[:: max(1, len(images) // 12)][:12]) for images in sheet.values() if len(images) == len(ones)]
    contact_sheet([name for name, images in sheet.items() if len(images) == len(ones)], rows).save(out / "drawings.png")
    return figures


def scenes(model: CM3, data: Path, out: Path, count: int) -> dict[str, Any]:
    """Scenes from plans with held-out pairs: things right by their tiles."""
    tasks, truth = Tasks(model), Truth(data, Codes(model.image_tokenizer))
    known, what = truth.tiles()
    rng = np.random.default_rng(7)
    plans = [truth.builder.scene(rng) for _ in range(count)]
    plans = [plan for plan in plans if not any('"' in thing.name for thing in plan.things)]
    drawn = tasks.draw(plans, CANVAS)
    right, whole, style, blank = [], [], [], []
    for plan, codes in zip(plans, drawn, strict=True):
        wanted = {thing.place: thing.name for thing in plan.things}
        good = True
        for place, tile in zip(PLACES, codes.reshape(4, -1), strict=True):
            found = what[int((known == tile).float().mean(1).argmax())]
            name = truth.builder.named(found).a if found else ""
            good &= name == wanted.get(place, "")
            if place in wanted:
                right.append(name == wanted[place])
                blank.append(found is None)
                style.append(bool(found and found.style == plan.style))
        whole.append(good)
    images = decode(model.image_tokenizer, drawn[:12])
    contact_sheet([str(plan)[:60] for plan in plans[:12]], [[image] for image in images]).save(out / "scenes.png")
    return {
        "things": percent(right),
        "whole": percent(whole),
        "style": percent(style),
        "blank": percent(blank),
        "count": len(plans),
    }


def plans(model: CM3, data: Path, out: Path, count: int) -> dict[str, Any]:
    """Requests to plans, as text: every thing, count, paint and ground that was asked for, and nothing else."""
    tasks, world = Tasks(model), World.read(data)
    shelf = Shelf.read(data, "train")
    figures: dict[str, Any] = {}
    for novel in (False, True):
        planner = Planner(world, shelf.styles, novel=novel)
        for form in FORMS:
            rng = np.random.default_rng(11)
            asked = [planner.request(rng, form) for _ in range(count)]
            got = tasks.plan([one.words for one in asked])
            figures[f"{form}{', novel' if novel else ''}"] = percent(
                [bool(p.plan) and _content(p.plan) == _content(one.plan) for p, one in zip(got, asked, strict=True)]
            )
    editor = Builder(world, shelf, None, DocumentsConfig(), novel=True)
    by_kind: dict[str, list[bool]] = defaultdict(list)
    rng = np.random.default_rng(12)
    for _ in range(count * 4):
        before = editor.scene(rng)
        if edit := editor.editor.edit(before, "en", rng):
            (got,) = tasks.edit([before], [edit.words])
            # Where something is to be added may be left open.
            same = _content(got.plan) == _content(edit.plan) if edit.kind == "add" else got.plan == edit.plan
            by_kind[edit.kind].append(same)
    figures |= {f"edit {kind}": percent(found) for kind, found in by_kind.items()}
    return figures


def _content(plan: Plan | None) -> Any:
    """What a plan shows, without what a request leaves open."""
    return plan and (sorted((thing.name, thing.paint) for thing in plan.things), plan.ground)


SUITES = {"drawings": drawings, "scenes": scenes, "plans": plans}


def main(
    suite: Annotated[str, typer.Argument(help=f"ceiling, {', '.join(SUITES)}")],
    model: Annotated[str, typer.Option(help="folder or name")] = "runs/lm/model",
    image_tokenizer: Annotated[str, typer.Option(help="for the ceiling: folder or name")] = "",
    data: Annotated[Path, typer.Option(help="of train.recipes.emoji.build_dataset")] = Path("data/emoji"),
    out: Annotated[Path, typer.Option(help="folder for tables and sheets")] = Path("runs/evaluation"),
    count: Annotated[int, typer.Option(help="of each kind")] = 100,
) -> None:
    if suite != "ceiling" and suite not in SUITES:
        raise SystemExit(f"evaluate: no suite {suite!r}; choose ceiling, {', '.join(SUITES)}")
    out.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    if suite == "ceiling":
        figures = ceiling(ImageTokenizer.from_pretrained(image_tokenizer), data, out)
    else:
        figures = SUITES[suite](CM3.from_pretrained(model), data, out, count)
    figures["seconds"] = round(time.perf_counter() - clock, 1)
    (out / f"{suite}.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    typer.run(main)
