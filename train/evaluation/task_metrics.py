"""Marks for the trials of train/evaluation/task_cases.py: answers, edits, boxes, maps, signs, holes.

Images are [S, S, 3] uint8 with S pixels a side, cells and codes [h, w].
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image
from torch import Tensor

from tokenizer_image import ImageTokenizer
from train.emoji.colours import lab
from train.evaluation.concepts import plain
from train.evaluation.judge import Judge, Reference, ranks
from train.evaluation.task_cases import WRONG, EditCase, HoleCase, ImageQuestion, pooled, wrong_scenes
from train.images.loader import to_pixels
from train.images.views import GROUNDS
from train.scenes.scene import SEEN, Box, Placed, Scene, Thing, differs, render, touched_cells
from train.scenes.signs import BOARDS, board_rows, sign

LOOKS = 2  # of each drawing, that a thing in a box is compared with

APART = 14.0  # Lab distance from the ground at which something stands there
REACH = 1 / 32  # of an image's side, by which a drawing may be off


def distances(drawn: np.ndarray, candidates: Sequence[np.ndarray]) -> np.ndarray:  # [S, S, 3] each -> [N]
    """Mean Lab distance of the drawn image, which may be shifted by REACH, from each candidate, where the
    candidates differ from each other."""
    stack = np.stack(candidates).astype(int)
    size = len(drawn)
    reach = max(1, round(REACH * size))
    inner, shifts = slice(reach, -reach), (0, -reach, reach)
    where = ((stack.max(0) - stack.min(0)).max(-1) > SEEN)[inner, inner]
    wanted = [lab(image[inner, inner][where] / 255) for image in stack]  # [P, 3] each
    own = lab(drawn / 255)
    best = np.full(len(wanted), np.inf)
    for down, right in product(shifts, shifts):
        moved = own[reach + down : size - reach + down, reach + right : size - reach + right][where]
        best = np.minimum(best, [np.abs(moved - one).mean() if len(one) else 0.0 for one in wanted])
    return best


def rank(drawn: np.ndarray, truth: np.ndarray, others: Sequence[np.ndarray]) -> int:
    """How many of the others the drawn image is nearer to than to the truth."""
    own, *rest = distances(drawn, [truth, *others])
    return int((np.array(rest) < own).sum())


def unlike(truth: np.ndarray, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Those of the images that look neither like the truth nor like one before them."""
    kept: list[np.ndarray] = []
    for image in images:
        if all(differs(image, other).any() for other in (truth, *kept)):
            kept.append(image)
    return kept


def foreground(image: np.ndarray, ground: tuple[int, int, int]) -> np.ndarray:  # -> [S, S] bool
    """What stands out from the ground."""
    return np.asarray(np.linalg.norm(lab(image / 255) - lab(np.array(ground) / 255), axis=-1) > APART)


