"""The ASGI application that serves a backend: endpoints, errors in one shape, the description of it all, and the gate."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from qwenkit._version import __version__
from qwenkit.backends.base import Backend
from qwenkit.core.errors import QwenkitError, did_you_mean
from qwenkit.server.endpoints import chosen
from qwenkit.server.errors import ApiError, ClientGone, describe
from qwenkit.server.exchange import CLIENT_GONE, Exchange
from qwenkit.server.gate import OPEN_PATHS, Gate
from qwenkit.server.options import ServerOptions
from qwenkit.server.paths import Paths
from qwenkit.server.protocol import Endpoint, Handler, Protocol
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


def create_app(
    backend: Backend, options: ServerOptions | None = None, *, pages: Mapping[str, Handler] | None = None
) -> Gate:
    """An ASGI application.

    Args:
        backend: what is served; whoever opened it closes it.
        options: limits and switches.
        pages: for each path of a page, what answers its GET; nobody needs a key for them.

    Returns:
        The application; ``service`` has its shared state.

    Raises:
        InputError: the options name a protocol that does not exist.
    """
    service = Service(backend, options or ServerOptions())
    # No pages for browsers: they would load scripts from elsewhere.
    app = FastAPI(title="qwenkit", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    protocols = chosen(service.options.protocols)
    service.aliases = frozenset(name for protocol in protocols for name in protocol.model_names)
    pages = pages or {}
    paths = Paths(protocols, pages)
    app.state.paths = paths
    for path, handler in pages.items():
        app.add_route(path, handler, methods=["GET"], include_in_schema=False)
    _add_all(app, protocols, pages, has_keys=bool(service.options.api_keys))
    for kind in (ApiError, QwenkitError, HTTPException, ClientGone, Exception):
        app.add_exception_handler(kind, _answer_error)
    components: dict[str, Any] = {}
    inner = app.openapi

    def openapi() -> dict[str, Any]:
        schema = inner()
        if not components:
            components.update(_body_schemas(protocols))
        found = schema.setdefault("components", {})
        found.setdefault("schemas", {}).update(components)
        if service.options.api_keys:
            found["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    return Gate(app, service, paths, OPEN_PATHS | pages.keys())


def _add_all(app: FastAPI, protocols: Sequence[Protocol], pages: Collection[str], *, has_keys: bool) -> None:
    """Protocols may share an endpoint, which the first that names it answers; pages go before all."""
    sharing: dict[tuple[str, str], list[tuple[Protocol, Endpoint]]] = {}
    for protocol in protocols:
        for endpoint in protocol.endpoints:
            if endpoint.path not in pages or endpoint.method not in ("GET", "HEAD"):
                sharing.setdefault((endpoint.path, endpoint.method), []).append((protocol, endpoint))
    for (path, _), found in sharing.items():
        _add(app, found, needs_key=has_keys and path not in OPEN_PATHS)


def _add(app: FastAPI, sharing: Sequence[tuple[Protocol, Endpoint]], *, needs_key: bool) -> None:
    """One endpoint, described as all protocols that have it say."""
    protocols, endpoint = [protocol for protocol, _ in sharing], sharing[0][1]
    extra: dict[str, Any] = {"security": [{_KEY: []}]} if needs_key else {}
    names = dict.fromkeys(e.body.__name__ for _, e in sharing if e.body is not None)
    if names:
        schemas = [{"$ref": _SCHEMAS.format(model=name)} for name in names]
        body = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
        extra["requestBody"] = {"required": True, "content": {"application/json": body}}
    if parts := _PARAMETER.findall(endpoint.path):
        extra["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parts
        ]
    model = functools.reduce(operator.or_, dict.fromkeys(p.error_model for p in protocols))
    statuses = _ERRORS | {status: text for p in protocols for status, text in p.errors.items()}
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": model, "description": text} for status, text in statuses.items()
    }
    kinds = dict.fromkeys(kind for _, e in sharing for kind in e.media_types)
    success = {"description": "Done.", "content": {kind: {} for kind in kinds}}
    app.add_api_route(
        endpoint.path,
        endpoint.handler,
        methods=[endpoint.method],
        response_model=None,
        response_class=Response,
        responses={200: success, **errors},
        openapi_extra=extra,
        tags=[protocol.name for protocol in protocols],
        summary=(endpoint.handler.__doc__ or "").strip().partition("\n")[0],
    )


def _body_schemas(protocols: Sequence[Protocol]) -> dict[str, Any]:
    bodies = [e.body for protocol in protocols for e in protocol.endpoints if e.body is not None]
    models = [(body, "validation") for body in dict.fromkeys(bodies)]
    _, definitions = models_json_schema(models, ref_template=_SCHEMAS)  # type: ignore[arg-type]
    found: dict[str, Any] = definitions["$defs"]
    return found


async def _answer_error(http: Request, error: Exception) -> Response:
    if isinstance(error, ClientGone):
        return Response(status_code=CLIENT_GONE)
    if isinstance(error, HTTPException):
        error = _routing_error(http, error)
    told, exchange = describe(error), Exchange.of(http.scope)
    body = exchange.render_error(told, exchange.request_id)
    return Response(body, told.status, told.headers, "application/json")


def _routing_error(http: Request, error: HTTPException) -> ApiError:
    path = http.url.path
    if error.status_code == 404:
        hint = did_you_mean(path, http.app.state.paths.names)
        return ApiError(
            404, f"there is nothing at {path!r:.200}{hint or '; see /openapi.json'}", code="not_found"
        )
    if error.status_code == 405:
        allowed = ", ".join(_methods_at(http)) or "another method"
        message = f"{http.method} is not possible at {path!r:.200}; use {allowed}"
        return ApiError(405, message, code="method_not_allowed", headers={"allow": allowed})
    return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def _methods_at(http: Request) -> list[str]:
    """The methods of a path, which may have several routes."""
    routes = [
        r for r in http.app.routes if isinstance(r, Route) and r.matches(http.scope)[0] is Match.PARTIAL
    ]
    plain = [route for route in routes if "{" not in route.path]  # a path of its own goes before patterns
    return sorted({method for route in plain or routes for method in route.methods or ()})
