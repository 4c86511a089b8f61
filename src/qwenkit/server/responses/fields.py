"""What the fields of a Responses request mean: sampling, tools, the form of the answer, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

from qwenkit.core.errors import InputError
from qwenkit.core.types import Constraint, SamplingParams, ToolSpec
from qwenkit.server.bodies import Refusals
from qwenkit.server.errors import refuse
from qwenkit.server.responses.schema import (
    FunctionToolBody,
    InputTokensBody,
    PickBody,
    ResponsesBody,
    TextFormatBody,
)
from qwenkit.server.sampling import check_limit, check_logprobs, either, make_sampling, read_top_k
from qwenkit.server.turns import ToolUse, choose_tools, find_tool, make_tools

_TIERS = ("auto", "default")
REFUSED: Refusals = {
    "conversation": ((), "conversations are not kept here; use previous_response_id"),
    "prompt": ((), "prompts are not kept here; send instructions and input"),
    "context_management": (([],), "the context is not compacted here; use truncation auto, or send less"),
    "moderation": ((), "moderation is not offered here; leave it out"),
    "personality": ((), "personalities are not offered here; use instructions"),
    "background_options": ((), "background responses run at once; leave background_options out"),
    "service_tier": (_TIERS, 'there is one service tier; use "auto" or leave service_tier out'),
    "modalities": ((["text"],), 'this model answers with text only; use modalities ["text"] or leave it out'),
}
LOGPROBS, ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"
"""What can be included in answers."""
_WITHOUT_EFFECT = (
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
)
"""They are about what no answer here has."""
_MAX_METADATA = (16, 64, 512)


def check_fields(body: ResponsesBody) -> None:
    """Checks fields that say nothing to the model.

    Raises:
        ApiError: one has a value that is not possible.
    """
    for name in body.include or ():
        if name not in (LOGPROBS, ENCRYPTED, *_WITHOUT_EFFECT):
            sentence = f"include holds {name!r:.60}; use {LOGPROBS} or {ENCRYPTED}"
            raise refuse(sentence, "include", "invalid_value")
    entries, longest_key, longest_value = _MAX_METADATA
    metadata = body.metadata or {}
    if len(metadata) > entries or any(
        len(k) > longest_key or len(v) > longest_value for k, v in metadata.items()
    ):
        limit = f"{entries} entries, keys of {longest_key} and values of {longest_value} characters"
        raise refuse(f"metadata holds too much; use at most {limit}", "metadata", "invalid_value")
    check_limit("max_tool_calls", body.max_tool_calls)


def unused(body: InputTokensBody) -> Iterator[str]:
    """Names of fields that have no effect."""
    if isinstance(body, ResponsesBody):
        names = ("max_tool_calls", "user", "safety_identifier", "prompt_cache_key")
        yield from (name for name in names if getattr(body, name) is not None)
        yield from (f"include.{name}" for name in body.include or () if name in _WITHOUT_EFFECT)
    if body.text is not None and body.text.verbosity is not None:
        yield "text.verbosity"
    if body.reasoning is not None and body.reasoning.summary is not None:
        yield "reasoning.summary"
    # only calls that are required are written under a grammar
    yield from (f"tools[{n}].strict" for n, tool in enumerate(body.tools or ()) if tool.strict)


def sampling_params(body: ResponsesBody) -> SamplingParams:
    """The engine's settings for a body.

    Raises:
        ApiError: a value is out of range; ``param`` names the field.
    """
    top = check_logprobs("top_logprobs", body.top_logprobs)
    has_logprobs = bool(top) or LOGPROBS in (body.include or ())
    return make_sampling(
        {"max_tokens": "max_output_tokens"},
        max_tokens=check_limit("max_output_tokens", body.max_output_tokens),
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=read_top_k(body.top_k),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        seed=body.seed,
        stop=body.stop,
        logprobs=either(top, 0) if has_logprobs else None,
        constraint=constraint_of(body),
    )


def constraint_of(body: InputTokensBody) -> Constraint | None:
    """The form that a body wants of its answer.

    Raises:
        ApiError: there is no such form.
    """
    form = body.text.format if body.text is not None else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return Constraint(kind="json_object")
    if form.type != "json_schema":
        sentence = f"text.format.type={form.type!r:.80} is unknown; use text, json_object or json_schema"
        raise refuse(sentence, "text.format.type", "invalid_value")
    return _schema(form)


def _schema(form: TextFormatBody) -> Constraint:
    for name, value in (("name", form.name), ("schema", form.schema_)):
        if value is None:
            sentence = f"text.format.{name} is missing; it is required for the type json_schema"
            raise refuse(sentence, f"text.format.{name}", "missing_field")
    try:
        return Constraint(kind="json_schema", value=form.schema_)
    except InputError as error:
        raise refuse(str(error), "text.format.schema", "invalid_value") from None


def read_tools(body: InputTokensBody) -> ToolUse:
    """The tools of a request.

    Raises:
        ApiError: they cannot be offered, or the choice makes no sense.
    """
    tools = make_tools([_spec(f"tools[{n}]", tool) for n, tool in enumerate(body.tools or ())], "tools")
    given: str | PickBody | None = body.tool_choice
    if isinstance(given, PickBody) and given.type == "allowed_tools":
        tools, given = _allowed(given, tools)
    choice = _named(given, tools) if isinstance(given, PickBody) else given
    return choose_tools(tools, choice, "tool_choice", parallel=body.parallel_tool_calls)


def _named(given: PickBody, tools: tuple[ToolSpec, ...]) -> ToolSpec:
    if given.type != "function":
        sentence = f"tool_choice.type={given.type!r:.40} is not offered here; use function"
        raise refuse(sentence, "tool_choice.type", "unsupported_field")
    return find_tool(given.name or "", tools, "tool_choice")


def _spec(where: str, body: FunctionToolBody) -> ToolSpec:
    if body.type != "function":
        sentence = f"{where} is {body.type!r:.40}, which is not offered here; only functions of your own are"
        raise refuse(sentence, f"{where}.type", "unsupported_field")
    if (body.model_extra or {}).get("defer_loading"):
        sentence = f"{where}.defer_loading is not offered: every tool is told at once; leave it out"
        raise refuse(sentence, f"{where}.defer_loading", "unsupported_field")
    return ToolSpec(
        name=body.name or "", description=body.description or "", parameters=body.parameters or {}
    )


def _allowed(given: PickBody, tools: tuple[ToolSpec, ...]) -> tuple[tuple[ToolSpec, ...], str]:
    if not given.tools:
        raise refuse("tool_choice.tools must list functions", "tool_choice.tools", "missing_field")
    return tuple(find_tool(t.name or "", tools, "tool_choice.tools") for t in given.tools), either(
        given.mode, "auto"
    )
