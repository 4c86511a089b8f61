"""POST /generate, which two protocols have: the body says which of them its client speaks."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.server.bodies import Body, read_some_body
from qwenkit.server.errors import refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.sampling import either
from qwenkit.server.service import Service
from qwenkit.server.tgi import handlers as tgi
from qwenkit.server.tgi.schema import TgiBody
from qwenkit.server.tgi.shapes import tgi_statuses
from qwenkit.server.vllm_demo import handlers as vllm_demo
from qwenkit.server.vllm_demo.reply import error_body
from qwenkit.server.vllm_demo.schema import DemoBody

TGI, VLLM_DEMO = "tgi", "vllm-demo"
"""Names of the two."""


async def generate(http: HttpRequest) -> Response:
    """Continues a text: "inputs" of text-generation-inference, or the "prompt" of vLLM's demo server."""
    service: Service = http.app.state.service
    spoken = service.options.protocols or (TGI, VLLM_DEMO)
    exchange = Exchange.of(http.scope)

    def choose(value: dict[str, Any]) -> type[Body]:
        if VLLM_DEMO in spoken and (TGI not in spoken or ("prompt" in value and "inputs" not in value)):
            exchange.render_error = error_body
            return DemoBody
        return TgiBody

    if TGI not in spoken:
        return await _demo(http, await read_some_body(http, choose, service.options.max_body_bytes))
    # Until the body is read, nobody knows better; then errors of the demo's bodies keep their status.
    with tgi_statuses(unless=lambda: exchange.render_error is error_body):
        body = await read_some_body(http, choose, service.options.max_body_bytes)
        if isinstance(body, TgiBody):
            return await tgi.answer(http, body, is_stream=either(body.stream, False))
        return await _demo(http, body)


async def _demo(http: HttpRequest, body: Body) -> Response:
    if not isinstance(body, DemoBody):
        raise refuse("prompt is missing; it is required", "prompt", "missing_field")
    return await vllm_demo.answer(http, body)
