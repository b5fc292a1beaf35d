"""Measure a tuned model on the tasks of instruction tuning, against the exact truth of scenes it has not seen.

    python -m train.evaluate_tasks --model runs/instruct/model --data data/emoji --out runs/evaluation-tasks

Splits: "compositional" shows combinations that no training scene has (train/scenes/scene.py); "held-out pair" has
in each scene a drawing of the data set's unseen_cell split; "familiar" is like training with another seed
(--aligned, where its scenes were). OUT receives evaluation.json, evaluation.md (the tables) and examples.png.
Everything is seeded: the same model gives the same figures. Images are generated with the pipeline's defaults, text is
greedy.
"""

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image as PIL_Image
from rich.progress import track
from torch import Tensor

from cm3.engine.guidance import ClassifierFree
from cm3.engine.options import GREEDY, MAX_SCALE, EditOptions, InfillOptions, option
from cm3.engine.request import Request
from cm3.pipeline import CM3
from cm3.tokens.document import HOLE, Document, Image, Text
from cm3.tokens.templates import LANGUAGES
from train.evaluation.judge import Judge, Reference
from train.evaluation.report import MAPS, task_table
from train.evaluation.task_cases import (
    SPLITS,
    EditCase,
    HoleCase,
    ImageQuestion,
    examples,
    holed,
    majority_scene_answers,
    questions,
    sign_questions,
    studio_of,
)
from train.evaluation.task_metrics import (
    filled_with_mean,
    mark_answers,
    mark_boxes,
    mark_edits,
    mark_holes,
    mark_maps,
    mark_signs,
    thing_reference,
)
from train.images.codes import decode
from train.images.loader import to_pixels
from train.images.sheet import contact_sheet
from train.images.views import PLAIN, place
from train.scenes.scene import THINGS, Thing
from train.scenes.signs import sign_words
from train.scenes.studio import Studio, read_things
from train.scenes.tasks import EDITS

JUDGED = 100  # concepts that a filled image is told apart from
TRUTH = "truth through the image tokenizer"


@dataclass(frozen=True, kw_only=True)
class TaskOptions(EditOptions):
    """Options of every image: of edits, and of drawings from boxes, maps and words."""

    guidance: float = option(1.0, "Guidance scale of drawings.", least=0, most=MAX_SCALE)


def grids(model: CM3, codes: Sequence[np.ndarray]) -> list[Tensor]:
    return [torch.as_tensor(one).view(model.grid) for one in codes]


def images_of(model: CM3, codes: Sequence[Tensor]) -> list[np.ndarray]:
    """[S, S, 3] of each [h, w]."""
    return [np.asarray(image) for image in decode(model.image_tokenizer, torch.stack(list(codes)))]


def requests_of(model: CM3, some: Sequence[EditCase], options: TaskOptions) -> list[Request]:
    """What is asked of the engine for the last image of each example."""
    out = []
    for i, one in enumerate(some):
        document = Document((Text(one.made.words), *map(Image, grids(model, one.codes[:-1]))))
        if one.made.kept:
            out.append(model.prompts.edited(document, options, i))
        else:
            guide = ClassifierFree(image=options.guidance)
            out.append(model.prompts.image(document, [model.prompts.nothing], guide, options.sampling, i))
    return out


def tell(model: CM3, asked: Sequence[ImageQuestion]) -> list[str]:
    """The model's greedy answers."""
    codes = model.image_tokenizer.encode_pixels(to_pixels([one.image for one in asked]))  # [N, h, w]
    requests = [
        model.prompts.text(one.target.prompt, Image(image.cpu()), GREEDY, 0)
        for one, image in zip(asked, codes, strict=True)
    ]
    return model.texts(requests)


