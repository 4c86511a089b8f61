"""What the fields of an OpenAI request mean for the engine: sampling, the form of the answer, and what is refused."""

from __future__ import annotations

from typing import Any

from qwenkit.backends.base import Backend
from qwenkit.core.errors import InputError
from qwenkit.core.types import Constraint, SamplingParams
from qwenkit.server.bodies import Body, Refusals, refuse_fields
from qwenkit.server.conversation import template_knows
from qwenkit.server.errors import refuse
from qwenkit.server.openai.schema import ResponseFormatBody, SamplingBody, StructuredOutputsBody
from qwenkit.server.sampling import (
    check_token_ids,
    either,
    make_sampling,
    object_schema,
    read_logit_bias,
    read_top_k,
    texts,
)

_STORED = "replies are not stored here; leave store out"
REFUSED: Refusals = {
    "audio": ((), "this model reads and writes text only; leave audio out"),
    "modalities": ((["text"],), 'this model answers with text only; use modalities ["text"] or leave it out'),
    "web_search_options": ((), "web search is not offered here; leave web_search_options out"),
    "moderation": ((), "moderation is not offered here; leave it out"),
    "store": ((False,), _STORED),
    "suffix": (("",), "filling in before a suffix is not offered here; leave suffix out"),
    "use_beam_search": ((False,), "beam search is not offered here; leave use_beam_search out"),
    "chat_template": ((), "a request cannot bring its own chat template; leave chat_template out"),
    "logits_processors": (([],), "logits processors are not offered here; leave them out"),
    "truncate_prompt_tokens": ((), "prompts are never truncated here; shorten the prompt yourself"),
    "service_tier": (("auto", "default"), 'there is one service tier; use "auto" or leave service_tier out'),
}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def check_refused(body: Body) -> None:
    """Refuses fields that cannot be honoured.

    Raises:
        ApiError: there is one.
    """
    refuse_fields(body, REFUSED)


def sampling_params(
    body: SamplingBody,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    constraint: Constraint | None,
    vocab_size: int,
) -> SamplingParams:
    """The engine's settings for a body.

    Raises:
        ApiError: a value is out of range; ``param`` names the field.
    """
    if body.stream_options is not None and not body.stream:
        raise refuse("stream_options needs stream=true; leave it out, or stream", "stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise refuse("prompt_logprobs cannot be streamed; leave one of the two out", "prompt_logprobs")
    return make_sampling(
        {"include_stop": "include_stop_str_in_output"},
        n=either(body.n, 1),
        max_tokens=max_tokens,
        min_tokens=either(body.min_tokens, 0),
        temperature=body.temperature,
        top_k=read_top_k(body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=read_logit_bias(body.logit_bias or {}, vocab_size),
        bad_words=texts(body.bad_words),
        allowed_token_ids=check_token_ids("allowed_token_ids", body.allowed_token_ids, vocab_size),
        constraint=constraint,
        seed=body.seed,
        stop=body.stop,
        stop_token_ids=check_token_ids("stop_token_ids", body.stop_token_ids, vocab_size) or (),
        ignore_eos=either(body.ignore_eos, False),
        include_stop=either(body.include_stop_str_in_output, False),
        skip_special_tokens=either(body.skip_special_tokens, True),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def constraint_of(body: SamplingBody) -> Constraint | None:
    """The form that a body wants of its answer, whichever field says so.

    Raises:
        ApiError: two fields say something, or one makes no sense.
    """
    found: dict[str, Constraint] = {}
    try:
        if body.guided_json is not None:
            found["guided_json"] = Constraint(kind="json_schema", value=body.guided_json)
        if body.guided_regex is not None:
            found["guided_regex"] = Constraint(kind="regex", value=body.guided_regex)
        if body.guided_choice is not None:
            found["guided_choice"] = Constraint(kind="choice", value=body.guided_choice)
        if body.guided_grammar is not None:
            found["guided_grammar"] = Constraint(kind="grammar", value=body.guided_grammar)
        if body.structured_outputs is not None:
            found["structured_outputs"] = _structured(body.structured_outputs)
        if body.response_format is not None and (form := _response_format(body.response_format)) is not None:
            found["response_format"] = form
    except InputError as error:
        raise refuse(str(error), code="invalid_value") from None
    if len(found) > 1:
        sentence = f"{' and '.join(found)} contradict each other; give only one of them"
        raise refuse(sentence, next(reversed(found)))
    return next(iter(found.values()), None)


def _structured(body: StructuredOutputsBody) -> Constraint:
    options: dict[str, tuple[Any, Any]] = {
        "json": ("json_schema", body.json_),
        "regex": ("regex", body.regex),
        "choice": ("choice", body.choice),
        "grammar": ("grammar", body.grammar),
        "json_object": ("json_object", body.json_object or None),
    }
    given = {name: kind_value for name, kind_value in options.items() if kind_value[1] is not None}
    if len(given) != 1:
        wanted = "exactly one of json, regex, choice, grammar and json_object"
        sentence = f"structured_outputs needs {wanted}, got {' and '.join(given) or 'none'}"
        raise refuse(sentence, "structured_outputs")
    ((kind, value),) = given.values()
    return Constraint(kind=kind, value=None if kind == "json_object" else value)


def _response_format(body: ResponseFormatBody) -> Constraint | None:
    if body.value is not None:
        return _valued_format(body)
    if body.type == "text":
        return None
    if body.type == "json_object":
        return Constraint(kind="json_object")
    if body.type != "json_schema":
        sentence = f"response_format.type={body.type!r:.80} is unknown; use text, json_object or json_schema"
        raise refuse(sentence, "response_format.type", "invalid_value")
    if body.json_schema is None:
        sentence = "response_format.json_schema is missing; it is required for the type json_schema"
        raise refuse(sentence, "response_format.json_schema", "missing_field")
    schema = body.json_schema.schema_
    return Constraint(kind="json_object") if schema is None else Constraint(kind="json_schema", value=schema)


def effort_options(
    effort: str | None, name: str, backend: Backend, ignored: list[str]
) -> dict[str, str | bool]:
    """How hard the model should think, as far as its template can tell it.

    Args:
        effort: what the client wants.
        name: of the client's field.
        backend: has the template.
        ignored: takes the name where nothing comes of it.

    Raises:
        ApiError: there is no such effort.
    """
    if effort is None:
        return {}
    if effort not in _EFFORTS:
        sentence = f"{name}={effort!r:.40} is unknown; use one of {', '.join(_EFFORTS)}"
        raise refuse(sentence, name, "invalid_value")
    if template_knows(backend, "reasoning_effort"):
        return {"reasoning_effort": effort}
    if template_knows(backend, "enable_thinking"):
        return {"enable_thinking": effort != "none"}
    ignored.append(name)
    return {}


def _valued_format(body: ResponseFormatBody) -> Constraint:
    """The form as text-generation-inference has it."""
    if body.type not in ("json", "json_object", "regex") or body.json_schema is not None:
        sentence = "response_format.value goes with the types json, json_object and regex; leave it out"
        raise refuse(sentence, "response_format.value", "invalid_value")
    if body.type == "regex":
        return Constraint(kind="regex", value=body.value)
    return Constraint(kind="json_schema", value=object_schema(body.value))
