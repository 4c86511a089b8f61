"""/health, /version and /metrics: for supervisors, not for clients."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit._version import __version__
from qwenkit.server.answering import JsonResponse
from qwenkit.server.metrics import CONTENT_TYPE
from qwenkit.server.service import Service


async def health(http: HttpRequest) -> Response:
    """200 while requests are taken, 503 once the server is stopping."""
    service: Service = http.app.state.service
    if service.is_draining:
        return JsonResponse({"status": "draining"}, 503)
    return JsonResponse({"status": "ok"})


async def version(http: HttpRequest) -> Response:
    """The version of the server."""
    return JsonResponse({"version": __version__})


async def metrics(http: HttpRequest) -> Response:
    """Numbers for Prometheus."""
    service: Service = http.app.state.service
    return Response(service.metrics.page(), headers={"content-type": CONTENT_TYPE})
