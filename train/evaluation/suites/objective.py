"""Compare runs of train.lm with other shares of the objective's forms: generation, captioning, inpainting.

    python -m train.evaluate objective runs/objective/mixed-800-0 runs/objective/CM3-800-0 --out figures.json

The runs must have the same seed and the same shards (of train.tokenize_emoji). They are compared on views on which none
of them was trained, of concepts on which they were ("view"), and on held-out concept-style pairs ("pair"). Images are
inpainted after the text, in each way that a run was trained on:

    left    text <break> <image> codes; those of the hole are generated without the codes after them
    cm3     text <break> <image> codes and <mask:k> </image> <infill:0> codes <infill:1> codes, a span for each row of
            the hole
    holes   text <break> <image> codes and <mask:0> </image> <image> codes
"""

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from cm3.engine.guidance import ClassifierFree
from cm3.engine.options import GREEDY, SamplingConfig
from cm3.engine.request import Request
from cm3.pipeline import CM3
from cm3.tokens.document import HOLE, Document, Image, Mask, Span, Text
from cm3.tokens.encoding import completion_ids, encode, from_ids, image_spans, open_ids, prompt_ids
from cm3.tokens.masking import rotate
from cm3.tokens.templates import TEMPLATES
from tokenizer_image.pixels import to_pil
from train.documents.shards import Shards
from train.evaluation.concepts import plain
from train.evaluation.judge import Judge, Reference, ranks
from train.images.metrics import psnr
from train.language.config import LMConfig
from train.language.objective import Objective
from train.language.packing import PackedSequences
from train.runtime import config as configs

KINDS = {"3 of 8 rows": (slice(2, 5), slice(0, 8)), "4 x 4 square": (slice(2, 6), slice(2, 6))}  # of holes
PER_VIEW = 4  # consecutive documents of a view: two captions, two with questions
SAMPLING = SamplingConfig(temperature=0.8, top_p=0.9)
MAX_CAPTION = 16  # ids of a caption
BATCH = 64


class CaptionedView(NamedTuple):
    """A held-out image with its caption.

    Attributes:
        words: the caption.
        image: the codes.
        name: of the concept, by language.
        concept: that the image shows.
        style: of the image.
    """

    words: Text
    image: Image
    name: dict[str, str]
    concept: str
    style: str


class Gaps(NamedTuple):
    """A document of which some ids are predicted.

    Attributes:
        ids: of the document.
        places: indices of the ids that are predicted.
    """

    ids: list[int]
    places: list[int]


def view_of(shards: Shards, number: int, names: dict[str, Any]) -> CaptionedView:
    """Return the view whose first document, a caption, has this number."""
    facts, (rows, columns) = shards.sample(number), shards.meta["vocab"]["image_grid"]
    ids = shards.document(number).ids
    words, image = from_ids(ids, shards.vocab(), shards.text_tokenizer(), (rows, columns))
    assert isinstance(words, Text) and isinstance(image, Image)
    return CaptionedView(words, image, names[facts["code"]]["name"], facts["code"], facts["style"])


