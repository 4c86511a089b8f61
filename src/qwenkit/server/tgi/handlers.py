"""The endpoints of text-generation-inference: from its parameters to a request and back."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit._version import __version__
from qwenkit.core.errors import InputError
from qwenkit.core.sampling import MAX_SAMPLES
from qwenkit.core.types import Constraint, Request, SamplingParams
from qwenkit.server.answering import JsonResponse, stream_answer, whole_answer
from qwenkit.server.bodies import read_body
from qwenkit.server.errors import refuse
from qwenkit.server.sampling import (
    MAX_STOPS,
    check_limit,
    check_logprobs,
    either,
    make_sampling,
    object_schema,
)
from qwenkit.server.service import Service
from qwenkit.server.tgi.reply import TgiCollector, TgiEncoder, TgiShape
from qwenkit.server.tgi.schema import TgiBody, TgiGrammarBody, TgiParametersBody
from qwenkit.server.tgi.shapes import tgi_statuses
from qwenkit.server.token_text import encode_raw

_DEFAULT_MAX_TOKENS = 100
"""As the protocol says."""
_SEEDS = 2**63
_NAMES = {
    name: f"parameters.{name}"
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "frequency_penalty", "stop", "seed")
} | {"max_tokens": "parameters.max_new_tokens"}


async def generate_stream(http: HttpRequest) -> Response:
    """Continues a text, an event per token."""
    with tgi_statuses():
        body = await _read(http)
        if body.stream is False:
            raise refuse("stream=false is for /generate; this path streams, so leave stream out", "stream")
        return await answer(http, body, is_stream=True)


async def compat_generate(http: HttpRequest) -> Response:
    """Continues a text, as a list of one or as events; the text begins with the prompt unless told otherwise."""
    with tgi_statuses():
        body = await _read(http)
        return await answer(http, body, is_stream=either(body.stream, False), is_compat=True)


async def info(http: HttpRequest) -> Response:
    """What runs here, and its limits."""
    service: Service = http.app.state.service
    about = service.backend.info
    return JsonResponse(
        {
            "model_id": service.names[0],
            "model_sha": None,
            "model_dtype": about.dtype,
            "model_device_type": about.device,
            "model_pipeline_tag": "text-generation",
            "max_best_of": MAX_SAMPLES,
            "max_stop_sequences": MAX_STOPS,
            "max_input_length": about.context_length - 1,
            "max_input_tokens": about.context_length - 1,
            "max_total_tokens": about.context_length,
            "max_client_batch_size": 1,
            "router": "qwenkit",
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


async def _read(http: HttpRequest) -> TgiBody:
    service: Service = http.app.state.service
    return await read_body(http, TgiBody, service.options.max_body_bytes)


async def answer(http: HttpRequest, body: TgiBody, *, is_stream: bool, is_compat: bool = False) -> Response:
    """The answer to a body.

    Args:
        http: the request.
        body: what was in it.
        is_stream: whether it comes as events.
        is_compat: whether the answer is as at the path ``/``.

    Raises:
        ApiError: it cannot be honoured.
    """
    service: Service = http.app.state.service
    parameters = body.parameters or TgiParametersBody()
    _check(parameters, service.backend.info.context_length, is_stream=is_stream)
    has_details = either(parameters.details, False) or either(parameters.decoder_input_details, False)
    seeds = _seeds(parameters)
    shape = TgiShape(
        tokenizer=service.backend.tokenizer,
        prefix=body.inputs if either(parameters.return_full_text, is_compat) else "",
        has_details=has_details,
        has_top_tokens=bool(parameters.top_n_tokens),
        seeds=seeds,
        in_list=is_compat,
    )
    needs_logprobs = is_stream or has_details or len(seeds) > 1
    build = _builder(body, parameters, seeds, service, needs_logprobs=needs_logprobs)
    if is_stream:
        return await stream_answer(service, http, build, partial(TgiEncoder, shape))
    return await whole_answer(service, http, build, partial(TgiCollector, shape))


def _builder(
    body: TgiBody,
    parameters: TgiParametersBody,
    seeds: tuple[int | None, ...],
    service: Service,
    *,
    needs_logprobs: bool,
) -> Callable[[], list[Request]]:
    """What makes the requests for the engine, one per continuation, so that each has a seed of its own."""
    adapter = service.adapter_of(parameters.adapter_id)
    params = [_sampling(parameters, seed, needs_logprobs=needs_logprobs) for seed in seeds]

    def build() -> list[Request]:
        tokenizer, add_special = service.backend.tokenizer, body.add_special_tokens is not False
        ids = encode_raw(tokenizer, body.inputs, add_special=add_special)
        kept = tuple(ids[-parameters.truncate :] if parameters.truncate else ids)
        return [Request(prompt=kept, params=each, adapter=adapter) for each in params]

    return build


def _check(parameters: TgiParametersBody, context_length: int, *, is_stream: bool) -> None:
    """Refuses what cannot be honoured.

    Raises:
        ApiError: there is something.
    """
    if parameters.watermark:
        raise refuse(
            "watermarks are not offered here; leave watermark out",
            "parameters.watermark",
            "unsupported_field",
        )
    if parameters.typical_p not in (None, 1.0):
        sentence = "typical sampling is not offered here; leave typical_p out, or use top_p"
        raise refuse(sentence, "parameters.typical_p", "unsupported_field")
    if parameters.truncate is not None and not 1 <= parameters.truncate < context_length:
        sentence = (
            f"truncate={parameters.truncate} is not possible; use a number from 1 to {context_length - 1}"
        )
        raise refuse(sentence, "parameters.truncate", "invalid_value")
    if is_stream and parameters.decoder_input_details:
        sentence = "decoder_input_details cannot be streamed; leave it out, or do not stream"
        raise refuse(sentence, "parameters.decoder_input_details")
    best_of = either(parameters.best_of, 1)
    if not 1 <= best_of <= MAX_SAMPLES:
        sentence = f"best_of={best_of} is not possible; use a whole number from 1 to {MAX_SAMPLES}"
        raise refuse(sentence, "parameters.best_of", "invalid_value")
    if best_of > 1 and (is_stream or parameters.seed is not None or not _is_sampling(parameters)):
        sentence = "best_of above 1 needs do_sample=true, and neither a stream nor a seed; change one of them"
        raise refuse(sentence, "parameters.best_of", "invalid_value")


def _is_sampling(parameters: TgiParametersBody) -> bool:
    """A setting that only matters when sampling turns it on as well."""
    return bool(
        parameters.do_sample
        or parameters.temperature not in (None, 0.0, 1.0)
        or parameters.top_k
        or either(parameters.top_p, 1.0) < 1.0
    )


def _seeds(parameters: TgiParametersBody) -> tuple[int | None, ...]:
    """One per continuation; chosen here where none was given, so that clients can be told."""
    given = parameters.seed
    if given is not None:
        if not 0 <= given < 2 * _SEEDS:
            sentence = f"seed={given} is not possible; use a whole number from 0 to {2 * _SEEDS - 1}"
            raise refuse(sentence, "parameters.seed", "invalid_value")
        return (given,)
    if not _is_sampling(parameters):
        return (None,)
    return tuple(secrets.randbits(63) for _ in range(either(parameters.best_of, 1)))


def _sampling(parameters: TgiParametersBody, seed: int | None, *, needs_logprobs: bool) -> SamplingParams:
    """The engine's settings; what is not given is off, whatever the model's own settings say."""
    top = check_logprobs("parameters.top_n_tokens", parameters.top_n_tokens)
    limit = check_limit("parameters.max_new_tokens", parameters.max_new_tokens)
    return make_sampling(
        _NAMES,
        max_tokens=either(limit, _DEFAULT_MAX_TOKENS),
        temperature=either(parameters.temperature, 1.0) if _is_sampling(parameters) else 0.0,
        top_k=either(parameters.top_k, 0),
        top_p=either(parameters.top_p, 1.0),
        min_p=0.0,
        repetition_penalty=either(parameters.repetition_penalty, 1.0),
        frequency_penalty=either(parameters.frequency_penalty, 0.0),
        presence_penalty=0.0,
        constraint=None if parameters.grammar is None else _constraint(parameters.grammar),
        seed=None if seed is None else seed % _SEEDS,
        stop=tuple(parameters.stop or ()),
        include_stop=True,
        logprobs=either(top, 0) if needs_logprobs else None,
        prompt_logprobs=0 if parameters.decoder_input_details else None,
    )


def _constraint(grammar: TgiGrammarBody) -> Constraint:
    """The form that a text must have.

    Raises:
        ApiError: it makes no sense.
    """
    value = grammar.value
    if grammar.type == "json_schema":
        if not isinstance(value, dict) or "schema" not in value:
            sentence = 'a grammar of type json_schema needs {"schema": SCHEMA} as its value'
            raise refuse(sentence, "parameters.grammar.value", "invalid_value")
        value = value["schema"]
    elif grammar.type not in ("json", "regex"):
        sentence = f"grammar.type={grammar.type!r:.40} is unknown; use json, json_schema or regex"
        raise refuse(sentence, "parameters.grammar.type", "invalid_value")
    try:
        if grammar.type == "regex":
            return Constraint(kind="regex", value=value)
        return Constraint(kind="json_schema", value=_schema(value))
    except InputError as error:
        raise refuse(str(error), "parameters.grammar.value", "invalid_value") from None


def _schema(value: Any) -> Any:
    """A schema, which may come as text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            sentence = "grammar.value is text that is no JSON; send the schema as an object"
            raise refuse(sentence, "parameters.grammar.value", "invalid_value") from None
    return object_schema(value)
