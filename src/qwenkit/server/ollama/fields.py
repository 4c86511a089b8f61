"""What the fields of an Ollama request mean for the engine: the model, sampling, thinking, the form of the answer."""

from __future__ import annotations

from typing import Any

from qwenkit.core.types import Constraint, SamplingParams
from qwenkit.server.bodies import refuse_fields
from qwenkit.server.conversation import template_knows
from qwenkit.server.errors import ApiError, refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.ollama.schema import REFUSED, REFUSED_OPTIONS, OllamaOptionsBody, OllamaRequestBody
from qwenkit.server.sampling import check_limit, check_logprobs, make_sampling, read_top_k
from qwenkit.server.service import Service

LATEST = ":latest"
_EFFORTS = ("low", "medium", "high", "max")
_NAMES = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
} | {
    name: f"options.{name}"
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "seed",
        "stop",
        "presence_penalty",
        "frequency_penalty",
    )
}


def find_model(service: Service, name: str) -> str | None:
    """The adapter that a name, with or without its tag, stands for; None is the model itself.

    Raises:
        ApiError: there is no such model.
    """
    known = (*service.names, *service.backend.adapters)
    wanted = name if name in known else name.removesuffix(LATEST)
    try:
        return service.adapter_of(wanted)
    except ApiError:
        message = f"model {name!r:.200} not found; here there is only {', '.join(known)}"
        raise ApiError(404, message, param="model", code="model_not_found") from None


def shown_name(name: str) -> str:
    """A name with its tag."""
    return name if ":" in name.rpartition("/")[2] else name + LATEST


def check_body(body: OllamaRequestBody, exchange: Exchange) -> None:
    """Refuses fields that cannot be honoured.

    Raises:
        ApiError: there is one.
    """
    refuse_fields(body, REFUSED)
    if body.options is not None:
        refuse_fields(body.options, REFUSED_OPTIONS, "options.")
    if body.keep_alive is not None:  # the model stays as long as the server
        exchange.ignored_fields.append("keep_alive")


def sampling_params(body: OllamaRequestBody, service: Service, exchange: Exchange) -> SamplingParams:
    """The engine's settings for a body.

    Raises:
        ApiError: a value is out of range.
    """
    options = body.options or OllamaOptionsBody()
    _check_context(options, service.backend.info.context_length, exchange)
    if body.top_logprobs and not body.logprobs:
        raise refuse("top_logprobs needs logprobs=true; leave it out, or set both", "top_logprobs")
    top = check_logprobs("top_logprobs", body.top_logprobs)
    settings: dict[str, Any] = {
        "max_tokens": _limit(options.num_predict),
        "temperature": options.temperature,
        "top_k": read_top_k(options.top_k),
        "top_p": options.top_p,
        "min_p": options.min_p,
        "seed": None if options.seed == -1 else options.seed,
        "stop": options.stop,
        "constraint": _constraint(body.format),
        "logprobs": (top or 0) if body.logprobs else None,
    }
    return make_sampling(_NAMES, **settings, **_penalties(options, service, exchange))


def _check_context(options: OllamaOptionsBody, context_length: int, exchange: Exchange) -> None:
    if options.num_ctx is None:
        return
    if not 0 < options.num_ctx <= context_length:
        sentence = f"options.num_ctx={options.num_ctx} is not possible: the context has {context_length} tokens; leave it out"
        raise refuse(sentence, "options.num_ctx", "invalid_value")
    exchange.ignored_fields.append("options.num_ctx")  # a larger one than asked for does no harm


def _limit(num_predict: int | None) -> int | None:
    """-1 is without end, -2 up to the end of the context: the same thing here."""
    return None if num_predict in (-1, -2) else check_limit("options.num_predict", num_predict)


def _penalties(options: OllamaOptionsBody, service: Service, exchange: Exchange) -> dict[str, float | None]:
    """Penalties look at all of prompt and reply, or at nothing."""
    penalties = {
        "repetition_penalty": options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
    }
    window = options.repeat_last_n
    if window == 0:
        return {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    if window in (None, -1):
        return penalties
    defaults = service.backend.info.defaults
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    for name, value in penalties.items():
        used = getattr(defaults, name) if value is None else value
        if used not in (None, neutral[name]):
            sentence = f"options.repeat_last_n={window} is not offered: penalties look at the whole text; use -1, or 0 for none"
            raise refuse(sentence, "options.repeat_last_n", "unsupported_field")
    exchange.ignored_fields.append("options.repeat_last_n")
    return penalties


def _constraint(wanted: str | dict[str, Any] | None) -> Constraint | None:
    if wanted is None or wanted == "":
        return None
    if isinstance(wanted, dict):
        return Constraint(kind="json_schema", value=wanted)
    if wanted != "json":
        sentence = f'format={wanted!r:.40} is unknown; use "json" or the object of a JSON schema'
        raise refuse(sentence, "format", "invalid_value")
    return Constraint(kind="json_object")


def thinking_options(think: bool | str | None, service: Service) -> dict[str, Any]:
    """How the template is told to think.

    Raises:
        ApiError: the model cannot do as it is told.
    """
    if think is None:
        return {}
    if isinstance(think, str) and think not in _EFFORTS:
        sentence = f"think={think!r:.40} is unknown; use true, false or one of {', '.join(_EFFORTS)}"
        raise refuse(sentence, "think", "invalid_value")
    backend = service.backend
    can_think = backend.template is not None and backend.template.writes_thoughts
    if isinstance(think, str) and template_knows(backend, "reasoning_effort"):
        return {"reasoning_effort": think}
    if template_knows(backend, "enable_thinking"):
        return {"enable_thinking": think is not False}
    if bool(think) == can_think:
        return {}
    if think:
        raise refuse(f"{backend.info.model!r:.200} does not support thinking; leave think out", "think")
    raise refuse(f"{backend.info.model!r:.200} thinks always; leave think out", "think")
