"""Requests and responses of the server: OpenAI's images and chat, as far as the model supports them.

Unknown fields are ignored, because OpenAI's clients send many. Known ones are checked.
"""

import base64
import io
import json
from typing import Annotated, Any, Literal, NamedTuple

from PIL import Image as PIL_Image
from pydantic import BaseModel, Discriminator, Field, Tag

from cm3.engine.options import MAX_SEED, GenerateOptions, Options, about
from cm3.engine.options import Size as Canvas
from cm3.tasks.planning import parsed
from tokenizer_image.pixels import open_image

MAX_PROMPT = 2000  # characters
MAX_MESSAGES = 64
MAX_PARTS = 64  # of a message
MAX_SIDE = 1024  # pixels of an image in a response

MAX_TEMPERATURE = 2  # as in OpenAI's interface
MAX_GUIDANCE = 100


def of_option(options: type[Options], name: str, default: Any = ..., most: float | None = None) -> Any:
    """A field of a schema with the default, limits and help text of an option.

    Args:
        options: the options class.
        name: the option's name.
        default: replaces the option's default.
        most: replaces the option's upper limit.
    """
    facts = about(options, name)
    default = getattr(options, name) if default is ... else default
    return Field(default, ge=facts.least, gt=facts.above, le=most or facts.most, description=facts.help)


Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
Seed = Annotated[int, Field(ge=0, lt=MAX_SEED)]
Size = Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,3}x[1-9]\d{0,3})$")]
# Tagged, so that an error names the form that was sent.
Planned = Annotated[
    Annotated[bool, Tag("flag")] | Annotated[Prompt, Tag("text")],
    Discriminator(lambda plan: "text" if isinstance(plan, str) else "flag"),
]


class Generation(BaseModel):
    """The body of POST /v1/images/generations. Not OpenAI's: best_of, seed, guidance, temperature, negative_prompt,
    normalise, plan, variety and canvas."""

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
    guidance: float | None = of_option(GenerateOptions, "guidance", None, MAX_GUIDANCE)
    temperature: float | None = of_option(GenerateOptions, "temperature", None, MAX_TEMPERATURE)
    negative_prompt: str | None = Field(
        None, max_length=MAX_PROMPT, description=about(GenerateOptions, "negative_prompt").help
    )
    normalise: bool = of_option(GenerateOptions, "normalise")
    plan: Planned = of_option(GenerateOptions, "plan")
    variety: float = of_option(GenerateOptions, "variety", most=MAX_TEMPERATURE)
    canvas: Canvas = of_option(GenerateOptions, "size")

    def options(self) -> dict[str, Any]:
        """The options of generation that were given, without the seed."""
        names = {"n", "best_of", "guidance", "temperature", "negative_prompt", "normalise", "plan", "variety"}
        return {**self.model_dump(include=names, exclude_none=True), "size": self.canvas}

    @property
    def texts(self) -> list[str]:
        """What a prompt filter reads."""
        return [text for text in (self.prompt, self.negative_prompt, self.plan) if isinstance(text, str) and text]


class GeneratedImage(BaseModel):
    b64_json: str
    revised_prompt: str | None = Field(None, description="The plan that the image was drawn from, where there is one.")


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
# Tagged, so that an error names the form that was sent. Without max_length every wrong item would be an error.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Field(max_length=MAX_PARTS), Tag("parts")],
    Discriminator(lambda content: "parts" if isinstance(content, list) else "text"),
]


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    images: list[Any] | None = Field(None, description="Of an assistant's message, as it was sent. They are not read.")


class Chat(BaseModel):
    """The body of POST /v1/chat/completions: a question about an image; or, with "image" among the modalities, an image
    to generate or edit. Not OpenAI's: normalise, and seeds up to 2^63."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str | None = None
    stream: bool = False
    temperature: float | None = of_option(GenerateOptions, "temperature", None, MAX_TEMPERATURE)
    seed: Seed | None = None
    n: Literal[1] = 1
    modalities: list[Literal["text", "image"]] = Field(["text"], max_length=2)
    normalise: bool = of_option(GenerateOptions, "normalise")

    def options(self) -> dict[str, Any]:
        """The temperature and the seed, if they were given."""
        return self.model_dump(include={"temperature", "seed"}, exclude_none=True)


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cm3"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str | None = None
    param: str | None = None


class Error(BaseModel):
    """The body of every error response. It repeats nothing that was sent."""

    error: ErrorDetail


def completion(id: str, created: int, model: str, message: dict[str, Any]) -> dict[str, Any]:
    """A complete chat response."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return {"id": id, "object": "chat.completion", "created": created, "model": model, "choices": [choice]}