def held_out(
    config: LMConfig, documents: int, count: int
) -> tuple[dict[str, list[CaptionedView]], list[CaptionedView]]:
    """Choose the views on which runs are compared.

    Args:
        config: of one of the runs.
        documents: number of documents on which the longest run was trained; views in their packing windows are left
            out.
        count: number of concepts.

    Returns:
        The views, by group; and views without augmentation of the same concepts in all styles, for the judge.

    Raises:
        ValueError: the shards do not have PER_VIEW documents of each view.
    """
    shards, pairs = Shards(config.data.folder), Shards(config.data.folder, "held_out")
    names = json.loads((shards.folder / "concepts.json").read_text(encoding="utf-8"))
    made = shards.meta["config"]
    asked = {"draw": 2, "ask": 2, "plain": 0, "grounds": 0, "distorted": 0, "extra": 0, "draw_moved": True}
    if other := [f"{name}={made[name]}" for name, value in asked.items() if made.get(name, value) != value]:
        wanted = f"make it with {PER_VIEW} documents of each view"
        raise ValueError(f"{shards.folder} was made with {' '.join(other)}: {wanted}")
    rows = PackedSequences(
        shards, shards.vocab(), Objective(), config.data.seq_len, config.seed, config.data.packing_window
    )
    windows = range(documents // rows.window + 1)
    seen = {int(i) // PER_VIEW for window in windows for i in rows.plan(window).documents}
    images: dict[str, list[range]] = {}  # of each concept, as the first documents of their views
    size = PER_VIEW * shards.meta["config"]["views"]
    for at in range(0, len(shards), size):
        images.setdefault(shards.sample(at)["code"], []).append(range(at, at + size, PER_VIEW))
    rng, views, reference = np.random.default_rng(0), [], []
    for concept in rng.permutation(sorted(code for code, found in images.items() if len(found) >= 3)):
        unseen = [i for found in images[concept] for i in found[1:] if i // PER_VIEW not in seen]
        if unseen and len(views) < count:
            views.append(view_of(shards, unseen[rng.integers(len(unseen))], names))
            reference += [view_of(shards, found[0], names) for found in images[concept]]
    return {"view": views, "pair": [view_of(pairs, i, names) for i in range(0, len(pairs), PER_VIEW)]}, reference


def with_hole(view: CaptionedView, hole: Tensor, way: str, model: CM3) -> Gaps:
    """Return the document in which a hole [h, w] is inpainted in one of the ways."""
    v, text, inside = model.vocab, model.text_tokenizer, hole.flatten().tolist()
    source = [holed(view, hole)] if way == "holes" else []
    ids = encode(Document((view.words, *source, view.image)), v, text).ids
    start = image_spans(ids, v)[-1][0] + 1  # of the codes
    places = [start + i for i, missing in enumerate(inside) if missing]
    if way != "cm3":
        return Gaps(ids, places)
    spans: list[Span] = []
    for i in places:
        spans = [*spans[:-1], (spans[-1][0], i + 1)] if spans and spans[-1][1] == i else [*spans, (i, i + 1)]
    ids = rotate(ids, spans, v)[0]
    moved = next(i for i, id in enumerate(ids) if v.is_infill(id))
    return Gaps(ids, [i for i in range(moved, len(ids)) if v.is_code(ids[i])])


def holed(view: CaptionedView, hole: Tensor) -> Image:
    """Return the image with the codes in the hole masked."""
    return Image(view.image.codes.masked_fill(hole.bool(), HOLE))


def filled(
    model: CM3, views: list[CaptionedView], hole: Tensor, way: str, sampling: SamplingConfig = SAMPLING
) -> Tensor:  # -> [N, h, w]
    """Inpaint a hole [h, w] of each image in one of the ways, with seed i for the i-th image."""
    requests = []
    for i, view in enumerate(views):
        again = model.prompts.hole(Document((view.words, holed(view, hole))), 1.0, sampling, i)
        if way == "cm3":
            ids, places = with_hole(view, hole, way, model)
            requests.append(Request(ids[: places[0]], "document", 2 * len(places) + 2, sampling, seed=i))
        elif way == "left":
            given = list(again.given or [])
            requests.append(model.prompts.image(Document((view.words,)), [], None, sampling, i, given))
        else:
            requests.append(again)
    if way != "cm3":
        return torch.stack(model.draw_codes(requests))
    out = torch.stack([view.image.codes for view in views])
    for image, ids in zip(out, model.run_requests(requests), strict=True):
        image[hole.bool()] = torch.tensor([model.vocab.id_to_code(id) for id in ids if model.vocab.is_code(id)])
    return out


def caption_prompt(view: CaptionedView, language: str, left_to_right: bool, model: CM3) -> list[int]:
    """Return the prompt of a caption: image and question, or the question with a masked answer and the image."""
    words, v, text = Text(TEMPLATES["caption"][language]), model.vocab, model.text_tokenizer
    if left_to_right:
        return open_ids(Document((view.image, words)), v, text)
    return prompt_ids(Document((words, Mask(), view.image)), v, text)


@torch.inference_mode()
def mean_loss(model: CM3, rows: list[Gaps], codes: bool) -> float:
    """Compute the mean cross-entropy of the predicted ids, in nats.

    Args:
        model: the model.
        rows: documents.
        codes: whether the softmax is over image codes only, as in generation.
    """
    out, first = [], model.vocab.first_code if codes else 0
    for i in range(0, len(rows), BATCH):
        part = rows[i : i + BATCH]
        longest = max(len(row.ids) for row in part)
        ids = torch.tensor([row.ids + [model.vocab.pad] * (longest - len(row.ids)) for row in part])  # [B, T]
        hidden = model.model.model(input_ids=ids, use_cache=False).last_hidden_state  # [B, T, D]
        for row, states in zip(part, hidden, strict=True):
            logits = model.model.lm_head(states[torch.tensor(row.places) - 1]).float()[:, first:]  # [N, V]
            out.append(F.cross_entropy(logits, torch.tensor(row.ids)[row.places] - first, reduction="none"))
    return torch.cat(out).mean().item()


@torch.inference_mode()
def decoded(model: CM3, codes: Tensor) -> Tensor:  # [N, h, w] -> [N, 3, H, W] in [-1, 1]
    return torch.cat([model.image_tokenizer.model.decode(part) for part in codes.split(BATCH)])


class Judged:
    """The judge's top-5 accuracy on images of views, by real images of other styles.

    Args:
        model: to decode codes.
        views: what the images show.
        reference: views for comparison.
    """

    def __init__(self, model: CM3, views: list[CaptionedView], reference: list[CaptionedView]):
        self.judge, self.model, self.views = Judge(), model, views
        concepts, styles = [view.concept for view in reference], [view.style for view in reference]
        self.reference = Reference(self.features(codes_of(reference)), concepts, styles)

    def features(self, codes: Tensor) -> Tensor:  # [N, h, w] -> [N, F]
        return self.judge.features([to_pil(image) for image in decoded(self.model, codes)])

    def __call__(self, codes: Tensor) -> float:  # [N, h, w]
        concepts, styles = [view.concept for view in self.views], [view.style for view in self.views]
        return (ranks(self.features(codes), concepts, styles, self.reference) < 5).float().mean().item()


def codes_of(views: list[CaptionedView]) -> Tensor:  # -> [N, h, w]
    """Return the codes of the views."""
    return torch.stack([view.image.codes for view in views])


def drawings(model: CM3, views: list[CaptionedView], left_to_right: bool, guidance: float) -> Tensor:  # -> [N, h, w]
    """Generate an image of each view's concept and style."""
    unconditional = Document(()) if left_to_right else model.prompts.nothing  # in the form of training
    prompts = [Document((Text(f"{view.name['en']} in the {view.style} style"),)) for view in views]
    guide = ClassifierFree(image=guidance)
    requests = [model.prompts.image(one, [unconditional], guide, SAMPLING, i) for i, one in enumerate(prompts)]
    return torch.stack(model.draw_codes(requests))


def captions(model: CM3, views: list[CaptionedView], left_to_right: bool) -> dict[str, float]:
    """Return the share of captions that are the name, in English and Arabic, and the loss of the names in nats."""
    right, rows = [], []
    for language in TEMPLATES["caption"]:
        prompts = [caption_prompt(view, language, left_to_right, model) for view in views]
        said = model.run_requests([Request(prompt, "text", MAX_CAPTION, GREEDY) for prompt in prompts])
        for view, prompt, ids in zip(views, prompts, said, strict=True):
            right.append(plain(model.processor.text(ids)) == plain(view.name[language]))
            whole = [*prompt, *completion_ids(view.name[language], model.vocab, model.text_tokenizer)]
            rows.append(Gaps(whole, list(range(len(prompt), len(whole)))))
    return {"captions, nats a token": mean_loss(model, rows, False), "captions, exact": float(np.mean(right))}


def infilling(model: CM3, views: list[CaptionedView], hole: Tensor, way: str) -> dict[str, float]:
    """Return the loss of the codes in a hole [h, w] in nats, and the PSNR of inpainted images in the hole in dB.

    The PSNR is relative to the decoded images.
    """
    rows = [with_hole(view, hole, way, model) for view in views]
    pixels = [decoded(model, codes) for codes in (codes_of(views), filled(model, views, hole, way))]  # [N, 3, H, W]
    scale = pixels[0].shape[-1] // hole.shape[1]
    box = hole.repeat_interleave(scale, 0).repeat_interleave(scale, 1)  # [H, W]
    inside = psnr(*(part[..., box][..., None] for part in pixels)).mean()
    return {"nats a code": mean_loss(model, rows, True), "PSNR": inside.item()}


def measure(model: CM3, objective: Objective, groups: dict[str, list[CaptionedView]]) -> dict[str, float]:
    """Measure a run, without the judge.

    Args:
        model: of the run.
        objective: of the run; it determines the ways of inpainting.
        groups: views, by group.
    """
    ways = ["left", *(["cm3"] if objective.cm3_spans else []), *(["holes"] if objective.inpainting else [])]
    out: dict[str, float] = {}
    for group, views in groups.items():
        rows = [with_hole(view, torch.ones(model.grid), "left", model) for view in views]
        found = {"codes after words, nats": mean_loss(model, rows, True)}
        found |= captions(model, views, left_to_right=not objective.answers_masked)
        for kind, place in KINDS.items():
            hole = torch.zeros(model.grid, dtype=torch.bool)
            hole[place] = True
            for way in ways:
                made = infilling(model, views, hole, way)
                found |= {f"{kind}, {way}, {key}": value for key, value in made.items()}
        out |= {f"{group}, {key}": value for key, value in found.items()}
    return out


def read_run(folder: Path) -> tuple[LMConfig, int]:
    """Return the settings of a run, and the number of documents on which it was trained.

    Raises:
        ValueError: the folder has no finished run.
    """
    if not (folder / "model" / "config.json").is_file():
        raise ValueError(f"{folder} holds no finished run of train.lm")
    settings = configs.fill(LMConfig, json.loads((folder / "config.json").read_text()))
    lines = (folder / "log.jsonl").read_text().splitlines()
    return settings, max(json.loads(line).get("documents", 0) for line in lines)


def main(
    runs: Annotated[list[Path], typer.Argument(help="folders of finished runs")],
    out: Annotated[Path, typer.Option(help="JSON file with the results, by the runs' folders")] = Path("figures.json"),
    things: Annotated[int, typer.Option(help="number of concepts; a held-out view of each is measured")] = 120,
) -> None:
    found = [read_run(folder) for folder in runs]
    if len({(config.data.folder, config.seed, config.data.packing_window) for config, _ in found}) > 1:
        raise ValueError("the runs differ in data, seed or packing window: no view would be held out from all")
    groups, reference = held_out(found[0][0], max(documents for _, documents in found), things)
    models = [CM3.from_pretrained(folder / "model", device="cpu") for folder in runs]
    figures: dict[str, Any] = {}
    for folder, model, (config, documents) in zip(runs, models, found, strict=True):
        figures[str(folder)] = {"documents": documents, **measure(model, config.objective, groups)}
        print(folder, json.dumps(figures[str(folder)]), flush=True)
    judged = Judged(models[0], groups["view"], reference)
    ceiling = judged(codes_of(groups["view"]))
    for folder, model, (config, _) in zip(runs, models, found, strict=True):
        figures[str(folder)]["view, the images themselves, top-5"] = ceiling
        for guidance in (1, 6):
            drawn = drawings(model, groups["view"], not config.objective.answers_masked, guidance)
            figures[str(folder)][f"view, drawings, guidance {guidance}, top-5"] = judged(drawn)
    out.write_text(json.dumps(figures, indent=1) + "\n")
