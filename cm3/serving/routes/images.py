"""POST /v1/images/generations and /v1/images/edits."""

import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import Annotated, Any, BinaryIO, NamedTuple

from fastapi import APIRouter, File, Form, Request, UploadFile
from PIL import ImageChops
from starlette.concurrency import iterate_in_threadpool

from cm3.engine.options import EditOptions, GenerateOptions, InfillOptions
from cm3.serving.admission import Ticket, TimedOut
from cm3.serving.middleware import EventStream
from cm3.serving.schemas import (
    MAX_PROMPT,
    GeneratedImage,
    Generation,
    ImagesResponse,
    Seed,
    Size,
    check_size,
    decode_upload,
    encode_png,
    named_event,
)
from cm3.serving.state import SECURED, ServerState, State, chosen_seed
from cm3.tasks.job import Job, Piece

router = APIRouter(prefix="/v1/images", **SECURED)


def response(images: list[str], seed: int) -> ImagesResponse:
    """The response with base64 PNG files."""
    return ImagesResponse(created=int(time.time()), data=[GeneratedImage(b64_json=one) for one in images], seed=seed)


@router.post("/generations", response_model=ImagesResponse)
async def generations(request: Request, body: Generation, state: ServerState) -> Any:
    count = body.n * body.best_of
    state.check_model(body.model)
    state.check_count(count)
    check_size(body.size)
    state.check_prompt(body.prompt, *([body.negative_prompt] if body.negative_prompt else []))
    options = GenerateOptions(seed=chosen_seed(body.seed), **body.options())
    with ExitStack() as stack:
        ticket = stack.enter_context(state.admission.admit(count))
        if body.stream:
            job = state.model.jobs.generate(body.prompt, options)  # outside the stream: its errors have their status
            events = generation_events(state, ticket, body, state.model.stream(job))
            return EventStream(iterate_in_threadpool(events), ticket, stack.pop_all().close)
        images = await state.admission.run(
            ticket, request.is_disconnected, lambda: generate(state, ticket, body, options)
        )
    return response(images, options.seed or 0)


def generate(state: State, ticket: Ticket, body: Generation, options: GenerateOptions) -> list[str]:
    """The images of a request, as base64 PNG files."""
    job = state.model.jobs.generate(body.prompt, options)
    return [encode_png(one, body.size) for one in state.run(ticket, job)]


def generation_events(state: State, ticket: Ticket, body: Generation, pieces: Generator[Piece]) -> Iterator[str]:
    """OpenAI's server-sent events of a generation: the partial images that were asked for, then the finished image.

    Partial images are left out where an image filter is on, since it has not seen them.
    """
    rows = state.model.grid[0]
    partial = {round(rows * (i + 1) / (body.partial_images + 1)): i for i in range(body.partial_images)}
    last = rows + (body.best_of > 1)  # with best_of, the chosen image follows the rows of the first candidate
    received = [0] * body.n
    common = {"created_at": int(time.time()), "output_format": "png", "size": body.size}
    try:
        for piece in ticket.watch(pieces):
            if isinstance(piece.content, str):
                continue
            received[piece.index] += 1
            count = received[piece.index]
            if count == last:
                state.check_generated([piece.content])
                png = encode_png(piece.content, body.size)
                yield named_event("image_generation.completed", b64_json=png, **common)
            elif count in partial and not state.safety.images:
                png = encode_png(piece.content, body.size)
                number = partial[count]
                yield named_event("image_generation.partial_image", b64_json=png, partial_image_index=number, **common)
    except (ValueError, TimedOut) as error:
        yield named_event("error", message=state.message(error))


class Edit(NamedTuple):
    """The content of an edit request.

    Attributes:
        image: the file to edit.
        mask: the file whose transparent pixels are inpainted; None for an edit without a mask.
        prompt: the instruction, or what the mask is filled with.
        n: how many images.
        size: of the images that are sent back.
        seed: of the first image.
        normalise: whether the prompt is normalised.
    """

    image: BinaryIO
    mask: BinaryIO | None
    prompt: str
    n: int
    size: str
    seed: int
    normalise: bool


@router.post("/edits", response_model=ImagesResponse)
async def edits(
    request: Request,
    state: ServerState,
    image: Annotated[UploadFile, File()],
    prompt: Annotated[str, Form(min_length=1, max_length=MAX_PROMPT)],
    mask: Annotated[UploadFile | None, File(description="Its transparent pixels are inpainted.")] = None,
    model_name: Annotated[str | None, Form(alias="model")] = None,
    n: Annotated[int, Form(ge=1)] = 1,
    size: Annotated[Size, Form()] = "auto",
    seed: Annotated[Seed | None, Form()] = None,
    normalise: Annotated[bool, Form()] = True,
) -> Any:
    state.check_model(model_name)
    state.check_count(n)
    check_size(size)
    state.check_prompt(prompt)
    edit = Edit(image.file, mask.file if mask else None, prompt, n, size, chosen_seed(seed), normalise)
    with state.admission.admit(n) as ticket:
        images = await state.admission.run(ticket, request.is_disconnected, lambda: edited(state, ticket, edit))
    return response(images, edit.seed)


def edited(state: State, ticket: Ticket, edit: Edit) -> list[str]:
    """The edited images, as base64 PNG files."""
    return [encode_png(one, edit.size) for job in edit_jobs(state, ticket, edit) for one in state.run(ticket, job)]


def edit_jobs(state: State, ticket: Ticket, edit: Edit) -> Iterator[Job[Any]]:
    """One job for all images with a mask, one job for each image without."""
    jobs = state.model.jobs
    with state.decoding(ticket):
        source = state.open_image(edit.image.read())
        hole = None
        if edit.mask is not None:
            alpha = decode_upload(edit.mask.read(), state.limits.pixels).convert("RGBA").getchannel("A")
            hole = ImageChops.invert(alpha)
    for i in range(edit.n if hole is None else 1):
        with state.decoding(ticket):
            if hole is None:
                job = jobs.edit(source, edit.prompt, EditOptions(seed=edit.seed + i, normalise=edit.normalise))
            else:
                options = InfillOptions(n=edit.n, seed=edit.seed, normalise=edit.normalise)
                job = jobs.infill(source, hole, edit.prompt, options)
        yield job
