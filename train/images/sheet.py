"""Contact sheets: rows of images, each with a label."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

LABEL = 220  # width of the labels in pixels


def contact_sheet(labels: Sequence[str], rows: Sequence[Sequence[Image.Image]], scale: int = 1) -> Image.Image:
    """Draw a contact sheet.

    Args:
        labels: one for each row.
        rows: images, all of the same size.
        scale: whole factor by which they are enlarged.
    """
    assert len(labels) == len(rows) and rows, f"{len(labels)} labels for {len(rows)} rows"
    width, height = (side * scale for side in rows[0][0].size)
    font = ImageFont.load_default(size=13)
    sheet = Image.new("RGB", (LABEL + (width + 2) * max(map(len, rows)), (height + 2) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, row) in enumerate(zip(labels, rows, strict=True)):
        top = i * (height + 2)
        draw.multiline_text((4, top + height // 2 - 14), _wrap(label, 30), "black", font)
        for j, image in enumerate(row):
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (LABEL + j * (width + 2), top))
    return sheet


def _wrap(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:3])
