"""The model as a service with OpenAI's interface: images, edits, chat with images.

    cm3 serve --port 8000 --api-key-file key.txt

`make_app` gives the FastAPI application. All requests share one engine and its batch. Requests over a limit
are rejected at once. Errors have OpenAI's shape, and repeat neither what was sent nor the paths of files.
"""

import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from threading import BoundedSemaphore
from typing import Annotated, Any

from fastapi import Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from PIL import Image as PIL_Image
from PIL import ImageChops
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import iterate_in_threadpool
from starlette.exceptions import HTTPException

from cm3 import __version__
from cm3.engine.options import AnswerOptions, EditOptions, GenerateOptions, InfillOptions
from cm3.engine.thread import EngineThread
from cm3.pipeline import CM3
from cm3.serving.access import Keys
from cm3.serving.admission import DECODING, Desk, Limits, Ticket, TooLate
from cm3.serving.middleware import TROUBLES, BodyLimit, Door, Measured, Meters, Streamed, trouble
from cm3.serving.safety import Refusal, Safety
from cm3.serving.schemas import (
    MAX_PROMPT,
    Chat,
    Error,
    GeneratedImage,
    Generation,
    ImagesResponse,
    ModelCard,
    Models,
    Seed,
    Size,
    asked,
    check_size,
    completion,
    content_of,
    data,
    event,
    opened,
    piece,
    png,
)
from cm3.tasks.job import Job, Piece
from cm3.tasks.jobs import listed

log = logging.getLogger("cm3.serving.app")


class Service:
    """A model with its name, limits, filters and metrics."""

    def __init__(self, model: CM3, name: str, limits: Limits, safety: Safety) -> None:
        self.model, self.name, self.limits, self.safety = model, name, limits, safety
        self.desk, self.turns = Desk(limits), BoundedSemaphore(DECODING)
        self.meters = Meters(self.desk, lambda: len(model.engine.running))
        self.started = int(time.time())

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise HTTPException(404, f"the model here is {self.name}")

    def check_count(self, n: int) -> None:
        if n > self.limits.images:
            raise ValueError(f"n: at most {self.limits.images} images at once, candidates among them")

    def check_words(self, *texts: str) -> None:
        """Raise a Refusal for texts that a filter refuses, as they were sent or as the model reads them."""
        self.safety.check_prompt(*texts, *map(self.model.normal_prompt, texts))

    def told(self, error: Exception) -> str:
        """The message for a mistake, a refusal, or time that is over. Refusals are counted."""
        if isinstance(error, Refusal):
            self.meters.refusals.labels(error.category).inc()
            log.info("refused: %s", error.category)
        return TROUBLES[type(error)][2] if type(error) in TROUBLES else " ".join(str(error).split())[:300]

    @contextmanager
    def decoding(self, ticket: Ticket) -> Generator[None]:
        """Wait for a turn to decode images and to make a job of them, which takes less memory.

        Raises Gone or TooLate."""
        with self.turns:
            ticket.check()
            yield

    def opened(self, content: bytes) -> PIL_Image.Image:
        """Open an image that was sent. Raises a ValueError or a Refusal."""
        image = opened(content, self.limits.pixels)
        self.safety.check_images([image])
        return image

    def draw(self, ticket: Ticket, job: Job[Any]) -> list[PIL_Image.Image]:
        """The images of a job that gives one or a list, if there is time for them.

        Raises:
            Gone: the client has hung up.
            TooLate: the time is over.
            Refusal: a filter refuses an image.
        """
        result = self.model.run(job, ticket.watch)
        images: list[PIL_Image.Image] = listed(result)
        self.safety.check_images(images)
        self.meters.images.inc(len(images))
        return images

    def write(self, ticket: Ticket, job: Job[str]) -> Generator[str]:
        """The job's text, piece by piece."""
        for part in ticket.watch(self.model.stream(job)):
            yield str(part.content)
        self.meters.texts.inc()


