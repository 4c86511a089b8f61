"""Responses that are kept: GET and DELETE /v1/responses/{id}, cancelling, listing what they answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.server.answering import JsonResponse
from qwenkit.server.errors import ApiError, refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.responses.background import Follower, Run
from qwenkit.server.responses.items import Finder, Item
from qwenkit.server.service import Service
from qwenkit.server.sse import EventStream, to_json

_MAX_PAGE = 100


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A response with all that it answered."""

    response: dict[str, Any]
    items: list[Item]
    """The whole conversation before it, so that no other response is needed to go on from it."""
    items_size: int
    """Bytes of it."""
    run: Run | None = None
    """Of a response in the background."""

    @property
    def size(self) -> int:
        """Bytes it takes, about; what it shares with others counts in full."""
        events = self.run.size if self.run is not None else 0
        return self.items_size + len(to_json(self.response)) + events


def keep(service: Service, owner: bytes | None, kept: Kept) -> None:
    """Keeps a response; what goes for it is ended."""
    for dropped in service.stored.put(kept.response["id"], owner, kept, kept.size):
        _end(service, dropped)


def context_of(service: Service, owner: bytes | None, id_: str | None) -> list[Item]:
    """The conversation up to a response, with it; nothing where none is named.

    Raises:
        ApiError: there is no such response, or it has not ended.
    """
    if id_ is None:
        return []
    kept = _find(service, owner, id_, "previous_response_id")
    if kept.response["status"] not in ("completed", "incomplete"):
        status = kept.response["status"]
        sentence = f"previous_response_id={id_!r:.80} is {status}; go on from one that is completed"
        raise refuse(sentence, "previous_response_id", "invalid_value")
    return [*kept.items, *kept.response["output"]]


def item_finder(service: Service, owner: bytes | None) -> Finder:
    """Finds items of all responses that are kept for the same key; looks through them once, when first asked.

    It may be asked in another thread.
    """
    known: dict[str, Item] = {}
    all_kept = list(service.stored.all_of(owner))

    def find(id_: str) -> Item | None:
        if not known:
            for kept in all_kept:
                for item in (*kept.response["output"], *kept.items):
                    known.setdefault(item["id"], item)
        return known.get(id_)

    return find


def _find(service: Service, owner: bytes | None, id_: str, field: str | None = None) -> Kept:
    kept = service.stored.get(id_, owner)
    if not isinstance(kept, Kept):
        sentence = f"the response {id_!r:.80} is not kept here; it was never stored, deleted, or dropped for newer ones"
        raise ApiError(404, sentence, param=field, code="response_not_found")
    return kept


def _of(http: HttpRequest) -> tuple[Service, Kept]:
    """The response that a path names."""
    service: Service = http.app.state.service
    return service, _find(service, Exchange.of(http.scope).key, http.path_params["id"])


async def retrieve(http: HttpRequest) -> Response:
    """A response by its id; one in the background as far as it has come, or its events."""
    service, kept = _of(http)
    query = http.query_params
    if query.get("stream", "false") not in ("true", "false"):
        raise refuse(f"stream={query['stream']!r:.40} is not possible; use true or false", "stream")
    after = _number(query.get("starting_after"), "starting_after", -1)
    if query.get("stream") != "true":
        if "starting_after" in query:
            raise refuse("starting_after needs stream=true; leave it out, or stream", "starting_after")
        return JsonResponse(kept.response)
    if kept.run is None:
        sentence = "only responses made with background=true can be streamed again; leave stream out"
        raise refuse(sentence, "stream")
    follower = Follower(kept.run, after + 1)
    return EventStream(follower, follower, (), service.watch(http.receive))


async def delete(http: HttpRequest) -> Response:
    """Forgets a response, and ends it if it is under way."""
    service, kept = _of(http)
    service.stored.pop(kept.response["id"], Exchange.of(http.scope).key)
    _end(service, kept)
    return JsonResponse({"id": kept.response["id"], "object": "response", "deleted": True})


async def cancel(http: HttpRequest) -> Response:
    """Ends a response in the background; one that has ended stays as it is."""
    _, kept = _of(http)
    if kept.run is None:
        raise refuse("only responses made with background=true can be cancelled", code="not_in_background")
    await kept.run.cancel()
    return JsonResponse(kept.response)


async def input_items(http: HttpRequest) -> Response:
    """What a response answered, the newest first, page by page."""
    _, kept = _of(http)
    query = http.query_params
    order, after = query.get("order", "desc"), query.get("after")
    limit = _number(query.get("limit"), "limit", 20)
    if order not in ("asc", "desc"):
        raise refuse(f"order={order!r:.40} is not possible; use asc or desc", "order")
    if not 1 <= limit <= _MAX_PAGE:
        raise refuse(f"limit={limit} is not possible; use a number from 1 to {_MAX_PAGE}", "limit")
    items = kept.items if order == "asc" else kept.items[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise refuse(f"after={after!r:.80} is no item of this response; leave it out", "after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return JsonResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(page) < len(items),
        }
    )


def _number(given: str | None, name: str, default: int) -> int:
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise refuse(f"{name}={given!r:.40} is not possible; use a whole number", name, "invalid_value")
    return int(given)


def _end(service: Service, kept: Kept) -> None:
    if kept.run is not None and not kept.run.is_over:
        service.spawn(kept.run.cancel())
