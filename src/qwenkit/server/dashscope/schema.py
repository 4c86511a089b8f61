"""Request bodies of the DashScope protocol, as read and as documented."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from qwenkit.server.bodies import Body

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Who may say something."""


class DashScopePart(Body):
    """A piece of a message; text is all that is read."""

    type: str | None = None
    text: str | None = None


class DashScopeCalledFunction(Body):
    """What the model called earlier."""

    name: str
    arguments: str


class DashScopeCall(Body):
    """A call the model made earlier."""

    id: str | None = None
    type: str | None = None
    index: int | None = None
    function: DashScopeCalledFunction


class DashScopeMessage(Body):
    """One turn of a conversation."""

    role: str = Field(json_schema_extra={"enum": list(ROLES)})
    content: str | list[DashScopePart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[DashScopeCall] | None = None
    tool_call_id: str | None = None
    partial: bool | None = None


class DashScopeExchange(Body):
    """A question and its answer, in the older form of a conversation."""

    user: str
    bot: str


class DashScopeInput(Body):
    """What is to be answered: messages, or a prompt with what came before it."""

    messages: list[DashScopeMessage] | None = None
    prompt: str | None = None
    history: list[DashScopeExchange] | None = None


class DashScopeFunction(Body):
    """A function the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class DashScopeTool(Body):
    """A tool the model may use."""

    type: str
    function: DashScopeFunction | None = None


class DashScopeFunctionName(Body):
    """The name of a function."""

    name: str


class DashScopeToolChoice(Body):
    """Which function must be called."""

    type: str
    function: DashScopeFunctionName | None = None


class DashScopeSchema(Body):
    """The schema of an answer."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class DashScopeFormat(Body):
    """The form of an answer."""

    type: str = Field(description="text, json_object or json_schema")
    json_schema: DashScopeSchema | None = None


class DashScopeParameters(Body):
    """How to answer."""

    result_format: str | None = Field(default=None, description="text or message")
    incremental_output: bool | None = None
    stream: bool | None = None
    seed: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str | int | list[int]] | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[DashScopeTool] | None = None
    tool_choice: str | DashScopeToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: DashScopeFormat | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    enable_search: bool | None = None
    search_options: dict[str, Any] | None = None


class DashScopeBody(Body):
    """POST /api/v1/services/aigc/text-generation/generation."""

    model: str
    input: DashScopeInput
    parameters: DashScopeParameters | None = None


class DashScopeTexts(Body):
    """Texts to make vectors of."""

    texts: list[str] = Field(min_length=1)


class DashScopeEmbeddingParameters(Body):
    """How to make vectors."""

    text_type: str | None = None
    dimension: int | None = None
    output_type: str | None = None
    instruct: str | None = None


class DashScopeEmbeddingBody(Body):
    """POST /api/v1/services/embeddings/text-embedding/text-embedding."""

    model: str
    input: DashScopeTexts
    parameters: DashScopeEmbeddingParameters | None = None


class DashScopeError(BaseModel):
    """Every error, whatever the endpoint."""

    code: str
    message: str
    request_id: str
