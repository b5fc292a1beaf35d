"""POST /v1/images/generations and /v1/images/edits."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any, BinaryIO, NamedTuple

from fastapi import APIRouter, File, Form, Request, UploadFile
from PIL import Image, ImageChops
from starlette.concurrency import iterate_in_threadpool

from cm3.engine.options import EditOptions, GenerateOptions, InfillOptions, about
from cm3.serving.admission import Ticket, TimedOut
from cm3.serving.middleware import EventStream
from cm3.serving.schemas import (
    GeneratedImage,
    Generation,
    ImagesResponse,
    Prompt,
    Seed,
    Size,
    check_plan,
    check_size,
    decode_upload,
    encode_png,
    named_event,
)
from cm3.serving.state import SECURED, ServerState, State, chosen_seed, plan_of
from cm3.tasks.job import Job

router = APIRouter(prefix="/v1/images", **SECURED)


def response(images: list[GeneratedImage], seed: int) -> ImagesResponse:
    return ImagesResponse(created=int(time.time()), data=images, seed=seed)


def encoded(images: list[Image.Image], size: str) -> list[GeneratedImage]:
    """Images as base64 PNG files, with their plans."""
    return [GeneratedImage(b64_json=encode_png(one, size), revised_prompt=plan_of(one)) for one in images]


@router.post("/generations", response_model=ImagesResponse, response_model_exclude_none=True)
async def generations(request: Request, body: Generation, state: ServerState) -> Any:
    count = body.n * body.best_of
    state.check_model(body.model)
    state.check_count(count)
    check_size(body.size)
    state.check_prompt(*body.texts)
    check_plan(body.plan if isinstance(body.plan, str) else None)
    options = GenerateOptions(seed=chosen_seed(body.seed), **body.options())
    with ExitStack() as stack:
        ticket = stack.enter_context(state.admission.admit(count))
        if body.stream:
            job = state.model.jobs.generate(body.prompt, options)  # outside the stream: its errors have their status
            events = generation_events(state, ticket, body, options, job)
            return EventStream(iterate_in_threadpool(events), ticket, stack.pop_all().close)
        images = await state.admission.run(
            ticket, request.is_disconnected, lambda: generate(state, ticket, body, options)
        )
    return response(images, options.seed or 0)


def generate(state: State, ticket: Ticket, body: Generation, options: GenerateOptions) -> list[GeneratedImage]:
    """The images of a request."""
    return encoded(state.run(ticket, state.model.jobs.generate(body.prompt, options)), body.size)


def generation_events(
    state: State, ticket: Ticket, body: Generation, options: GenerateOptions, job: Job[list[Image.Image]]
) -> Iterator[str]:
    """OpenAI's server-sent events of a generation: the partial images that were asked for, then the finished images.

    Partial images are left out where an image filter is on, since it has not seen them.
    """
    common = {"created_at": int(time.time()), "output_format": "png", "size": body.size}
    rows, _ = state.model.prompts.grid_of(options.size) or state.model.grid
    partial = [numbers_by_row(rows, body.partial_images)] * body.n
    received, revised = [0] * body.n, [dict[str, str]()] * body.n
    planning = state.model.jobs.planning
    try:
        for index, content in ticket.watch(state.model.stream(job)):
            if isinstance(content, str):
                assert planning is not None, "only a plan is text"
                state.safety.check_prompt(content)
                revised[index] = {"revised_prompt": content}
                partial[index] = numbers_by_row(planning.rows(content, options), body.partial_images)
                continue
            received[index] += 1
            number = partial[index].get(received[index])
            if number is not None and not state.safety.images:
                more = {"b64_json": encode_png(content, body.size), "partial_image_index": number, **revised[index]}
                yield named_event("image_generation.partial_image", **more, **common)
        state.check_generated(job.result)
        for one in encoded(job.result, body.size):
            yield named_event("image_generation.completed", **one.model_dump(exclude_none=True), **common)
    except (ValueError, TimedOut) as error:
        yield named_event("error", message=state.message(error))


def numbers_by_row(rows: int, count: int) -> dict[int, int]:
    """Row of an image -> number of the partial image that is sent after it.

    Args:
        rows: of the image.
        count: of partial images.
    """
    return {round(rows * (i + 1) / (count + 1)): i for i in range(count)}


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
        plan: what the result shows; None where the model plans.
    """

    image: BinaryIO
    mask: BinaryIO | None
    prompt: str
    n: int
    size: str
    seed: int
    normalise: bool
    plan: str | None


@router.post("/edits", response_model=ImagesResponse, response_model_exclude_none=True)
async def edits(
    request: Request,
    state: ServerState,
    image: Annotated[UploadFile, File()],
    prompt: Annotated[Prompt, Form()],
    mask: Annotated[UploadFile | None, File(description="Its transparent pixels are inpainted.")] = None,
    model_name: Annotated[str | None, Form(alias="model")] = None,
    n: Annotated[int, Form(ge=1)] = 1,
    size: Annotated[Size, Form()] = "auto",
    seed: Annotated[Seed | None, Form()] = None,
    normalise: Annotated[bool, Form()] = True,
    plan: Annotated[Prompt | None, Form(description=about(EditOptions, "plan").help)] = None,
) -> Any:
    state.check_model(model_name)
    state.check_count(n)
    check_size(size)
    state.check_prompt(prompt, *([plan] if plan else []))
    check_plan(plan)
    if plan is not None and mask is not None:
        raise ValueError("plan: with a mask the prompt says what the image shows: leave out plan or mask")
    edit = Edit(image.file, mask.file if mask else None, prompt, n, size, chosen_seed(seed), normalise, plan)
    with state.admission.admit(n) as ticket:
        images = await state.admission.run(ticket, request.is_disconnected, lambda: edited(state, ticket, edit))
    return response(images, edit.seed)


def edited(state: State, ticket: Ticket, edit: Edit) -> list[GeneratedImage]:
    """The edited images."""
    return [one for job in edit_jobs(state, ticket, edit) for one in encoded(state.run(ticket, job), edit.size)]


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
                options = EditOptions(seed=edit.seed + i, normalise=edit.normalise, plan=edit.plan)
                job = jobs.edit(source, edit.prompt, options)
            else:
                options = InfillOptions(n=edit.n, seed=edit.seed, normalise=edit.normalise)
                job = jobs.infill(source, hole, edit.prompt, options)
        yield job
