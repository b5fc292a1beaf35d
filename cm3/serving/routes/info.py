"""GET /v1/models, /health and /metrics."""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cm3.serving.schemas import ModelCard, Models
from cm3.serving.state import SECURED, ServerState

router = APIRouter()


@router.get("/v1/models", response_model=Models, **SECURED)
async def models(state: ServerState) -> Models:
    return Models(data=[ModelCard(id=state.name, created=state.started)])


@router.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/metrics")
async def metrics(state: ServerState) -> Response:
    return PlainTextResponse(generate_latest(state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
