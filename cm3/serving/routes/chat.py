"""POST /v1/chat/completions: questions about an image, and images from words or from another image."""

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import iterate_in_threadpool

from cm3.engine.options import AnswerOptions, EditOptions, GenerateOptions
from cm3.serving.admission import Ticket, TimedOut
from cm3.serving.middleware import EventStream
from cm3.serving.schemas import Chat, chunk, completion, data_url_content, encode_png, event, read_conversation
from cm3.serving.state import SECURED, ServerState, State, plan_of
from cm3.tasks.job import Job

router = APIRouter(prefix="/v1/chat", **SECURED)


@router.post("/completions")
async def completions(request: Request, body: Chat, state: ServerState) -> Any:
    state.check_model(body.model)
    reply = Reply(state, body)
    with ExitStack() as stack:
        ticket = stack.enter_context(state.admission.admit(1))
        if body.stream:
            job = await state.admission.run(ticket, request.is_disconnected, lambda: reply.job(ticket))
            return EventStream(iterate_in_threadpool(reply.events(ticket, job)), ticket, stack.pop_all().close)
        message = await state.admission.run(
            ticket, request.is_disconnected, lambda: reply.message(ticket, reply.job(ticket))
        )
        return completion(reply.id, reply.created, state.name, message)


class Reply:
    """The assistant's reply to one chat request: a text, or an image where the request's modalities have one."""

    def __init__(self, state: State, body: Chat) -> None:
        self.state, self.body = state, body
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.is_image = "image" in body.modalities

    def job(self, ticket: Ticket) -> Job[Any]:
        """The job that makes the reply.

        Raises:
            ValueError: the conversation asks for nothing that the model can do.
            Refusal: a filter refuses a text or the image.
        """
        state, sampling = self.state, self.body.options()
        turn = read_conversation(self.body, state.limits.images)
        if not self.is_image and turn.url is None:
            raise ValueError('messages: send an image to ask about, or ask for one with "modalities": ["image"]')
        state.check_prompt(turn.words, *(question for question, _ in turn.history))
        if turn.url is None:
            return state.model.jobs.generate(turn.words, GenerateOptions(normalise=self.body.normalise, **sampling))
        with state.decoding(ticket):
            image = state.open_image(data_url_content(turn.url))
            if self.is_image:
                return state.model.jobs.edit(image, turn.words, EditOptions(normalise=self.body.normalise, **sampling))
            return state.model.jobs.answer(image, turn.words, AnswerOptions(history=turn.history, **sampling))

    def message(self, ticket: Ticket, job: Job[Any]) -> dict[str, Any]:
        """The reply's message without its role."""
        if not self.is_image:
            return {"content": "".join(self.state.stream_text(ticket, job)).strip()}
        [image] = self.state.run(ticket, job)
        url = f"data:image/png;base64,{encode_png(image, 'auto')}"
        return {"content": plan_of(image) or "", "images": [{"type": "image_url", "image_url": {"url": url}}]}

    def events(self, ticket: Ticket, job: Job[Any]) -> Iterator[str]:
        """The server-sent events of a streamed reply. An error becomes the last event."""
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            if self.is_image:
                yield self._chunk(self.message(ticket, job))
            else:
                for text in self.state.stream_text(ticket, job):
                    yield self._chunk({"content": text})
            yield self._chunk({}, end=True)
            yield "data: [DONE]\n\n"
        except (ValueError, TimedOut) as error:
            yield event({"error": {"message": self.state.message(error), "type": "server_error"}})

    def _chunk(self, delta: dict[str, Any], end: bool = False) -> str:
        return event(chunk(self.id, self.created, self.state.name, delta, end))