def fill(model: CM3, some: Sequence[HoleCase], options: TaskOptions) -> dict[str, list[np.ndarray]]:
    """The images with their holes filled, in every way."""
    told, untold, forth = [], [], []
    for i, one in enumerate(some):
        image, sampling = Image(one.codes.masked_fill(one.holes, HOLE)), options.sampling
        words, guide = Text(one.words), ClassifierFree(image=InfillOptions.guidance)
        told.append(model.prompts.hole(Document((words, image)), InfillOptions.guidance, sampling, i))
        untold.append(model.prompts.hole(Document((image,)), InfillOptions.guidance, sampling, i))
        given = list(told[-1].given or [])
        forth.append(model.prompts.image(Document((words,)), [model.prompts.nothing], guide, sampling, i, given))
    ways = {"filled": told, "filled without words": untold, "left to right": forth}
    out = {name: images_of(model, model.draw_codes(requests)) for name, requests in ways.items()}
    out["mean colour"] = [filled_with_mean(one.image, one.holes.numpy()) for one in some]
    out["image through the image tokenizer"] = images_of(model, [one.codes for one in some])
    return out


def holes(
    model: CM3, seen: list[Thing], unseen: list[Thing], judge: Judge, sample: int, options: TaskOptions
) -> dict[str, Any]:
    """Infilling of drawings in new views, and of drawings that training lacks."""
    styles: dict[str, set[str]] = defaultdict(set)
    for thing in seen:
        styles[thing.code].add(thing.style)
    many = sorted(code for code, of in styles.items() if len(of) > 1)
    new = [thing for thing in unseen if thing.code in many]
    first = sorted({thing.code for thing in new})
    rest = [many[i] for i in np.random.default_rng(1004).permutation(len(many)) if many[i] not in first]
    chosen = set([*first, *rest][:JUDGED])
    known = [thing for thing in seen if thing.code in chosen]
    size = model.image_tokenizer.size[0]
    out: dict[str, Any] = {"concepts": len(chosen)}
    plainly = [PIL_Image.fromarray(place(thing.drawing.convert("RGBa"), PLAIN, size)) for thing in known]
    reference = Reference(judge.features(plainly), [thing.code for thing in known], [thing.style for thing in known])
    for split, things in (("unseen view", known), ("held-out pair", [thing for thing in new if thing.code in chosen])):
        if some := holed(model.image_tokenizer, things, sample):
            ways = fill(model, some, options)
            figures = {name: mark_holes(some, shown, judge, reference) for name, shown in ways.items()}
            out[split] = {"images": len(some), **figures}
    return out


class TaskBench(NamedTuple):
    """What every split is measured with."""

    model: CM3
    judge: Judge
    names: list[str]
    things: Reference
    words: dict[str, list[str]]
    majority: dict[str, str]
    options: TaskOptions


def measure(bench: TaskBench, split: str, studio: Studio, sample: int) -> tuple[dict[str, Any], list[list[Any]]]:
    """The figures of a split, and rows of (label, images) to look at."""
    model, grid = bench.model, bench.model.grid
    asked = questions(studio, sample)
    if split != "held-out pair":  # signs show no drawings
        asked += sign_questions(studio, sample)
    out: dict[str, Any] = {"answers": mark_answers(asked, tell(model, asked), bench.majority, bench.names)}
    rows: list[list[Any]] = []
    drawing = (*EDITS, "grounded", *MAPS, *(["write sign"] if split != "held-out pair" else []))
    for task in track(drawing, split):
        some = examples(model.image_tokenizer, studio, task, sample)
        ways = {
            "generated": model.draw_codes(requests_of(model, some, bench.options)),
            TRUTH: grids(model, [one.codes[-1] for one in some]),
        }
        if task in EDITS:
            ways["source unchanged"] = grids(model, [one.codes[0] for one in some])
        shown = {name: images_of(model, codes) for name, codes in ways.items()}
        figures: dict[str, Any] = {}
        for name, images in shown.items():
            if task in EDITS:
                figures[name] = mark_edits(task, some, ways[name], images, grid)
            elif task == "grounded":
                figures[name] = mark_boxes(some, images, bench.judge, bench.things)
            elif task == "write sign":
                figures[name] = mark_signs(some, images, bench.words)
            else:
                figures[name] = mark_maps(some, images)
        out[task] = {"documents": len(some), **figures}
        for one, image in [*zip(some, shown["generated"], strict=True)][:4]:
            label = f"{split}: {one.made.words}" if one.view.language == "en" else f"{split}: {task} (ar)"
            rows.append([label, *one.made.images[:-1], image, one.made.images[-1]])
    return out, rows


