"""The ASGI application that serves a backend: endpoints, errors in one shape, the description of it all, and the gate."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from qwenkit._version import __version__
from qwenkit.backends.base import Backend
from qwenkit.core.errors import QwenkitError, did_you_mean
from qwenkit.server.endpoints import ENDPOINTS, Endpoint
from qwenkit.server.errors import ApiError, ClientGone, describe
from qwenkit.server.exchange import CLIENT_GONE
from qwenkit.server.gate import OPEN_PATHS, Gate
from qwenkit.server.openai_schema import ErrorBody
from qwenkit.server.openai_shapes import error_body
from qwenkit.server.options import ServerOptions
from qwenkit.server.service import Service

_PARAMETER = re.compile(r"\{(\w+)")
_KEY = "key"
_SCHEMAS = "#/components/schemas/{model}"
_ERRORS = {
    400: "The request cannot be honoured.",
    401: "The API key is missing or wrong.",
    403: "It is switched off on this server.",
    404: "There is no such model or path.",
    405: "The path has another method.",
    408: "The request did not come to its end.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests wait.",
    431: "The headers are too large.",
    500: "The engine failed.",
    503: "The server is stopping.",
    504: "The request took too long.",
}


def create_app(backend: Backend, options: ServerOptions | None = None) -> Gate:
    """An ASGI application.

    Args:
        backend: what is served; whoever opened it closes it.
        options: limits and switches.

    Returns:
        The application; ``service`` has its shared state.
    """
    service = Service(backend, options or ServerOptions())
    # No pages for browsers: they would load scripts from elsewhere.
    app = FastAPI(title="qwenkit", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    for endpoint in ENDPOINTS:
        _add(app, endpoint, needs_key=bool(service.options.api_keys) and endpoint.path not in OPEN_PATHS)
    for kind in (ApiError, QwenkitError, HTTPException, ClientGone, Exception):
        app.add_exception_handler(kind, _answer_error)
    components: dict[str, Any] = {}
    inner = app.openapi

    def openapi() -> dict[str, Any]:
        schema = inner()
        if not components:
            components.update(_body_schemas())
        found = schema.setdefault("components", {})
        found.setdefault("schemas", {}).update(components)
        if service.options.api_keys:
            found["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    return Gate(app, service, error_body, [e.path for e in ENDPOINTS])


def _add(app: FastAPI, endpoint: Endpoint, *, needs_key: bool) -> None:
    extra: dict[str, Any] = {"security": [{_KEY: []}]} if needs_key else {}
    if endpoint.body is not None:
        reference = {"$ref": _SCHEMAS.format(model=endpoint.body.__name__)}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    if names := _PARAMETER.findall(endpoint.path):
        extra["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": text} for status, text in _ERRORS.items()
    }
    success = {"description": "Done.", "content": {kind: {} for kind in endpoint.media_types}}
    app.add_api_route(
        endpoint.path,
        endpoint.handler,
        methods=[endpoint.method],
        response_model=None,
        response_class=Response,
        responses={200: success, **errors},
        openapi_extra=extra,
        summary=(endpoint.handler.__doc__ or "").strip().partition("\n")[0],
    )


def _body_schemas() -> dict[str, Any]:
    models = [(endpoint.body, "validation") for endpoint in ENDPOINTS if endpoint.body is not None]
    _, definitions = models_json_schema(models, ref_template=_SCHEMAS)  # type: ignore[arg-type]
    found: dict[str, Any] = definitions["$defs"]
    return found


async def _answer_error(http: Request, error: Exception) -> Response:
    if isinstance(error, ClientGone):
        return Response(status_code=CLIENT_GONE)
    if isinstance(error, HTTPException):
        error = _routing_error(http, error)
    told = describe(error)
    return Response(error_body(told), told.status, told.headers, "application/json")


def _routing_error(http: Request, error: HTTPException) -> ApiError:
    path = http.url.path
    if error.status_code == 404:
        hint = did_you_mean(path, [e.path for e in ENDPOINTS])
        return ApiError(
            404, f"there is nothing at {path!r:.200}{hint or '; see /openapi.json'}", code="not_found"
        )
    if error.status_code == 405:
        headers = dict(error.headers or {})
        allowed = headers.get("Allow") or headers.get("allow") or "another method"
        message = f"{http.method} is not possible at {path!r:.200}; use {allowed}"
        return ApiError(405, message, code="method_not_allowed", headers=headers)
    return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
