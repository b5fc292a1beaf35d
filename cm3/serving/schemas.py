"""Requests and answers of the server: OpenAI's images and chat, as far as the model supports them.

Unknown fields are ignored, because OpenAI's clients send many; known ones are checked.
"""

import base64
import io
import json
from typing import Annotated, Any, Literal, NamedTuple

from PIL import Image as PIL_Image
from pydantic import BaseModel, Discriminator, Field, Tag

from cm3.engine.options import MAX_SEED, GenerateOptions, Options, about
from tokenizer_image.pixels import open_image

MAX_PROMPT = 2000  # characters
MAX_MESSAGES = 64
MAX_PARTS = 64  # of a message
MAX_SIDE = 1024  # pixels of an image that is given back

TEMPERATURE = 2  # at most, as OpenAI has it
GUIDANCE = 100  # at most


def of_option(options: type[Options], name: str, default: Any = ..., most: float | None = None) -> Any:
    """A schema's field with the default, limits and help text of an option.

    Args:
        options: the options class.
        name: of its field.
        default: if not the option's own.
        most: a lower limit than the option's own.
    """
    facts = about(options, name)
    default = getattr(options, name) if default is ... else default
    return Field(default, ge=facts.least, gt=facts.above, le=most or facts.most, description=facts.help)


Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
Seed = Annotated[int, Field(ge=0, lt=MAX_SEED)]
Size = Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,3}x[1-9]\d{0,3})$")]


class Generation(BaseModel):
    """POST /v1/images/generations. Besides OpenAI's: best_of, seed, guidance, temperature,
    negative_prompt, normalise."""

    prompt: Prompt
    model: str | None = None
    n: int = of_option(GenerateOptions, "n")
    best_of: int = of_option(GenerateOptions, "best_of")
    size: Size = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    seed: Seed | None = None
    guidance: float | None = of_option(GenerateOptions, "guidance", None, GUIDANCE)
    temperature: float | None = of_option(GenerateOptions, "temperature", None, TEMPERATURE)
    negative_prompt: str | None = Field(
        None, max_length=MAX_PROMPT, description=about(GenerateOptions, "negative_prompt").help
    )
    normalise: bool = of_option(GenerateOptions, "normalise")

    def options(self) -> dict[str, Any]:
        """What was given of the options of generation, besides the seed."""
        names = {"n", "best_of", "guidance", "temperature", "negative_prompt", "normalise"}
        return self.model_dump(include=names, exclude_none=True)


class GeneratedImage(BaseModel):
    b64_json: str


class ImagesResponse(BaseModel):
    created: int
    data: list[GeneratedImage]
    seed: int


class TextPart(BaseModel):
    type: Literal["text"]
    text: str = Field(max_length=MAX_PROMPT)


class Url(BaseModel):
    url: str


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: Url


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
# Tagged, so that what is wrong is said of what was sent. Lists without a length make an error of each wrong item.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Field(max_length=MAX_PARTS), Tag("parts")],
    Discriminator(lambda content: "parts" if isinstance(content, list) else "text"),
]


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class Chat(BaseModel):
    """POST /v1/chat/completions. A question about an image, or with "image" among the modalities an image: drawn
    from the words, or the given one changed. Besides OpenAI's: seed up to 2^63, and normalise."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str | None = None
    stream: bool = False
    temperature: float | None = of_option(GenerateOptions, "temperature", None, TEMPERATURE)
    seed: Seed | None = None
    n: Literal[1] = 1
    modalities: list[Literal["text", "image"]] = Field(["text"], max_length=2)
    normalise: bool = of_option(GenerateOptions, "normalise")

    def options(self) -> dict[str, Any]:
        """The temperature and the seed, where they were given."""
        return self.model_dump(include={"temperature", "seed"}, exclude_none=True)


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cm3"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Trouble(BaseModel):
    message: str
    type: str
    code: str | None = None
    param: str | None = None


class Error(BaseModel):
    """The form of every error. It repeats nothing that was sent."""

    error: Trouble


def completion(id: str, created: int, model: str, message: dict[str, Any]) -> dict[str, Any]:
    """A complete answer of chat."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return {"id": id, "object": "chat.completion", "created": created, "model": model, "choices": [choice]}