def make_app(
    model: CM3,
    name: str = "emoji",
    limits: Limits | None = None,
    safety: Safety | None = None,
    api_keys: Sequence[str] = (),
    threads: int | None = None,
) -> FastAPI:
    """The application.

    Args:
        model: what draws and answers.
        name: of the model, to clients.
        limits: see Limits.
        safety: filters of prompts and images.
        api_keys: one of them, of 16 characters or more, must come with each request but /health; none = every program
            on this machine may ask, under 127.0.0.1 or localhost.
        threads: see EngineThread.

    Raises:
        ValueError: a key that is too short, or that no header can carry.
    """
    keys = Keys(api_keys)
    service = Service(model, name, limits or Limits(), safety or Safety())
    desk, meters, most = service.desk, service.meters, service.limits

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        with EngineThread(model.engine, threads):
            yield
            desk.stop()

    app = FastAPI(title="cm3", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(Door, desk=desk, keys=keys)
    app.add_middleware(BodyLimit, most=most.body, seconds=most.arrival)
    app.add_middleware(Measured, meters=meters)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return trouble(422, "invalid_request_error", f"{place}: {first['msg']}"[:300])

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return trouble(error.status_code, "invalid_request_error", error.detail)

    @app.exception_handler(Refusal)
    async def filtered(_: Request, error: Refusal) -> JSONResponse:
        return trouble(400, "invalid_request_error", service.told(error), "content_policy_violation")

    async def mistaken(_: Request, error: Exception) -> JSONResponse:
        return trouble(422, "invalid_request_error", service.told(error))

    async def known(_: Request, error: Exception) -> JSONResponse:
        return trouble(*TROUBLES[type(error)])

    app.add_exception_handler(ValueError, mistaken)
    for kind in TROUBLES:
        app.add_exception_handler(kind, known)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        log.error("%s in a request", type(error).__name__)  # its text may hold the user's
        return trouble(500, "server_error", "something went wrong here")

    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": Error} for status in (400, 401, 403, 404, 408, 413, 422, 429, 500, 504)
    }
    bearer = Depends(HTTPBearer(auto_error=False))  # for the OpenAPI document: Door checks
    secured: dict[str, Any] = {"dependencies": [bearer], "responses": errors}

    @app.post("/v1/images/generations", response_model=ImagesResponse, **secured)
    async def generations(request: Request, body: Generation) -> Any:
        service.check_model(body.model)
        count = body.n * body.best_of
        service.check_count(count)
        check_size(body.size)
        service.check_words(body.prompt, *([body.negative_prompt] if body.negative_prompt else []))
        seed = random.getrandbits(32) if body.seed is None else body.seed
        options = GenerateOptions(seed=seed, **body.options())
        with ExitStack() as stack:
            ticket = stack.enter_context(desk.admit(count))
            if body.stream:
                job = model.jobs.generate(body.prompt, options)  # raises at once what is wrong
                events = drawing(service, ticket, body, model.stream(job))
                return Streamed(iterate_in_threadpool(events), ticket, stack.pop_all().close)

            def work() -> list[str]:
                job = model.jobs.generate(body.prompt, options)
                return [png(one, body.size) for one in service.draw(ticket, job)]

            images = await desk.run(ticket, request.is_disconnected, work)
        return ImagesResponse(
            created=int(time.time()), data=[GeneratedImage(b64_json=one) for one in images], seed=seed
        )

    @app.post("/v1/images/edits", response_model=ImagesResponse, **secured)
    async def edits(
        request: Request,
        image: Annotated[UploadFile, File()],
        prompt: Annotated[str, Form(min_length=1, max_length=MAX_PROMPT)],
        mask: Annotated[UploadFile | None, File(description="Transparent where the image is drawn anew.")] = None,
        model_name: Annotated[str | None, Form(alias="model")] = None,
        n: Annotated[int, Form(ge=1)] = 1,
        size: Annotated[Size, Form()] = "auto",
        seed: Annotated[Seed | None, Form()] = None,
        normalise: Annotated[bool, Form()] = True,
    ) -> Any:
        service.check_model(model_name)
        service.check_count(n)
        check_size(size)
        service.check_words(prompt)
        first = random.getrandbits(32) if seed is None else seed

        def jobs(ticket: Ticket) -> Iterator[Job[Any]]:
            with service.decoding(ticket):
                source = service.opened(image.file.read())
                alpha = None if mask is None else opened(mask.file.read(), most.pixels).convert("RGBA").getchannel("A")
                hole = None if alpha is None else ImageChops.invert(alpha)
            for i in range(n if hole is None else 1):
                with service.decoding(ticket):
                    if hole is None:
                        job = model.jobs.edit(source, prompt, EditOptions(seed=first + i, normalise=normalise))
                    else:
                        filled = InfillOptions(n=n, seed=first, normalise=normalise)
                        job = model.jobs.infill(source, hole, prompt, filled)
                yield job

        def work(ticket: Ticket) -> list[str]:
            return [png(one, size) for job in jobs(ticket) for one in service.draw(ticket, job)]

        with desk.admit(n) as ticket:
            images = await desk.run(ticket, request.is_disconnected, lambda: work(ticket))
        return ImagesResponse(
            created=int(time.time()), data=[GeneratedImage(b64_json=one) for one in images], seed=first
        )

    @app.post("/v1/chat/completions", **secured)
    async def chat(request: Request, body: Chat) -> Any:
        service.check_model(body.model)
        id, created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        draws = "image" in body.modalities
        sampling = body.options()

        def prepared(ticket: Ticket) -> Job[Any]:
            wanted = asked(body, most.images)
            if not draws and wanted.url is None:
                raise ValueError('messages: send an image to ask about, or ask for one with "modalities": ["image"]')
            service.check_words(wanted.words, *(question for question, _ in wanted.history))
            if wanted.url is None:
                return model.jobs.generate(wanted.words, GenerateOptions(normalise=body.normalise, **sampling))
            with service.decoding(ticket):
                image = service.opened(content_of(wanted.url))
                if draws:
                    return model.jobs.edit(image, wanted.words, EditOptions(normalise=body.normalise, **sampling))
                return model.jobs.answer(image, wanted.words, AnswerOptions(history=wanted.history, **sampling))

        def drawn(ticket: Ticket, job: Job[Any]) -> dict[str, Any]:
            [image] = service.draw(ticket, job)
            url = f"data:image/png;base64,{png(image, 'auto')}"
            return {"content": "", "images": [{"type": "image_url", "image_url": {"url": url}}]}

        def written(ticket: Ticket, job: Job[Any]) -> dict[str, Any]:
            return {"content": "".join(service.write(ticket, job)).strip()}

        def events(ticket: Ticket, job: Job[Any]) -> Iterator[str]:
            try:
                yield data(piece(id, created, name, {"role": "assistant", "content": ""}))
                if draws:
                    yield data(piece(id, created, name, drawn(ticket, job)))
                else:
                    for text in service.write(ticket, job):
                        yield data(piece(id, created, name, {"content": text}))
                yield data(piece(id, created, name, {}, end=True))
                yield "data: [DONE]\n\n"
            except (ValueError, TooLate) as error:
                yield data({"error": {"message": service.told(error), "type": "server_error"}})

        with ExitStack() as stack:
            ticket = stack.enter_context(desk.admit(1))
            if body.stream:
                job = await desk.run(ticket, request.is_disconnected, lambda: prepared(ticket))
                return Streamed(iterate_in_threadpool(events(ticket, job)), ticket, stack.pop_all().close)
            work = drawn if draws else written
            message = await desk.run(ticket, request.is_disconnected, lambda: work(ticket, prepared(ticket)))
            return completion(id, created, name, message)

    @app.get("/v1/models", response_model=Models, **secured)
    async def models() -> Models:
        return Models(data=[ModelCard(id=name, created=service.started)])

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def drawing(service: Service, ticket: Ticket, body: Generation, parts: Generator[Piece]) -> Iterator[str]:
    """OpenAI's events of a drawing: as many partial images as are wanted, then the whole image."""
    rows = service.model.grid[0]
    shown = {round(rows * (i + 1) / (body.partial_images + 1)): i for i in range(body.partial_images)}
    last = rows + (body.best_of > 1)  # the best of several comes once the rows of the first candidate have come
    done = [0] * body.n
    common = {"created_at": int(time.time()), "output_format": "png", "size": body.size}
    try:
        for part in ticket.watch(parts):
            if isinstance(part.content, str):
                continue
            done[part.index] += 1
            if done[part.index] == last:
                service.safety.check_images([part.content])
                service.meters.images.inc()
                yield event("image_generation.completed", b64_json=png(part.content, body.size), **common)
            elif done[part.index] in shown and not service.safety.images:
                number = shown[done[part.index]]
                yield event(
                    "image_generation.partial_image",
                    b64_json=png(part.content, body.size),
                    partial_image_index=number,
                    **common,
                )
    except (ValueError, TooLate) as error:
        yield event("error", message=service.told(error))
