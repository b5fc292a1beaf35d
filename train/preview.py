"""Draw a page of random documents from token shards, to check the data before training.

    python -m train.preview data/mine --out page.png [--documents 24] [--seed 0] [--image-tokenizer emoji]

page.txt, beside it, has the full text of each document with its answers in [[...]], its number of tokens, and its
source.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw, ImageFont

from cm3.tokens.document import Answer, Document, Mask, Text
from cm3.tokens.document import Image as ImageItem
from cm3.tokens.encoding import from_ids
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.documents.shards import Shards, StoredDocument

COLUMN, GAP, SIZE = 288, 16, 13  # pixels: width of a column, gap between cards, font size
WORDS = 60  # largest number of words of a text on the page
INK, ANSWER, FAINT = (30, 30, 34), (20, 90, 200), (130, 130, 138)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Shown(NamedTuple):
    """A document on the page.

    Attributes:
        number: of the document in its split.
        tokens: number of its tokens.
        items: its content.
        sample: row of the manifest of its sample.
    """

    number: int
    tokens: int
    items: Document
    sample: dict[str, Any]


def read(stored: StoredDocument, vocab: Vocab, text: TextTokenizer, grid: tuple[int, int]) -> Document:
    """Decode a document.

    Raises:
        ValueError: its ids are no document, such as an image that is not complete.
    """
    try:
        return from_ids(stored.ids, vocab, text, grid, stored.spans)
    except ValueError as error:
        raise ValueError(f"{error}: prepare the shards anew") from error


def pick(shards: Shards, count: int, seed: int) -> list[Shown]:
    """Return random documents, in the order of the shards."""
    vocab, text, (rows, columns) = shards.vocab(), shards.text_tokenizer(), shards.meta["vocab"]["image_grid"]
    whole = np.flatnonzero(shards.lengths)
    chosen = np.sort(np.random.default_rng(seed).permutation(whole)[:count]).tolist()
    return [
        Shown(
            number,
            int(shards.lengths[number]),
            read(shards.document(number), vocab, text, (rows, columns)),
            shards.sample(number),
        )
        for number in chosen
    ]


def as_text(shown: Sequence[Shown], split: str) -> str:
    """Return the documents as text, with answers in [[...]] and images as <image h x w>."""
    out = []
    for document in shown:
        parts = [
            f"[[{item.text}]]"
            if isinstance(item, Answer)
            else item.text
            if isinstance(item, Text)
            else f"<image {item.grid[0]} x {item.grid[1]}>"
            for item in document.items
            if not isinstance(item, Mask)
        ]
        out += [
            f"{split} {document.number}: {document.tokens} tokens",
            "".join(parts),
            json.dumps(document.sample, ensure_ascii=False),
            "",
        ]
    return "\n".join(out)


def page(shown: Sequence[Shown], image: ImageTokenizer, columns: int = 4) -> Image.Image:
    """Draw each document on a card, with images and text in order. Each card goes to the shortest column."""
    codes = [item.codes for document in shown for item in document.items if isinstance(item, ImageItem)]
    decoded = image.decode(torch.stack(codes)) if codes else []
    images = iter(decoded if isinstance(decoded, list) else [decoded])
    cards = [
        _card(document, [next(images) for item in document.items if isinstance(item, ImageItem)]) for document in shown
    ]
    heights = [GAP] * min(columns, len(cards))
    places = []
    for card in cards:
        column = heights.index(min(heights))
        places.append((GAP + column * (COLUMN + GAP), heights[column]))
        heights[column] += card.height + GAP
    sheet = Image.new("RGB", (GAP + len(heights) * (COLUMN + GAP), max(heights)), (236, 236, 240))
    for card, place in zip(cards, places, strict=True):
        sheet.paste(card, place)
    return sheet


def _card(document: Shown, images: list[Image.Image]) -> Image.Image:
    """Draw the card of a document on a sheet that is tall enough, and crop it."""
    inside, pad, shown = COLUMN - 20, 10, iter(images)
    said = [item.text for item in document.items if isinstance(item, Text)]
    words = sum(min(WORDS, len(text.split())) + len(text) // 20 for text in said)
    card = Image.new("RGB", (COLUMN, 200 + (inside + pad) * len(images) + 24 * words), "white")
    draw, font, y = ImageDraw.Draw(card), load_font(SIZE), pad
    texts: list[Text] = []
    for item in [*document.items, None]:
        if isinstance(item, Text):
            texts.append(item)
            continue
        y = _flow(draw, texts, font, y, pad, inside)
        texts = []
        if item:
            image = next(shown)
            scale = max(1, inside // image.width)
            side = (
                (image.width * scale, image.height * scale)
                if image.width <= inside
                else (inside, image.height * inside // image.width)
            )
            kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            card.paste(image.resize(side, kind), (pad + (inside - side[0]) // 2, y))
            y += side[1] + 6
    sample = document.sample
    note = [
        str(document.number),
        f"{document.tokens} tokens",
        *(str(sample[key]) for key in ("name", "licence") if sample.get(key)),
    ]
    y = _flow(draw, [Text(" · ".join(note))], load_font(SIZE - 3), y + 2, pad, inside, FAINT)
    return card.crop((0, 0, COLUMN, y + pad - 4))


def _flow(
    draw: ImageDraw.ImageDraw,
    texts: list[Text],
    font: Font,
    y: int,
    left: int,
    width: int,
    ink: tuple[int, int, int] = INK,
) -> int:
    """Draw consecutive texts with line breaks; from right to left if the first letter is Arabic.

    Args:
        draw: on the card.
        texts: of which answers have a colour of their own.
        font: of all texts.
        y: top of the first line.
        left: left edge of the lines.
        width: of the lines.
        ink: colour of texts that are not answers.

    Returns:
        The top of the next line.
    """
    words = [(word, ANSWER if isinstance(one, Answer) else ink) for one in texts for word in one.text.split()[:WORDS]]
    if any(len(one.text.split()) > WORDS for one in texts):
        words.append(("…", ink))
    if not words:
        return y
    leftwards = any("\u0590" <= letter <= "\u08ff" for letter in words[0][0])
    space, height, x = font.getlength(" "), int(font.getbbox("Ágن")[3] * 1.25), 0.0
    for word, colour in words:
        for part in _fitting(word, font, width):
            length = font.getlength(part)
            if x and x + length > width:
                x, y = 0.0, y + height
            draw.text((left + (width - x - length if leftwards else x), y), part, colour, font)
            x += length + space
    return y + height + 4


def _fitting(word: str, font: Font, width: int) -> list[str]:
    """Return a word, split into parts if it is wider than a line."""
    if font.getlength(word[:200]) <= width and len(word) <= 200:
        return [word]
    size = max(1, int(width / max(font.getlength(word[:50]) / len(word[:50]), 1)) - 1)
    return [word[i : i + size] for i in range(0, min(len(word), 4 * size), size)]


def load_font(size: int) -> Font:
    """Return DejaVu, which has Arabic letters, if matplotlib is installed; else PIL's own font."""
    try:
        from matplotlib import get_data_path
    except ImportError:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def main(
    folder: Annotated[Path, typer.Argument(help="token shards")],
    out: Annotated[Path, typer.Option(help="PNG file; the text is written beside it, as .txt")] = Path("page.png"),
    documents: Annotated[int, typer.Option(min=1, max=400, help="number of documents")] = 24,
    seed: Annotated[int, typer.Option(help="of the random choice")] = 0,
    image_tokenizer: Annotated[str, typer.Option(help="folder or name; default: the one that made the shards")] = "",
    split: Annotated[str, typer.Option(help="train or held_out")] = "train",
) -> None:
    try:
        shards = Shards(folder, split)
        image = shards.image_tokenizer(image_tokenizer)
        shown = pick(shards, documents, seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        page(shown, image).save(out, "PNG")
        out.with_suffix(".txt").write_text(as_text(shown, split), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SystemExit(f"preview: {error}") from None
    for name, reason in shards.bad.items():
        print(f"left out {name}: {reason}")
    print(f"{len(shown)} of {len(shards)} documents in {out} and {out.with_suffix('.txt')}")


if __name__ == "__main__":
    typer.run(main)
