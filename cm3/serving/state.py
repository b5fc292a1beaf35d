"""What the routes of one server share: the model, its limits, admission, safety filters and metrics."""

import logging
import random
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import BoundedSemaphore
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from PIL import Image as PIL_Image
from starlette.exceptions import HTTPException

from cm3.pipeline import CM3
from cm3.serving.admission import Admission, Limits, Ticket
from cm3.serving.errors import DOCUMENTED_ERRORS, message_of
from cm3.serving.metrics import Metrics
from cm3.serving.safety import Refusal, Safety
from cm3.serving.schemas import decode_upload
from cm3.tasks.job import Job
from cm3.tasks.jobs import listed

MAX_DECODING = 2  # images decoded at the same time: a file of a few kilobytes becomes an image of 16 MB
# Arguments of every route that needs a key where there are any. The dependency only documents it in the OpenAPI schema:
# AccessControl checks the key.
SECURED: dict[str, Any] = {"dependencies": [Depends(HTTPBearer(auto_error=False))], "responses": DOCUMENTED_ERRORS}

log = logging.getLogger("cm3.serving")


@dataclass
class State:
    """The state of one server; `app.state.server` holds it.

    Attributes:
        model: generates images and texts.
        name: the model's name for clients.
        limits: see Limits.
        safety: filters of prompts and images.
        admission: accepts or rejects requests.
        metrics: what `/metrics` shows.
        started: Unix time, in seconds.
    """

    model: CM3
    name: str
    limits: Limits = Limits()
    safety: Safety = Safety()
    admission: Admission = field(init=False)
    metrics: Metrics = field(init=False)
    started: int = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.limits)
        self.metrics = Metrics(self.admission, lambda: len(self.model.engine.running))
        self.started = int(time.time())
        self._decoding = BoundedSemaphore(MAX_DECODING)

    def check_model(self, name: str | None) -> None:
        """Raise a 404 if a request names another model."""
        if name is not None and name != self.name:
            raise HTTPException(404, f"the model here is {self.name}")

    def check_count(self, n: int) -> None:
        """Raise a ValueError if a request asks for too many images."""
        if n > self.limits.images:
            raise ValueError(f"n: at most {self.limits.images} images at once, candidates among them")

    def check_prompt(self, *texts: str) -> None:
        """Raise a Refusal if a filter refuses one of the texts, as it was sent or as the model reads it."""
        self.safety.check_prompt(*texts, *map(self.model.normal_prompt, texts))

    def check_generated(self, images: Iterable[PIL_Image.Image]) -> None:
        """Raise a Refusal if a filter refuses a generated image or its plan, and count the images otherwise."""
        images = list(images)
        for image in images:
            if plan := plan_of(image):
                self.safety.check_prompt(plan)
        self.safety.check_images(images)
        self.metrics.images.inc(len(images))

    def message(self, error: Exception) -> str:
        """The message of an error for the client. Refusals are counted, and logged by their category alone."""
        if isinstance(error, Refusal):
            self.metrics.refusals.labels(error.category).inc()
            log.info("refused: %s", error.category)
        return message_of(error)

    @contextmanager
    def decoding(self, ticket: Ticket) -> Generator[None]:
        """Wait until another image may be decoded. Making the job belongs inside: it shrinks the image.

        Raises:
            Disconnected, TimedOut: the request has ended meanwhile.
        """
        with self._decoding:
            ticket.check()
            yield

    def open_image(self, content: bytes) -> PIL_Image.Image:
        """Decode an image that was sent.

        Raises:
            ValueError: it is no image, or too large.
            Refusal: a filter refuses it.
        """
        image = decode_upload(content, self.limits.pixels)
        self.safety.check_images([image])
        return image

    def run(self, ticket: Ticket, job: Job[Any]) -> list[PIL_Image.Image]:
        """Run a job that gives one image or a list of images.

        Raises:
            Disconnected: the client has disconnected.
            TimedOut: the request has timed out.
            Refusal: a filter refuses an image.
        """
        images: list[PIL_Image.Image] = listed(self.model.run(job, ticket.watch))
        self.check_generated(images)
        return images

    def stream_text(self, ticket: Ticket, job: Job[str]) -> Generator[str]:
        """Run a job that gives a text, and yield the text in pieces. Raises as `run` does."""
        for piece in ticket.watch(self.model.stream(job)):
            yield str(piece.content)
        self.metrics.texts.inc()


async def state_of(request: Request) -> State:  # async: a plain function would take a thread of the pool
    """The state of the server that a request belongs to."""
    return request.app.state.server


ServerState = Annotated[State, Depends(state_of)]


def plan_of(image: PIL_Image.Image) -> str | None:
    """The plan that an image was drawn from, where there is one."""
    return image.info.get("plan")


def chosen_seed(seed: int | None) -> int:
    """The request's seed, or a random one."""
    return random.getrandbits(32) if seed is None else seed
