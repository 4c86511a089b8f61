"""Models and adapters as clients of Anthropic's protocol list them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.server.answering import JsonResponse
from qwenkit.server.errors import refuse
from qwenkit.server.service import Service

VERSION_HEADER = "anthropic-version"
"""Every client of this protocol sends it."""
_MAX_PAGE = 1000


async def list_models(http: HttpRequest) -> Response:
    """The model and its adapters, page by page."""
    service: Service = http.app.state.service
    names = [*service.names, *service.backend.adapters]
    after, before = http.query_params.get("after_id"), http.query_params.get("before_id")
    if after is not None:
        names = names[_place(after, names, "after_id") + 1 :]
    if before is not None:
        names = names[: _place(before, names, "before_id")]
    limit = _limit(http)
    shown = names[-limit:] if before is not None and after is None else names[:limit]
    return JsonResponse(
        {
            "data": [_model(service, name) for name in shown],
            "has_more": len(shown) < len(names),
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
        }
    )


async def show_model(http: HttpRequest) -> Response:
    """One model by its name."""
    service: Service = http.app.state.service
    name = http.path_params["model"]
    service.adapter_of(name, is_shown=True)  # raises where there is none
    return JsonResponse(_model(service, name))


def _place(wanted: str, names: list[str], field: str) -> int:
    if wanted not in names:
        raise refuse(f"{field}={wanted!r:.80} is no model of this server; leave it out", field)
    return names.index(wanted)


def _limit(http: HttpRequest) -> int:
    given = http.query_params.get("limit", "20")
    if not (given.isascii() and given.isdigit() and len(given) < 5 and 1 <= int(given) <= _MAX_PAGE):
        raise refuse(f"limit={given!r:.40} is not possible; use a number from 1 to {_MAX_PAGE}", "limit")
    return int(given)


def _model(service: Service, name: str) -> dict[str, Any]:
    created = datetime.fromtimestamp(service.started, timezone.utc)
    context = service.backend.info.context_length
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": context,
        "max_tokens": context,
    }
