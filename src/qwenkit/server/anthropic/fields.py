"""What the fields of an Anthropic request mean: tools, thinking, the form of the answer, and what is refused."""

from __future__ import annotations

from typing import Any

from qwenkit.backends.base import Backend
from qwenkit.core.errors import InputError
from qwenkit.core.types import Constraint, SamplingParams, ToolSpec
from qwenkit.server.anthropic.schema import (
    CountTokensBody,
    MessagesBody,
    OfferedToolBody,
    ThinkingBody,
    WantedToolBody,
)
from qwenkit.server.bodies import Refusals, refuse_fields
from qwenkit.server.conversation import template_knows
from qwenkit.server.errors import refuse
from qwenkit.server.sampling import make_sampling, read_top_k
from qwenkit.server.turns import ToolUse, find_tool, make_tools

REFUSED: Refusals = {
    "container": ((), "code is not run here; leave container out"),
    "mcp_servers": (([],), "tools of MCP servers are not called here; offer them as tools of your own"),
    "compaction": ((), "conversations are not summarised here; leave compaction out"),
    "speed": (("standard",), 'there is one speed; use "standard" or leave speed out'),
    "service_tier": (
        ("auto", "standard_only"),
        'there is one service tier; use "auto" or leave service_tier out',
    ),
    "inference_geo": ((), "where the model runs cannot be chosen; leave inference_geo out"),
}
NO_THREADS = "thread_unsupported_request"
"""The word at which clients that send only what is new go over to sending everything."""
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_THINKING = ("enabled", "disabled", "adaptive")
_CHOICES = ("auto", "any", "tool", "none")


def check_fields(body: CountTokensBody, ignored: list[str]) -> None:
    """Refuses what cannot be honoured, and names what has no effect.

    Raises:
        ApiError: there is something.
    """
    refuse_fields(body, REFUSED)
    management = body.context_management
    for n, edit in enumerate(management.edits or () if management is not None else ()):
        if not edit.type.startswith("clear_"):  # clearing less than was asked for loses nothing
            where = f"context_management.edits[{n}].type"
            raise refuse(f"{where}={edit.type!r:.60} is not offered here; leave it out", where)
    if management is not None:
        ignored.append("context_management")
    if (body.model_extra or {}).get("thread"):
        sentence = "conversations are not kept here; leave thread out, and send the whole conversation"
        raise refuse(sentence, "thread", NO_THREADS)


def read_tools(body: CountTokensBody) -> ToolUse:
    """The tools of a request.

    Raises:
        ApiError: they cannot be offered, or the choice makes no sense.
    """
    tools = make_tools([_spec(f"tools[{n}]", tool) for n, tool in enumerate(body.tools or ())], "tools")
    wanted = body.tool_choice or WantedToolBody(type="auto")
    if wanted.type not in _CHOICES:
        sentence = f"tool_choice.type={wanted.type!r:.40} is unknown; use one of {', '.join(_CHOICES)}"
        raise refuse(sentence, "tool_choice.type", "invalid_value")
    if wanted.type in ("any", "tool") and not tools:
        sentence = f"tool_choice.type={wanted.type} needs tools; give at least one"
        raise refuse(sentence, "tool_choice", "invalid_value")
    if wanted.type == "none" or not tools:
        return ToolUse()
    parallel = not wanted.disable_parallel_tool_use
    if wanted.type == "tool":  # which is called once
        if wanted.name is None:
            sentence = "tool_choice.name is missing; it is required for the type tool"
            raise refuse(sentence, "tool_choice.name", "missing_field")
        return ToolUse(tools=tools, choice=find_tool(wanted.name, tools, "tool_choice.name"), parallel=False)
    return ToolUse(tools=tools, choice="required" if wanted.type == "any" else "auto", parallel=parallel)


def _spec(where: str, body: OfferedToolBody) -> ToolSpec:
    if body.type not in (None, "custom"):
        sentence = (
            f"{where} is {body.type!r:.60}, which is not offered here; describe a tool of your own instead"
        )
        raise refuse(sentence, f"{where}.type", "unsupported_field")
    if body.input_schema is None:
        raise refuse(
            f"{where}.input_schema is missing; it is required", f"{where}.input_schema", "missing_field"
        )
    if body.defer_loading:
        sentence = f"{where}.defer_loading is not offered: every tool is told at once; leave it out"
        raise refuse(sentence, f"{where}.defer_loading", "unsupported_field")
    if body.allowed_callers not in (None, ["direct"]):
        sentence = f'{where}.allowed_callers can only be ["direct"]; no code is run here'
        raise refuse(sentence, f"{where}.allowed_callers", "unsupported_field")
    return ToolSpec(name=body.name, description=body.description or "", parameters=body.input_schema)


def template_options(body: CountTokensBody, backend: Backend, ignored: list[str]) -> dict[str, Any]:
    """How the template is told to think, as far as it can be.

    Raises:
        ApiError: a value is unknown.
    """
    options = {} if body.thinking is None else _thinking(body.thinking, backend, ignored)
    effort = body.output_config.effort if body.output_config is not None else None
    if effort is None:
        return options
    if effort not in _EFFORTS:
        sentence = f"output_config.effort={effort!r:.40} is unknown; use one of {', '.join(_EFFORTS)}"
        raise refuse(sentence, "output_config.effort", "invalid_value")
    if template_knows(backend, "reasoning_effort"):
        return options | {"reasoning_effort": effort}
    ignored.append("output_config.effort")
    return options


def _thinking(body: ThinkingBody, backend: Backend, ignored: list[str]) -> dict[str, Any]:
    if body.type not in _THINKING:
        sentence = f"thinking.type={body.type!r:.40} is unknown; use one of {', '.join(_THINKING)}"
        raise refuse(sentence, "thinking.type", "invalid_value")
    if body.type == "enabled" and body.budget_tokens is None:
        sentence = "thinking.budget_tokens is missing; it is required for the type enabled"
        raise refuse(sentence, "thinking.budget_tokens", "missing_field")
    if body.budget_tokens is not None:
        ignored.append("thinking.budget_tokens")  # a thought is not cut short
    can_think = backend.template is not None and backend.template.writes_thoughts
    if template_knows(backend, "enable_thinking"):
        return {"enable_thinking": body.type != "disabled"}
    if can_think == (body.type == "disabled"):  # it thinks whatever it is told, or never
        ignored.append("thinking")
    return {}


def sampling_params(body: MessagesBody) -> SamplingParams:
    """The engine's settings for a body.

    Raises:
        ApiError: a value is out of range.
    """
    return make_sampling(
        {"stop": "stop_sequences"},
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=read_top_k(body.top_k),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
        stop=body.stop_sequences,
        constraint=constraint_of(body),
    )


def constraint_of(body: CountTokensBody) -> Constraint | None:
    """The form that a body wants of its answer.

    Raises:
        ApiError: it is said twice, or is no schema.
    """
    newer = body.output_config.format if body.output_config is not None else None
    form = newer or body.output_format
    if newer is not None and body.output_format is not None:
        sentence = "output_format is the older form of output_config.format; give only one of the two"
        raise refuse(sentence, "output_format")
    if form is None:
        return None
    try:
        return Constraint(kind="json_schema", value=form.schema_)
    except InputError as error:
        raise refuse(str(error), "output_config.format", "invalid_value") from None
