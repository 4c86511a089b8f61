"""POST /v1/embeddings: the mean of a language model's last hidden states, which no training made for comparing texts."""

from __future__ import annotations

import array
import base64
import sys

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.server.answering import JsonResponse
from qwenkit.server.bodies import read_body
from qwenkit.server.embedding import embed_prompts
from qwenkit.server.errors import refuse
from qwenkit.server.openai.completions import split_prompts
from qwenkit.server.openai.schema import EmbeddingBody
from qwenkit.server.service import Service


async def embeddings(http: HttpRequest) -> Response:
    """Vectors of texts."""
    service: Service = http.app.state.service
    body = await read_body(http, EmbeddingBody, service.options.max_body_bytes)
    if body.dimensions is not None:
        sentence = "dimensions is not offered: vectors of this model cannot be cut; leave it out"
        raise refuse(sentence, "dimensions", "unsupported_field")
    prompts = split_prompts(body.input, "input")
    found = await embed_prompts(service, http, body.model, prompts, "input")
    encode = _base64 if body.encoding_format == "base64" else list
    data = [{"object": "embedding", "index": n, "embedding": encode(v)} for n, v in enumerate(found.vectors)]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    model = body.model or service.names[0]
    return JsonResponse({"object": "list", "data": data, "model": model, "usage": usage})


def _base64(vector: list[float]) -> str:
    """Little-endian 32-bit numbers, as clients unpack them."""
    data = array.array("f", vector)
    if sys.byteorder == "big":
        data.byteswap()
    return base64.b64encode(data.tobytes()).decode()
