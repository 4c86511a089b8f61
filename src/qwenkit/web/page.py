"""Answers requests for the files of the chat page. Knows nothing of the server they are put into, nor of its API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from qwenkit.web.files import Asset, read_assets

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing comes from elsewhere, and nothing runs or is styled from within the document."""
_ALWAYS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # Asked for every time: modules of one version must never meet those of another.
    "cache-control": "no-cache",
    "vary": "Accept-Encoding",
}


def page_handlers(assets: Mapping[str, Asset] | None = None) -> dict[str, Handler]:
    """For each path of the page, what answers its GET and HEAD.

    Args:
        assets: the files by path; those of the package unless given.
    """
    found = read_assets() if assets is None else assets
    return {path: _handler(asset) for path, asset in found.items()}


def _handler(asset: Asset) -> Handler:
    async def send(request: Request) -> Response:
        return _answer(asset, request.headers)

    return send


def _answer(asset: Asset, asked: Mapping[str, str]) -> Response:
    packed = asset.packed if _takes_gzip(asked.get("accept-encoding", "")) else None
    headers = _ALWAYS | {"etag": f'"{asset.digest}{"" if packed is None else "-gzip"}"'}
    if _is_known(asset, asked.get("if-none-match", "")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    headers["content-type"] = asset.content_type
    if packed is None:
        return Response(asset.content, headers=headers)
    return Response(packed, headers=headers | {"content-encoding": "gzip"})


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in ("gzip", "*"):
            return weight.replace(" ", "").rstrip("0.") not in ("q=", "q")
    return False


def _is_known(asset: Asset, tags: str) -> bool:
    """Whether the client has the file already, packed or not."""
    known = {"*", f'"{asset.digest}"', f'"{asset.digest}-gzip"'}
    return any(tag.strip().removeprefix("W/") in known for tag in tags.split(","))
