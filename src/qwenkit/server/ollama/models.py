"""What there is, in Ollama's shape: models, versions, vectors; and what would change models, which is refused."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.server.answering import JsonResponse
from qwenkit.server.bodies import read_body
from qwenkit.server.embedding import Vectors, embed_prompts
from qwenkit.server.errors import ApiError, refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.ollama.fields import find_model, shown_name
from qwenkit.server.ollama.reply import nanoseconds, timestamp
from qwenkit.server.ollama.schema import (
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
    OllamaShowBody,
)
from qwenkit.server.service import Service
from qwenkit.server.token_text import encode_raw

API_VERSION = "0.12.11"
"""The version of Ollama whose interface this is; clients compare it with what they need."""
_NEVER = "9999-12-31T23:59:59Z"


async def running(http: HttpRequest) -> Response:
    """Says that somebody is there."""
    return Response("Ollama's protocol is spoken here", media_type="text/plain")


async def version(http: HttpRequest) -> Response:
    """The version of the interface."""
    return JsonResponse({"version": API_VERSION})


async def tags(http: HttpRequest) -> Response:
    """The model under all its names, and its adapters."""
    service: Service = http.app.state.service
    names = [*service.names, *service.backend.adapters]
    return JsonResponse(
        {"models": [_entry(service, n) | {"modified_at": timestamp(service.started)} for n in names]}
    )


async def ps(http: HttpRequest) -> Response:
    """The same: all that there is stays loaded."""
    service: Service = http.app.state.service
    about = service.backend.info
    size = _size(service) if about.device.startswith("cuda") else 0
    more = {"expires_at": _NEVER, "size_vram": size, "context_length": about.context_length}
    names = [*service.names, *service.backend.adapters]
    return JsonResponse({"models": [_entry(service, name) | more for name in names]})


def _entry(service: Service, name: str) -> dict[str, Any]:
    about = service.backend.info
    what = f"{name}|{about.model}|{about.dtype}|{about.details.get('quantisation')}"
    return {
        "name": shown_name(name),
        "model": shown_name(name),
        "size": _size(service),
        "digest": hashlib.sha256(what.encode("utf-8", "replace")).hexdigest(),
        "details": _details(service, name),
    }


def _size(service: Service) -> int:
    return int(service.backend.info.details.get("weights_bytes") or 0)


def _details(service: Service, name: str) -> dict[str, Any]:
    about = service.backend.info
    return {
        "parent_model": "" if name in service.names else shown_name(service.names[0]),
        "format": about.details.get("format") or "",
        "family": about.family,
        "families": [about.family],
        "parameter_size": _readable(about.details.get("num_params") or 0),
        "quantization_level": about.details.get("quantisation") or about.dtype,
    }


def _readable(count: int) -> str:
    """A number of parameters in few digits, such as 1.8B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return str(count) if count else ""


async def show(http: HttpRequest) -> Response:
    """What is known of one model."""
    service: Service = http.app.state.service
    body = await read_body(http, OllamaShowBody, service.options.max_body_bytes, any_type=True)
    wanted = body.model or body.name
    if not wanted:
        raise refuse("model is missing; it is required", "model", "missing_field")
    adapter = find_model(service, wanted)
    backend, about = service.backend, service.backend.info
    template = (getattr(backend.tokenizer, "chat_template", None) or "") if about.can_chat else ""
    return JsonResponse(
        {
            "modelfile": f"FROM {about.model}\n",
            "parameters": _parameters(service),
            "template": template,
            "details": _details(service, adapter or service.names[0]),
            "model_info": {
                "general.architecture": about.family,
                "general.basename": adapter or service.names[0],
                "general.parameter_count": about.details.get("num_params") or 0,
                f"{about.family}.context_length": about.context_length,
            },
            "capabilities": _capabilities(service),
            "modified_at": timestamp(service.started),
        }
    )


def _parameters(service: Service) -> str:
    """Sampling as the model wants it, in the words of a Modelfile."""
    defaults, context_length = service.backend.info.defaults, service.backend.info.context_length
    values = {
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repeat_penalty": defaults.repetition_penalty,
        "num_ctx": context_length,
    }
    return "\n".join(f"{name:30} {value}" for name, value in values.items() if value is not None)


def _capabilities(service: Service) -> list[str]:
    template = service.backend.template
    found = ["completion"]
    if service.backend.info.can_chat:
        found.append("tools")
    if template is not None and template.writes_thoughts:
        found.append("thinking")
    return found


async def embed(http: HttpRequest) -> Response:
    """Vectors of texts."""
    service: Service = http.app.state.service
    body = await read_body(http, OllamaEmbedBody, service.options.max_body_bytes, any_type=True)
    if body.dimensions:
        sentence = "dimensions is not offered: vectors of this model cannot be cut; leave it out"
        raise refuse(sentence, "dimensions", "unsupported_field")
    texts = ([body.input] if body.input else []) if isinstance(body.input, str) else body.input
    found = await _embed(http, body.model, texts, "input", truncate=body.truncate is not False)
    exchange = Exchange.of(http.scope)
    return JsonResponse(
        {
            "model": body.model,
            "embeddings": found.vectors,
            "total_duration": nanoseconds(time.perf_counter() - exchange.started),
            "load_duration": 0,
            "prompt_eval_count": found.tokens,
        }
    )


async def embeddings(http: HttpRequest) -> Response:
    """The vector of one text."""
    service: Service = http.app.state.service
    body = await read_body(http, OllamaEmbeddingsBody, service.options.max_body_bytes, any_type=True)
    found = await _embed(http, body.model, [body.prompt] if body.prompt else [], "prompt", truncate=True)
    return JsonResponse({"embedding": found.vectors[0] if found.vectors else []})


async def _embed(http: HttpRequest, model: str, texts: list[str], name: str, *, truncate: bool) -> Vectors:
    service: Service = http.app.state.service
    adapter, context_length = find_model(service, model), service.backend.info.context_length
    if not all(texts):
        raise refuse(f"{name} holds an empty text; leave it out", name, "invalid_value")
    if not texts:
        return Vectors([], 0)

    def encode() -> list[list[int]]:
        ids = (list(encode_raw(service.backend.tokenizer, text)) for text in texts)
        return [each[:context_length] if truncate else each for each in ids]

    return await embed_prompts(service, http, adapter, await service.prepare(encode), name)


async def change(http: HttpRequest) -> Response:
    """Refuses to change what is served."""
    message = "models are not changed over HTTP here; stop the server and start it with the model you want"
    raise ApiError(403, message, code="read_only")