def chunk(id: str, created: int, model: str, delta: dict[str, Any], end: bool = False) -> dict[str, Any]:
    """One chunk of a streamed chat response."""
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if end else None}
    return {"id": id, "object": "chat.completion.chunk", "created": created, "model": model, "choices": [choice]}


def encode_png(image: PIL_Image.Image, size: str) -> str:
    """An image as a PNG file in base64, scaled to `size` ("WIDTHxHEIGHT") unless that is "auto"."""
    if size != "auto":
        width, height = map(int, size.split("x"))
        image = image.resize((width, height), PIL_Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def check_size(size: str) -> None:
    """Raise a ValueError for a size over the limit."""
    if size != "auto" and max(map(int, size.split("x"))) > MAX_SIDE:
        raise ValueError(f"size: a side has at most {MAX_SIDE} pixels")


def check_plan(plan: str | None) -> None:
    """Raise a ValueError for a text that is no plan. The message does not repeat it."""
    if plan is not None and parsed(plan) is None:
        raise ValueError(
            "plan: no plan, which is like: a cat at the top left, a dog at the top right, in the noto style; each of "
            "several things needs a place of its own"
        )


def decode_upload(content: bytes, pixels: int) -> PIL_Image.Image:
    """Decode an image that was sent, with its transparency.

    Raises:
        ValueError: it is no image, or has more than `pixels` pixels. The message does not repeat the content.
    """
    try:
        return open_image(content, pixels, None)
    except ValueError as error:
        large = "pixels" in str(error)
        raise ValueError(f"an image has more than {pixels:,} pixels" if large else "no image can be read") from error


def check_data_url(url: str) -> None:
    """Raise a ValueError for a URL that is no data URL of an image."""
    head, comma, _ = url[:100].partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise ValueError("image_url: only data URLs are accepted, data:image/png;base64,...: nothing is fetched")


def data_url_content(url: str) -> bytes:
    """The file in a data URL.

    Raises:
        ValueError: it is not valid base64.
    """
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except ValueError as error:  # binascii.Error, or letters outside ASCII
        raise ValueError("image_url: the content after the comma is not valid base64") from error


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def named_event(kind: str, **content: Any) -> str:
    """A server-sent event with a name."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n"


class Turn(NamedTuple):
    """The last turn of a conversation.

    Attributes:
        words: of the last message.
        url: the data URL of the conversation's last image, or None.
        history: earlier questions about that image, with their answers.
    """

    words: str
    url: str | None
    history: list[tuple[str, str]]


def text_of(content: str | list[TextPart | ImagePart]) -> str:
    """The text parts of a message, joined."""
    words = (
        [content] if isinstance(content, str) else [part.text for part in content if not isinstance(part, ImagePart)]
    )
    return " ".join(words).strip()


def urls_of(message: Message) -> list[str]:
    """The URLs of a message's images.

    Raises:
        ValueError: a URL that is no data URL.
    """
    parts = [] if isinstance(message.content, str) else message.content
    urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    for url in urls:
        check_data_url(url)
    return urls


def read_conversation(chat: Chat, max_images: int) -> Turn:
    """The last turn of a conversation. No image is decoded.

    Args:
        chat: the conversation.
        max_images: how many images it may have.

    Raises:
        ValueError: the last message is not the user's, has no text or too much, or there are too many images.
    """
    if chat.messages[-1].role != "user":
        raise ValueError("messages: the last must be the user's")
    urls_by_message = [urls_of(message) for message in chat.messages]
    if (count := sum(map(len, urls_by_message))) > max_images:
        raise ValueError(f"messages: {count} images, but at most {max_images} are accepted: leave out the older ones")
    url, history = None, list[tuple[str, str]]()
    for urls, message, reply in zip(urls_by_message, chat.messages, [*chat.messages[1:], None], strict=True):
        if urls:
            url = urls[-1]
            history.clear()  # it was about another image
        if reply is not None and (message.role, reply.role) == ("user", "assistant") and not reply.images:
            history.append((text_of(message.content)[:MAX_PROMPT], text_of(reply.content)[:MAX_PROMPT]))
    text = text_of(chat.messages[-1].content)
    if not text:
        raise ValueError("messages: the last one has no text")
    if len(text) > MAX_PROMPT:
        raise ValueError(f"messages: the last one has more than {MAX_PROMPT:,} characters")
    return Turn(text, url, [turn for turn in history if all(turn)])
