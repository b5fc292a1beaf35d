"""Single drawings: what the image tokenizer keeps of real ones, and what a judge recognises in drawn ones."""

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
from train.recipes.emoji.art import CANVAS, TILE, Drawing, single
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
    sheet: dict[str, list[PIL_Image.Image]] = {"real": [single(one, CANVAS) for one in ones]}

    def judged(name: str, plans: list[Plan], wanted: list[Drawing], side: int = CANVAS) -> None:
        codes = asked.draw(plans, SMALL if side == TILE else DRAWING)
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
    for language in ("en", "ar"):
        names = [truth.builder.named(one).names[language].split(", ")[0] for one in ones]
        planned = [plan or Plan((Thing("nothing"),)) for plan in asked.plan(names)]
        judged(f"by name, {language}", planned, ones)
    rows = [list(images[:: max(1, len(images) // 12)][:12]) for images in sheet.values() if len(images) == len(ones)]
    contact_sheet([name for name, images in sheet.items() if len(images) == len(ones)], rows).save(out / "drawings.png")
    return figures
