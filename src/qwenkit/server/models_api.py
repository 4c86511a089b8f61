"""GET /v1/models and /v1/models/{id}, which two protocols have at the same paths: a header says whose client asks."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.server.anthropic import models as anthropic_models
from qwenkit.server.anthropic.shapes import error_body
from qwenkit.server.exchange import Exchange
from qwenkit.server.openai import models as openai_models


async def list_models(http: HttpRequest) -> Response:
    """The model and its adapters."""
    if _is_anthropic(http):
        return await anthropic_models.list_models(http)
    return await openai_models.list_models(http)


async def show_model(http: HttpRequest) -> Response:
    """One model by its name."""
    if _is_anthropic(http):
        return await anthropic_models.show_model(http)
    return await openai_models.show_model(http)


def _is_anthropic(http: HttpRequest) -> bool:
    if anthropic_models.VERSION_HEADER not in http.headers:
        return False
    Exchange.of(http.scope).render_error = error_body
    return True
