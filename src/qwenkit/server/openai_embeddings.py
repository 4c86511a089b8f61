"""POST /v1/embeddings: the mean of a language model's last hidden states, which no training made for comparing texts."""

from __future__ import annotations

import array
import base64
import sys
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.server.answering import JsonResponse
from qwenkit.server.bodies import read_body
from qwenkit.server.errors import ApiError, refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.openai_completions import encode_raw, split_prompts
from qwenkit.server.openai_schema import EmbeddingBody
from qwenkit.server.service import Service


async def embeddings(http: HttpRequest) -> Response:
    """Vectors of texts."""
    service: Service = http.app.state.service
    body = await read_body(http, EmbeddingBody, service.options.max_body_bytes)
    if service.adapter_of(body.model) is not None:
        raise refuse("embeddings are of the model itself; name it instead of an adapter", "model")
    if body.dimensions is not None:
        sentence = "dimensions is not offered: vectors of this model cannot be cut; leave it out"
        raise refuse(sentence, "dimensions", "unsupported_field")
    prompts = split_prompts(body.input, "input")
    watch = service.watch(http.receive)
    try:
        value = await watch.run(_embed(service, prompts, Exchange.of(http.scope)))
    finally:
        watch.close()
    encode = _base64 if body.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": n, "embedding": encode(v)} for n, v in enumerate(value["vectors"])
    ]
    usage = {"prompt_tokens": value["tokens"], "total_tokens": value["tokens"]}
    model = body.model or service.names[0]
    return JsonResponse({"object": "list", "data": data, "model": model, "usage": usage})


async def _embed(service: Service, prompts: list[str | list[int]], exchange: Exchange) -> dict[str, Any]:
    encode = partial(encode_raw, service.backend.tokenizer)
    ids = await service.prepare(lambda: [encode(p) if isinstance(p, str) else p for p in prompts])
    limit = service.backend.info.vocab_size
    for one in ids:
        if any(not 0 <= i < limit for i in one):
            raise refuse(f"input holds an id outside 0 to {limit - 1}; use ids of this model", "input")
    tokens = sum(map(len, ids))
    exchange.count(tokens, 0)
    vectors = await service.compute(service.backend.embed, ids)
    if any(value != value for vector in vectors for value in vector):
        raise ApiError(500, "the vectors hold NaN; load the model with --dtype float32", code="engine_error")
    return {"vectors": vectors, "tokens": tokens}


def _base64(vector: list[float]) -> str:
    """Little-endian 32-bit numbers, as clients unpack them."""
    data = array.array("f", vector)
    if sys.byteorder == "big":
        data.byteswap()
    return base64.b64encode(data.tobytes()).decode()
