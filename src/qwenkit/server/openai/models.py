"""Models and adapters: what there is, and loading and dropping adapters while the server runs."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.core.errors import QwenkitError
from qwenkit.server.answering import JsonResponse
from qwenkit.server.bodies import read_body
from qwenkit.server.errors import ApiError, refuse
from qwenkit.server.openai.schema import LoadAdapterBody, UnloadAdapterBody
from qwenkit.server.service import Service


async def list_models(http: HttpRequest) -> Response:
    """The model and its adapters."""
    service: Service = http.app.state.service
    names = [*service.names, *service.backend.adapters]
    return JsonResponse({"object": "list", "data": [_model(service, name) for name in names]})


async def show_model(http: HttpRequest) -> Response:
    """One model by its name."""
    service: Service = http.app.state.service
    name = http.path_params["model"]
    service.adapter_of(name, is_shown=True)  # raises where there is none
    return JsonResponse(_model(service, name))


def _model(service: Service, name: str) -> dict[str, Any]:
    adapter = None if name in service.names else name
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "qwenkit",
        "root": service.backend.info.model if adapter is None else adapter,
        "parent": None if adapter is None else service.names[0],
        "max_model_len": service.backend.info.context_length,
    }


async def load_adapter(http: HttpRequest) -> Response:
    """Loads an adapter from a folder of this machine; its name then is a model."""
    service: Service = http.app.state.service
    body = await read_body(http, LoadAdapterBody, service.options.max_body_bytes)
    _check_allowed(service)
    if body.lora_name in service.names:
        raise refuse(f"lora_name={body.lora_name!r} is the model's own name; use another", "lora_name")
    try:
        await service.compute(service.backend.load_adapter, body.lora_name, body.lora_path)
    except QwenkitError as error:
        raise refuse(str(error), "lora_path", "adapter_not_loaded") from None
    return JsonResponse({"status": "loaded", "lora_name": body.lora_name})


async def unload_adapter(http: HttpRequest) -> Response:
    """Drops an adapter; requests that use it run to their end."""
    service: Service = http.app.state.service
    body = await read_body(http, UnloadAdapterBody, service.options.max_body_bytes)
    _check_allowed(service)
    if body.lora_name not in service.backend.adapters:
        message = f"the adapter {body.lora_name!r:.200} is not loaded; /v1/models lists those that are"
        raise ApiError(404, message, param="lora_name", code="model_not_found")
    await service.compute(service.backend.unload_adapter, body.lora_name)
    return JsonResponse({"status": "unloaded", "lora_name": body.lora_name})


def _check_allowed(service: Service) -> None:
    if not service.options.allow_lora_loading:
        message = "adapters cannot be changed on this server; start it with --allow-lora-loading to allow it"
        raise ApiError(403, message, code="lora_loading_off")