def evaluate(
    model: CM3,
    data: Path,
    out: Path,
    sample: int = 200,
    splits: Sequence[str] = SPLITS[:2],
    options: TaskOptions = TaskOptions(),
    names: Sequence[str] = THINGS,
    aligned: bool = False,
    quarters: bool = False,
) -> dict[str, Any]:
    """Everything above. Returns what evaluation.json holds. Raises ValueError for an unknown split, or a data set
    without the things of scenes."""
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"there is no split {unknown[0]!r}: choose among {', '.join(SPLITS)}")
    out.mkdir(parents=True, exist_ok=True)
    started, size = time.time(), model.image_tokenizer.size[0]
    aligned = aligned or quarters
    seen, unseen = read_things(data, "train"), read_things(data, "unseen_cell")
    known = {thing.code for thing in seen}
    unseen = [thing for thing in unseen if thing.code in known]
    judge, things = Judge(), [thing for thing in (*seen, *unseen) if thing.name["en"] in names]
    called = sorted({name for thing in things for name in thing.name.values()})
    words = {
        language: sorted({*sign_words(seen, language, False), *sign_words(seen, language, True)})
        for language in LANGUAGES
    }
    studios = {
        split: studio_of(split, seen, unseen, size, names, float(aligned), model.grid[0], float(quarters))
        for split in dict.fromkeys(("familiar", *splits))
    }
    majority = majority_scene_answers(studios["familiar"], called)
    bench = TaskBench(
        model, judge, called, thing_reference(things, model.image_tokenizer, judge), words, majority, options
    )
    result: dict[str, Any] = {
        "sample": sample,
        "aligned": aligned,
        "quarters": quarters,
        "decoding": asdict(options) | {"hole": InfillOptions.guidance},
        "splits": {},
        "objects": len({thing.code for thing in things}),
        "held-out images of objects": sum(thing.name["en"] in names for thing in unseen),
    }
    rows: list[list[Any]] = []
    for split in splits:
        result["splits"][split], more = measure(bench, split, studios[split], sample)
        rows += more
    result["holes"] = holes(model, seen, unseen, judge, sample, options)
    result["seconds"] = round(time.time() - started, 1)
    (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "evaluation.md").write_text(task_table(result), encoding="utf-8")
    sheet = contact_sheet([str(label) for label, *_ in rows], [[*map(PIL_Image.fromarray, row)] for _, *row in rows])
    sheet.save(out / "examples.png")
    return result


def main(
    model: Annotated[str, typer.Option(help="folder or name")] = "emoji",
    data: Annotated[Path, typer.Option(help="folder of the data set")] = Path("data/emoji"),
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("runs/evaluation-tasks"),
    sample: Annotated[int, typer.Option(help="documents of each task, at most")] = 200,
    split: Annotated[list[str] | None, typer.Option(help="of compositional, held-out pair, familiar")] = None,
    image_guidance: Annotated[float, typer.Option(help="of edits")] = TaskOptions.image_guidance,
    text_guidance: Annotated[float, typer.Option(help="of edits")] = TaskOptions.text_guidance,
    keep: Annotated[float, typer.Option(help="of edits")] = TaskOptions.keep,
    guidance: Annotated[float, typer.Option(help="of drawings from boxes, maps and words")] = TaskOptions.guidance,
    temperature: Annotated[float, typer.Option(help="of every image")] = TaskOptions.temperature,
    top_p: Annotated[float, typer.Option(help="of every image")] = TaskOptions.top_p,
    aligned: Annotated[bool, typer.Option(help="scenes whose things are aligned with the cells of codes")] = False,
    quarters: Annotated[bool, typer.Option(help="those that stand in the corners of the image's quarters")] = False,
) -> None:
    options = TaskOptions(
        guidance=guidance,
        image_guidance=image_guidance,
        text_guidance=text_guidance,
        keep=keep,
        temperature=temperature,
        top_p=top_p,
    )
    try:
        loaded, splits = CM3.from_pretrained(model), split or SPLITS[:2]
        result = evaluate(loaded, data, out, sample, splits, options, aligned=aligned, quarters=quarters)
    except (OSError, ValueError) as error:
        raise SystemExit(f"evaluate_tasks: {error}") from None
    print(task_table(result))


if __name__ == "__main__":
    typer.run(main)