def piece(id: str, created: int, model: str, delta: dict[str, Any], end: bool = False) -> dict[str, Any]:
    """A part of a streamed answer."""
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if end else None}
    return {"id": id, "object": "chat.completion.chunk", "created": created, "model": model, "choices": [choice]}


def png(image: PIL_Image.Image, size: str) -> str:
    """An image as base64 of a PNG file. size: "auto" for the image's own."""
    if size != "auto":
        width, height = map(int, size.split("x"))
        image = image.resize((width, height), PIL_Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def check_size(size: str) -> None:
    if size != "auto" and max(map(int, size.split("x"))) > MAX_SIDE:
        raise ValueError(f"size: a side has at most {MAX_SIDE} pixels")


def opened(content: bytes, pixels: int) -> PIL_Image.Image:
    """Open an image. Raises a ValueError for something else, or for more pixels than allowed."""
    try:
        return open_image(content, pixels, None)
    except ValueError as error:
        large = "pixels" in str(error)
        raise ValueError(f"an image has more than {pixels:,} pixels" if large else "no image can be read") from error


def check_url(url: str) -> None:
    """Raise a ValueError for what is no data URL."""
    head, comma, _ = url[:100].partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise ValueError("image_url: only data URLs are taken, data:image/png;base64,...: nothing is fetched")


def content_of(url: str) -> bytes:
    """The file in a data URL. Raises a ValueError for what is no base64."""
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except ValueError as error:  # binascii.Error, or letters that are none of ASCII
        raise ValueError("image_url: no base64 stands behind the comma") from error


def event(kind: str, **content: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n"


def data(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


class Asked(NamedTuple):
    """The words of the last message, the data URL of the conversation's last image, and what was said before of it."""

    words: str
    url: str | None
    history: list[tuple[str, str]]


def text_of(content: str | list[TextPart | ImagePart]) -> str:
    words = (
        [content] if isinstance(content, str) else [part.text for part in content if not isinstance(part, ImagePart)]
    )
    return " ".join(words).strip()


def urls_of(said: Message) -> list[str]:
    """The URLs of a message's images. Raises a ValueError for one that is no data URL."""
    parts = [] if isinstance(said.content, str) else said.content
    urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    for url in urls:
        check_url(url)
    return urls


def asked(chat: Chat, images: int) -> Asked:
    """What a conversation asks for; no image is decoded.

    Args:
        chat: the conversation.
        images: how many it may have.

    Raises:
        ValueError: a conversation that asks for nothing, or has too many images.
    """
    if chat.messages[-1].role != "user":
        raise ValueError("messages: the last must be the user's")
    shown = [urls_of(said) for said in chat.messages]
    if (count := sum(map(len, shown))) > images:
        raise ValueError(f"messages: {count} images, but at most {images} are taken: leave out the older ones")
    url, history = None, list[tuple[str, str]]()
    for urls, said, reply in zip(shown, chat.messages, [*chat.messages[1:], None], strict=True):
        if urls:
            url = urls[-1]
            history.clear()  # it was about another image
        if reply is not None and (said.role, reply.role) == ("user", "assistant"):
            history.append((text_of(said.content)[:MAX_PROMPT], text_of(reply.content)[:MAX_PROMPT]))
    text = text_of(chat.messages[-1].content)
    if not text:
        raise ValueError("messages: the last says nothing")
    if len(text) > MAX_PROMPT:
        raise ValueError(f"messages: the last has more than {MAX_PROMPT:,} characters")
    return Asked(text, url, [turn for turn in history if all(turn)])
