"""Images that visitors send: they come from the folder of uploads and are small enough before they are decoded,
whatever a request says.

gradio checks the path of a file only where the request calls it one; what a request says here is believed nowhere.
"""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import gradio as gr
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorData, EditorDataBlobs, EditorValue
from gradio.data_classes import FileData, ImageData
from gradio.exceptions import InvalidPathError
from gradio.utils import get_upload_folder
from PIL import Image

from tokenizer_image.pixels import MAX_PIXELS, open_image

MAX_LAYERS = 8
MAX_BYTES = 20_000_000  # of an upload
MAX_PAINTINGS = 32  # that were sent and are not yet asked about
NOT_UPLOADED = "This image was not uploaded here: upload it, or click a drawing."
UNREADABLE = "This request cannot be read: use the fields as the page shows them."

log = logging.getLogger("demo")


def uploaded(path: str | None) -> Path:
    """The file, which lies in the folder of uploads. Errors: gr.Error, which names no path."""
    folder = Path(get_upload_folder()).resolve()
    try:
        file = Path(path or "").resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, links that go round
        file = folder
    if folder not in file.parents or not file.is_file():
        raise gr.Error(NOT_UPLOADED, print_exception=False)
    return file


def opened(source: Path | bytes | None) -> Image.Image:
    """The image, with its transparency. Errors: gr.Error, which names no path."""
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        return open_image(data, MAX_PIXELS, ground=None)  # pyright: ignore[reportArgumentType]  # None is refused there
    except (OSError, ValueError, TypeError) as error:
        said = str(error).removesuffix(", or raise max_pixels")  # which a visitor cannot
        raise gr.Error(said, print_exception=False) from error


class Page(gr.Blocks):
    """Blocks that tell in one line what is wrong with a request; the log has its kind, and nothing that was sent."""

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> list[Any]:
        """What the page's functions get. Errors: gr.Error for whatever a request may have wrong."""
        try:
            return await super().preprocess_data(*args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            log.info("refused: %s", type(error).__name__)
            told = NOT_UPLOADED if isinstance(error, InvalidPathError) else UNREADABLE
            raise gr.Error(told, print_exception=False) from None


class UploadedImage(gr.Image):
    """An image that a visitor chose, as a PIL image."""

    def get_block_name(self) -> str:
        return "image"  # the page draws it as gradio's own

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        """Nothing is fetched from elsewhere for a visitor, and nothing is copied."""
        return str(uploaded(url_or_file_path))

    def preprocess(self, payload: ImageData | None) -> Image.Image | None:
        return None if payload is None else opened(uploaded(payload.path))


class UploadedFiles(gr.File):
    """Files that a visitor chose, as paths in the folder of uploads."""

    def get_block_name(self) -> str:
        return "file"

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        return str(uploaded(url_or_file_path))


class PaintedImage(gr.ImageMask):
    """An image and what a visitor painted on it: {"background": image, "layers": [paint ...], "composite": None}."""

    def get_block_name(self) -> str:
        return "imageeditor"

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        return str(uploaded(url_or_file_path))

    @server
    def accept_blobs(self, data: AcceptBlobs) -> None:
        """The page sends the parts of a painting one by one: here no more and no larger ones than it needs."""
        index = str(data.data["index"] or 0)
        if index != "null" and not (index.isdecimal() and int(index) < MAX_LAYERS):
            raise gr.Error(f"at most {MAX_LAYERS} layers of paint", print_exception=False)
        if any(len(file) > MAX_BYTES for _, file in data.files):
            raise gr.Error(f"an image may have {MAX_BYTES:,} bytes", print_exception=False)
        while len(self.blob_storage) >= MAX_PAINTINGS:
            self.blob_storage.pop(next(iter(self.blob_storage)))
        super().accept_blobs(data)

    def preprocess(self, payload: EditorData | None) -> EditorValue | None:
        if payload is None:
            return None
        sent: EditorData | EditorDataBlobs | None = payload
        if payload.id is not None:
            sent = self.blob_storage.pop(payload.id, None)
        if sent is None:
            return None
        layers = sent.layers or []
        if len(layers) > MAX_LAYERS:
            raise gr.Error(f"{len(layers)} layers of paint: at most {MAX_LAYERS}", print_exception=False)
        images = [None if part is None else self.part(part) for part in (sent.background, *layers)]
        painted = {"background": images[0], "layers": [p for p in images[1:] if p is not None], "composite": None}
        return cast(EditorValue, painted)

    def part(self, part: FileData | bytes) -> Image.Image:
        image = opened(part if isinstance(part, bytes | bytearray) else uploaded(part.path))
        return image.convert("RGBA")


with suppress(OSError):  # gradio writes one for each component, and type checkers would read it in place of this file
    Path(__file__).with_suffix(".pyi").unlink(missing_ok=True)
