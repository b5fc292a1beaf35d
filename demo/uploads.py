"""Images that visitors upload. Each must be in gradio's upload folder, and its size is checked before it is decoded.

gradio checks the path of a file only if the request marks it as a file. The components here check every path.
"""

import logging
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
MAX_PAINTINGS = 32  # received paintings that wait for their request
NOT_UPLOADED = "This image was not uploaded here: upload it, or click an image."
UNREADABLE = "This request cannot be read: use the fields of the page."

log = logging.getLogger("demo")


def uploaded(path: str | None) -> Path:
    """The file at a path in the upload folder.

    Raises:
        gr.Error: it is not there, or is outside the folder. The message does not name the path.
    """
    folder = Path(get_upload_folder()).resolve()
    try:
        file = Path(path or "").resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links
        file = folder
    if folder not in file.parents or not file.is_file():
        raise gr.Error(NOT_UPLOADED, print_exception=False)
    return file


def opened(source: Path | bytes | None) -> Image.Image:
    """Decode an image, with its transparency.

    Raises:
        gr.Error: it is no image, or too large. The message does not name the path.
    """
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        return open_image(data, MAX_PIXELS, ground=None)  # pyright: ignore[reportArgumentType]  # open_image refuses None
    except (OSError, ValueError, TypeError) as error:
        message = str(error).removesuffix(", or raise max_pixels")  # a visitor cannot do that
        raise gr.Error(message, print_exception=False) from error


class Page(gr.Blocks):
    """Blocks that answer an invalid request with a one-line error. The log names the kind of error and nothing that was
    sent."""

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The inputs of the page's functions.

        Raises:
            gr.Error: a mistake in a request.
        """
        try:
            return await super().preprocess_data(*args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            log.info("refused: %s", type(error).__name__)
            message = NOT_UPLOADED if isinstance(error, InvalidPathError) else UNREADABLE
            raise gr.Error(message, print_exception=False) from None


class UploadedImage(gr.Image):
    """An uploaded image, as a PIL image."""

    def get_block_name(self) -> str:
        return "image"  # the browser shows it as gradio's own component

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        """The path itself: no URL is fetched, and no file is copied."""
        return str(uploaded(url_or_file_path))

    def preprocess(self, payload: ImageData | None) -> Image.Image | None:
        return None if payload is None else opened(uploaded(payload.path))


class UploadedFiles(gr.File):
    """Uploaded files, as paths in the upload folder."""

    def get_block_name(self) -> str:
        return "file"

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        return str(uploaded(url_or_file_path))


class PaintedImage(gr.ImageMask):
    """An uploaded image with layers of paint: {"background": image, "layers": [image ...], "composite": None}."""

    def get_block_name(self) -> str:
        return "imageeditor"

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        return str(uploaded(url_or_file_path))

    @server
    def accept_blobs(self, data: AcceptBlobs) -> None:
        """Receive the parts of a painting, which the browser sends one by one, within limits of number and size."""
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
        images = [None if part is None else self._open_part(part) for part in (sent.background, *layers)]
        painting = {"background": images[0], "layers": [p for p in images[1:] if p is not None], "composite": None}
        return cast(EditorValue, painting)

    def _open_part(self, part: FileData | bytes) -> Image.Image:
        image = opened(part if isinstance(part, bytes | bytearray) else uploaded(part.path))
        return image.convert("RGBA")
