"""Request bodies of OpenAI's Responses protocol, as read and as documented."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from qwenkit.server.bodies import Body

ROLES = ("user", "assistant", "system", "developer")
"""Who may say something."""


class PartBody(Body):
    """A piece of an item; which fields it has depends on its type."""

    type: str
    text: str | None = None
    refusal: str | None = None


class ItemBody(Body):
    """A message, a call, its result or a thought; which fields it has depends on its type."""

    type: str | None = None
    id: str | None = None
    role: str | None = Field(default=None, json_schema_extra={"enum": [*ROLES, None]})
    content: str | list[PartBody] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[PartBody] | None = None
    summary: list[PartBody] | None = None
    encrypted_content: str | None = None


class FunctionToolBody(Body):
    """A function the model may call."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class PickedToolBody(Body):
    """A tool by its name."""

    type: str
    name: str | None = None


class PickBody(Body):
    """Which tool must be called, or which of them count."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[PickedToolBody] | None = None


class TextFormatBody(Body):
    """The form of an answer."""

    type: str = Field(description="text, json_object or json_schema")
    name: str | None = Field(default=None, pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextBody(Body):
    """How the text of an answer should be."""

    format: TextFormatBody | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningBody(Body):
    """How hard the model should think."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class InputTokensBody(Body):
    """POST /v1/responses/input_tokens."""

    model: str | None = None
    input: str | list[ItemBody] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[FunctionToolBody] | None = None
    tool_choice: str | PickBody | None = None
    parallel_tool_calls: bool | None = None
    text: TextBody | None = None
    reasoning: ReasoningBody | None = None
    truncation: Literal["auto", "disabled"] | None = None


class ResponsesBody(InputTokensBody):
    """POST /v1/responses."""

    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
