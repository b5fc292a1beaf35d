"""Single drawings: what the image tokenizer keeps of real ones, and what a judge recognises in drawn ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PIL_Image

from cm3.pipeline import CM3
from cm3.tokens.plan import Plan, Thing
from tokenizer_image import ImageTokenizer
from train.evaluation.judge import Judge, ranks
from train.images.sheet import contact_sheet
from train.images.views import GROUNDS
from train.recipes.emoji.art import CANVAS, TILE, Drawing, single
from train.recipes.emoji.colours import main_colour
from train.recipes.emoji.requests import one_of
from train.recipes.emoji.shelf import Codes, Shelf
from train.recipes.emoji.suites.truth import COPY, DRAWING, SMALL, Asked, Truth, decode, percent, psnr, top


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


def drawings(model: CM3, data: Path, out: Path, count: int) -> dict[str, Any]:
    """Single drawings, judged."""
    asked, truth = Asked(model), Truth(data, Codes(model.image_tokenizer))
    ones = truth.drawings()[:: max(1, 250 // count)]
    judge = Judge("lite0")
    reference = truth.reference(judge)
    figures: dict[str, Any] = {}

    def ranked(images: Sequence[PIL_Image.Image], wanted: Sequence[Drawing]) -> torch.Tensor:
        codes, styles = [one.code for one in wanted], [one.style for one in wanted]
        return ranks(judge.features(list(images)), codes, styles, reference)

    sheet: dict[str, list[PIL_Image.Image]] = {"real": [single(one, CANVAS) for one in ones]}

    def judged(
        name: str,
        plans: list[Plan],
        wanted: list[Drawing],
        side: int = CANVAS,
        truth_images: Sequence[PIL_Image.Image] = (),
        colours: Sequence[str] = (),
    ) -> None:
        """Draw plans, and judge the images. truth_images: whose ranks are given beside; colours: that are wanted."""
        codes = asked.draw(plans, SMALL if side == TILE else DRAWING)
        images = decode(model.image_tokenizer, codes)
        rank = ranked(images, wanted)
        own = [torch.as_tensor(truth.codes.single(one, side)) for one in wanted]
        same = [float((a == b).float().mean()) for a, b in zip(codes, own, strict=True)]
        figures[name] = {**top(rank), "memorised": percent([one >= COPY for one in same]), "count": len(wanted)}
        if truth_images:
            figures[name]["real images"] = top(ranked(truth_images, wanted))
        if colours:
            held = torch.tensor([colour_of(image) == colour for image, colour in zip(images, colours, strict=True)])
            figures[name] |= {"colour": percent(held), "colour, and thing in top 5": percent(held & (rank < 5))}
        sheet[name] = images
        print(name, figures[name], flush=True)

    plans = [truth.builder.plan_of(one) for one in ones]
    judged("by plan, 256 px", plans, ones)
    judged("by plan, 128 px", plans, ones, TILE)
    for language in ("en", "ar"):
        names = [truth.builder.named(one).names[language].split(", ")[0] for one in ones]
        planned = [plan or Plan((Thing("nothing"),)) for plan in asked.plan(names)]
        judged(f"by name, {language}", planned, ones)
    pairs = [one for one in Shelf.read(data, "held_out_pairs").drawings.values() if one.code in set(truth.concepts)]
    judged("held-out pairs", [truth.builder.plan_of(one) for one in pairs[:count]], pairs[:count])
    rng = np.random.default_rng(15)
    grounds = [one_of(rng, *list(GROUNDS)[1:]) for _ in ones]
    placed = [truth.builder.plan_of(one, on=on) for one, on in zip(ones, grounds, strict=True)]
    judged(
        "on a background",
        placed,
        ones,
        truth_images=[single(one, CANVAS, "", on) for one, on in zip(ones, grounds, strict=True)],
    )
    paints = [truth.builder.paint(Thing(truth.builder.named(one).a), one.style, rng) for one in ones]
    painted = [(one, paint) for one, paint in zip(ones, paints, strict=True) if paint]
    judged(
        "held-out colours",
        [truth.builder.plan_of(one, paint) for one, paint in painted],
        [one for one, _ in painted],
        truth_images=[single(one, CANVAS, paint) for one, paint in painted],
        colours=[paint for _, paint in painted],
    )
    rows = [list(images[:: max(1, len(images) // 12)][:12]) for images in sheet.values() if len(images) == len(ones)]
    contact_sheet([name for name, images in sheet.items() if len(images) == len(ones)], rows).save(out / "drawings.png")
    return figures


def colour_of(image: PIL_Image.Image) -> str | None:
    """The main colour of what stands on a white background."""
    rgb = np.asarray(image.convert("RGB"))
    shown = (rgb.min(-1) < 240).astype(np.uint8) * 255
    return main_colour(np.dstack([rgb, shown]))