def share_of_union(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; 1 for two empty ones."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


def box_iou(one: Box | None, other: Box) -> float:
    """Intersection over union of two boxes; 0 where there is none."""
    if one is None:
        return 0.0
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


@lru_cache
def raster(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of an image's pixels."""
    rows, columns = np.indices((size, size))
    return rows, columns


def found_boxes(standing: np.ndarray, boxes: Sequence[Box], reach: float = 0.2) -> list[Box | None]:
    """Of each box, the bounds of what stands nearest to it of all boxes, and no further than `reach` of the image's
    side from it; rows and columns with one pixel do not count.

    standing: [S, S] bool.
    """
    rows, columns = raster(len(standing))
    away = np.stack(
        [
            np.hypot(
                np.maximum(0, np.maximum(top - rows, rows - bottom + 1)),
                np.maximum(0, np.maximum(left - columns, columns - right + 1)),
            )
            for left, top, right, bottom in boxes
        ]
    )
    owner = np.where(standing & (away.min(0) <= reach * len(standing)), away.argmin(0), -1)
    out: list[Box | None] = []
    for i in range(len(boxes)):
        down, across = (np.flatnonzero((owner == i).sum(axis) > 1) for axis in (1, 0))
        found = len(down) and len(across)
        out.append((int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1) if found else None)
    return out


def hole_psnr(drawn: np.ndarray, truth: np.ndarray, holes: np.ndarray) -> float:
    """PSNR in dB over the pixels of the holes, [h, w] bool; at most 60."""
    scale = len(truth) // len(holes)
    where = np.kron(holes, np.ones((scale, scale), bool))
    error = ((drawn.astype(float) - truth)[where] ** 2).mean()
    return float(min(60.0, 10 * np.log10(255**2 / max(error, 1e-9))))


def filled_with_mean(image: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """The image with the mean colour of what is seen in its holes, or grey where nothing is."""
    scale = len(image) // len(holes)
    where = np.kron(holes, np.ones((scale, scale), bool))
    out = image.copy()
    out[where] = image[~where].mean(0).round() if not where.all() else 128
    return out


# Tasks.


def mark_answers(
    asked: Sequence[ImageQuestion], said: Sequence[str], majority: dict[str, str], names: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """question -> language -> questions, accuracy, and accuracy of the majority."""
    right: dict[tuple[str, str], list[tuple[bool, bool]]] = defaultdict(list)
    for one, text in zip(asked, said, strict=True):
        guess = majority.get(pooled(one.target.prompt, names), "")
        wanted = plain(one.target.answer)
        right[one.task, one.language].append((plain(text) == wanted, plain(guess) == wanted))
    out: dict[str, dict[str, dict[str, float]]] = {}
    for (task, language), pairs in right.items():
        seen, guessed = np.mean(pairs, 0).tolist()
        out.setdefault(task, {})[language] = {"questions": len(pairs), "accuracy": seen, "majority": guessed}
    return out


def mark_edits(
    task: str, some: Sequence[EditCase], drawn: Sequence[Tensor], images: Sequence[np.ndarray], grid: tuple[int, int]
) -> dict[str, float | None]:
    """Of edits, drawn as codes [h, w] and images.

    Returns:
        kept: share of the codes that are the source's, where the truth is the source; None where it nowhere is.
        changed: share of edits with another code somewhere else.
        right, top5: share of edits that are nearest to the truth, or among the five nearest, of the truth, the
        source and WRONG other targets.
    """
    kept, changed, order = [], [], []
    for i, (one, codes, image) in enumerate(zip(some, drawn, images, strict=True)):
        assert one.led
        before, after = one.made.images
        same = codes.numpy() == one.codes[0].reshape(grid)
        touched = touched_cells(before, after, grid)
        kept += [same[~touched].mean()] if not touched.all() else []
        changed.append(bool((~same[touched]).any()))
        stage = one.view.stage
        wrong = wrong_scenes(task, one.view.scene, one.led, stage, np.random.default_rng((1002, i)))
        other = unlike(after, [before, *(render(scene, stage.size).image for scene in wrong)])
        order.append(rank(image, after, other[: WRONG + 1]))
    ranked = np.array(order)
    return {
        "kept": float(np.mean(kept)) if kept else None,
        "changed": float(np.mean(changed)),
        "right": float((ranked < 1).mean()),
        "top5": float((ranked < 5).mean()),
    }


def alone(image: np.ndarray, ground: tuple[int, int, int]) -> Image.Image:
    """What stands out from the ground, on white."""
    return Image.fromarray(np.where(foreground(image, ground)[..., None], image, 255).astype(np.uint8))


def squared(crop: Image.Image) -> Image.Image:
    side = max(crop.size)
    out = Image.new("RGB", (side, side), "white")
    out.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    return out


def thing_reference(things: Sequence[Thing], image_tokenizer: ImageTokenizer, judge: Judge) -> Reference:
    """The things as small as they stand in scenes, four to an image, and as the image tokenizer shows them: it leaves
    of such small things little that features of the drawings themselves would know."""
    rng, size = np.random.default_rng(1006), image_tokenizer.size[0]
    order = [things[i] for _ in range(LOOKS) for i in rng.permutation(len(things))]
    crops: list[Image.Image] = []
    for start in range(0, len(order), 4):
        placed = []
        for i, thing in enumerate(order[start : start + 4]):
            side = int(rng.integers(round(0.34 * size), round(0.47 * size) + 1))
            left, top = (size // 2 * at + int(rng.integers(0, size // 2 - side + 1)) for at in (i % 2, i // 2))
            placed.append(Placed(thing, side, left, top, bool(rng.random() < 0.5)))
        shown = render(Scene(tuple(placed)), size)
        decoded = image_tokenizer.decode(image_tokenizer.encode_pixels(to_pixels([shown.image])))
        assert isinstance(decoded, list)
        image = alone(np.asarray(decoded[0]), GROUNDS["white"][2])
        crops += [squared(image.crop(shown.box(i))) for i in range(len(placed))]
    return Reference(judge.features(crops), [thing.name["en"] for thing in order], ["" for _ in order])


def mark_boxes(
    some: Sequence[EditCase], images: Sequence[np.ndarray], judge: Judge, reference: Reference
) -> dict[str, float]:
    """Share of boxes that are filled (IoU of at least a half), that hold the right thing (among the five nearest), and
    both."""
    filled, crops, wanted = [], [], []
    for one, image in zip(some, images, strict=True):
        placed = one.view.scene.placed
        boxes = [one.view.shown.box(i) for i in range(len(placed))]
        standing = foreground(image, GROUNDS[one.view.scene.ground][2])
        found = found_boxes(standing, boxes)
        filled += [box_iou(mine, box) >= 0.5 for mine, box in zip(found, boxes, strict=True)]
        things = alone(image, GROUNDS[one.view.scene.ground][2])
        crops += [squared(things.crop(box)) for box in boxes]
        wanted += [thing.thing.name["en"] for thing in placed]
    own = [" " for _ in wanted]  # a style that no drawing has: it is compared with all of them
    right = ranks(judge.features(crops), wanted, own, reference).numpy() < 5
    return {
        "boxes": len(filled),
        "iou": float(np.mean(filled)),
        "thing": float(right.mean()),
        "both": float((right & np.array(filled)).mean()),
    }


def mark_maps(some: Sequence[EditCase], images: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean IoU of what stands out from the ground with the outlines."""
    return {
        "iou": float(
            np.mean(
                [
                    share_of_union(
                        foreground(image, GROUNDS[one.view.scene.ground][2]),
                        np.asarray(one.view.shown.outlines.any(0)),
                    )
                    for one, image in zip(some, images, strict=True)
                ]
            )
        )
    }


def mark_signs(some: Sequence[EditCase], images: Sequence[np.ndarray], words: dict[str, list[str]]) -> dict[str, float]:
    """Share of signs that are nearest to their word, or have it among the five nearest, of all words of the language on
    the board whose colour they have."""
    order, size = [], len(images[0])
    known: dict[tuple[str, tuple[int, int, int], int], np.ndarray] = {}
    for one, image in zip(some, images, strict=True):
        word, step = re.findall('"(.*)"', one.made.words)[0], one.view.scene.step
        top, bottom = board_rows(size, step)
        rim = np.concatenate([image[row, size // 12 : -size // 12] for row in (top + 3, bottom - 3)])
        middle = np.median(rim, 0)
        board = min(BOARDS, key=lambda colour: float(np.abs(middle - colour).sum()))
        for other in words[one.view.language]:
            if (other, board, step) not in known:
                known[other, board, step] = sign(other, board, size, step)
        others = [known[other, board, step] for other in words[one.view.language] if other != word]
        order.append(rank(image, known[word, board, step], others))
    ranked = np.array(order)
    return {"top1": float((ranked < 1).mean()), "top5": float((ranked < 5).mean())}


def mark_holes(
    some: Sequence[HoleCase], images: Sequence[np.ndarray], judge: Judge, reference: Reference
) -> dict[str, float]:
    """Mean PSNR inside the holes, in dB, and the judge's top-5."""
    psnr = [hole_psnr(image, one.image, one.holes.numpy()) for one, image in zip(some, images, strict=True)]
    shown = [Image.fromarray(image) for image in images]
    rank = ranks(judge.features(shown), [one.thing.code for one in some], [one.thing.style for one in some], reference)
    return {"psnr": float(np.mean(psnr)), "top5": float((rank < 5).float().mean())}
